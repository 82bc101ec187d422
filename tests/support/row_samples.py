"""Samples of calls, for every row of the operator table, and torch's results on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from element_samples import ELEMENTS
from pointwise_samples import POINTWISE
from reduction_samples import REDUCTIONS
from sample_values import Sample
from view_samples import VIEWS

from fusion.patterns.leaves import leaves, map_leaves
from fusion.patterns.ops import TABLE, Kind, Operator, resolve

SAMPLES: Mapping[Kind, Mapping[str, list[Sample]]] = {
    Kind.POINTWISE: POINTWISE, Kind.REDUCTION: REDUCTIONS, Kind.VIEW: VIEWS, Kind.ELEMENT: ELEMENTS,
}  # fmt: skip


def rows(kind: Kind) -> list[Any]:
    return [pytest.param(row, id=op) for op, row in TABLE.items() if row.kind is kind]


def samples_of(row: Operator) -> list[Sample]:
    found = SAMPLES[row.kind].get(row.op.removeprefix("aten."))
    assert found, f"{row.op} has a row in the operator table but no sample in {row.kind.value}_samples.py: add one"
    return found


def torch_result(row: Operator, s: Sample) -> tuple[torch.Tensor, ...]:
    made = resolve(row.op)(*s.args, **s.kwargs)
    return (made,) if isinstance(made, torch.Tensor) else tuple(made)


def tensors_of(s: Sample) -> list[torch.Tensor]:
    """The sample's tensors, in the order `called` takes them."""
    return [x for x in leaves((s.args, tuple(s.kwargs.values()))) if isinstance(x, torch.Tensor)]


def called(row: Operator, s: Sample, *tensors: torch.Tensor) -> Any:
    """The sample's call on other tensors."""
    left = iter(tensors)

    def fill(tree: Any) -> Any:
        return map_leaves(lambda leaf: next(left) if isinstance(leaf, torch.Tensor) else leaf, tree)

    return resolve(row.op)(*fill(s.args), **{name: fill(value) for name, value in s.kwargs.items()})
