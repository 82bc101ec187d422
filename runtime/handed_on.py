"""Results that one step of a plan hands to the next: a log that kept them would keep all layers' activations alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fusion.patterns import symbols
from fusion.patterns.graph import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class HandedOn:
    """Stands in a log for a tensor that was read by the steps after it only, all of which are done."""

    spec: TensorSpec


def restored(log: list[Any], sizes: Mapping[str, Any]) -> list[Any]:
    """`log` for a re-run: what was handed on is a tensor of its shape without data, which the steps do not look at.

    Args:
        log: results of islands, in order.
        sizes: values of the size symbols, by name.
    """
    return [_stand_in(entry.spec, sizes) if isinstance(entry, HandedOn) else entry for entry in log]


def _stand_in(spec: TensorSpec, sizes: Mapping[str, Any]) -> torch.Tensor:
    shape, strides = ([symbols.evaluate(d, sizes) for d in dims] for dims in (spec.shape, spec.strides))
    return torch.empty_strided(shape, strides, dtype=spec.dtype, device="meta")
