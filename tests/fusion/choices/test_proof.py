"""Proofs on a part of what a kernel computes: rows and columns of matrix products, and smaller sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from graphs import trace

import fusion
from fusion.choices import proof
from fusion.choices.proof import prove
from fusion.patterns.graph import SubGraph
from fusion.patterns.reference import bind_symbols

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


def halves(x: torch.Tensor) -> torch.Tensor:
    """The number of columns is fixed by the view, and a size symbol all the same."""
    one, other = x.view(-1, 2, 64).unbind(1)
    return (one.sigmoid() * other).sum(0)


def test_smaller_sizes_are_such_as_the_region_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """At others, a kernel would read behind the end of its inputs."""
    monkeypatch.setattr(proof, "_WHOLE_BYTES", 1 << 18)
    monkeypatch.setattr(proof, "SLICE_BYTES", 1 << 17)
    monkeypatch.setattr(proof, "_KEEPS", 16)
    x = torch.randn(400, 128)
    with torch.inference_mode():
        with fusion.record(x=x) as recording:
            halves(x)
        (graph,) = recording.subgraphs
        made: list[tuple[tuple[int, ...], Mapping[str, int]]] = []

        def again(few: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
            made.append((tuple(few[0].shape), sizes))
            return halves(*few)

        values = bind_symbols(graph, {graph.inputs[0]: x})
        assert sorted(values.values()) == [128, 400]
        assert prove(graph, [x], values, halves(x), again).ok
        ((shape, sizes),) = made
        assert shape[0] < 400 and shape[1] == 128 and sorted(sizes.values()) == sorted(shape)
        assert not prove(graph, [x], values, halves(x), lambda few, sizes: halves(*few) + 1).ok
