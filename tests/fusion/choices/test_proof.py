"""Proofs of kernels that hold matrix products, on a sample of rows and columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from graphs import trace

from fusion.choices.proof import prove
from fusion.patterns.graph import SubGraph

X, WIDE, SLIM, SHORT = (torch.randn(*s) for s in ((1, 40, 64), (300, 64), (200, 64), (200, 64)))


def projections(x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Products of one activation, of which the first has other rows."""
    return F.linear(x, q), F.linear(x, k), F.linear(x, v)


@pytest.fixture(scope="module")
def bundle() -> SubGraph:
    return replace(trace(projections, X, WIDE, SLIM, SHORT), bundle=(1, 2))


def test_parts_of_a_bundle_are_proved(bundle: SubGraph) -> None:
    tensors = (X, WIDE, SLIM, SHORT)
    assert prove(bundle, tensors, {}, projections(*tensors)).ok


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("off", [1e-3, 1e3])
def test_a_wrong_part_is_found(bundle: SubGraph, part: int, off: float) -> None:
    """A little off where the sample is, and far off where it is not."""
    tensors = (X, WIDE, SLIM, SHORT)
    made = [result.clone() for result in projections(*tensors)]
    if off < 1:
        made[part] += off
    else:
        made[part][0, 3, 101] = off
    assert not prove(bundle, tensors, {}, tuple(made)).ok
