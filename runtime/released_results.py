"""Results that one step of a plan hands to the next: a log that kept them would keep all layers' activations alive.

The recorded run tells at which call the forward held such a result no longer (`OpaqueCall.dead_results`): from there on
no way that the forward can take reads it, be it one that catches an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fusion.patterns import symbols
from fusion.patterns.specs import TensorSpec
from fusion.runtime.call_log import LoggedWrite


@dataclass(frozen=True, slots=True, eq=False)
class HandedOn:
    """Stands in a log for a tensor that was read by the steps after it only, and that the forward has given up."""

    spec: TensorSpec
    device: torch.device


def restored(log: list[Any], sizes: Mapping[str, Any]) -> list[Any]:
    """`log` for a re-run: what was handed on is a tensor like it with any data, which nobody looks at.

    Args:
        log: results of opaque calls and reads, in order.
        sizes: values of the size symbols, by name.
    """
    return [_restored(entry, sizes) for entry in log]


def _restored(entry: Any, sizes: Mapping[str, Any]) -> Any:
    if isinstance(entry, LoggedWrite):
        return replace(entry, entry=_restored(entry.entry, sizes))
    return _stand_in(entry, sizes) if isinstance(entry, HandedOn) else entry


def _stand_in(gone: HandedOn, sizes: Mapping[str, Any]) -> torch.Tensor:
    spec = gone.spec
    shape, strides = ([symbols.evaluate(d, sizes) for d in dims] for dims in (spec.shape, spec.strides))
    return torch.empty_strided(shape, strides, dtype=spec.dtype, device=gone.device)
