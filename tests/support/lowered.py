"""Graphs lowered for a test: to a LoopNest whose values are compared with eager, or to a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluate import evaluate
from graphs import trace

from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import check as check_only
from fusion.kernels.lower import given_symbols, lower
from fusion.patterns import reference
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph
from fusion.patterns.verify import accept


def check(graph: SubGraph, inputs: tuple[torch.Tensor, ...], *, numerics: str = "eager", given: Any = ()) -> LoopNest:
    """Lowers `graph`, compares what the kernel means with eager by the acceptance rule, and returns the nest."""
    check_only(graph)
    nest = lower(graph, numerics=numerics)
    before = [t.clone() for t in inputs]
    made = evaluate(nest, *inputs, given=given)
    named = dict(zip(graph.inputs, inputs, strict=True))
    sizes = dict(zip(given_symbols(nest), given, strict=True))
    eager, exact = reference.run(graph, named, sizes), reference.run_fp64(graph, named, sizes)
    for name, result in zip(graph.outputs, made, strict=True):
        verdict = accept(result, eager[name], exact[name])
        assert verdict.ok, verdict.reason
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    return nest


def nest_of(fn: Callable[..., Any], *inputs: torch.Tensor, **options: Any) -> LoopNest:
    return check(trace(fn, *inputs, **options), inputs)


def refused(fn: Callable[..., Any], *inputs: torch.Tensor) -> LoweringError:
    with pytest.raises(LoweringError) as caught:
        lower(trace(fn, *inputs))
    with pytest.raises(LoweringError) as found:
        check_only(trace(fn, *inputs))
    assert str(found.value) == str(caught.value), "a check refuses what lowering refuses, in its words"
    return caught.value
