"""Running graphs given by hand: what `FusionScheduler.dispatch` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fusion.frontend.manual_recording import Recording, with_parameters
from fusion.jit.scope import Scope
from fusion.jit.stages import Stages
from fusion.patterns.errors import FusionError, StructureMismatch
from fusion.patterns.graph import SubGraph
from fusion.patterns.ops import Kind, kind_of
from fusion.patterns.ops.pointwise import CONVERSIONS
from fusion.patterns.reference import bind_symbols
from fusion.runtime.measure import eager_function


def dispatcher_for(graph: Any, stages: Stages) -> Callable[[dict[str, torch.Tensor]], dict[str, Any]]:
    """What `FusionScheduler.dispatch` runs for a graph: a function from inputs by name to outputs by name.

    Raises:
        FusionError: `graph` is neither a SubGraph nor a Recording.
    """
    if isinstance(graph, Recording):
        function = graph.compile()

        def run(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
            _check_names(graph.input_names, inputs)
            result = function(**inputs)
            return result if isinstance(result, dict) else {"output": result}

        return run
    if not isinstance(graph, SubGraph):
        raise FusionError(
            f"dispatch() takes a SubGraph or a Recording, not a {type(graph).__name__}.",
            remedy="Make one with create_swiglu_pattern() or fusion.record().",
        )
    return _subgraph_dispatcher(graph, stages)


def _subgraph_dispatcher(graph: SubGraph, stages: Stages) -> Callable[..., dict[str, Any]]:
    eager = eager_function(graph)
    polymorphic = not graph.symbols or all(
        kind_of(n.op) in (Kind.POINTWISE, Kind.REDUCTION) and n.op not in CONVERSIONS for n in graph.nodes
    )

    def call(*tensors: torch.Tensor) -> Any:
        named = dict(zip(graph.inputs, tensors, strict=True))
        try:
            values = bind_symbols(graph, named)
        except StructureMismatch:
            if not polymorphic:
                raise
            values = dict.fromkeys(graph.symbols, 0)  # no operator of the graph takes a size
        return eager(*tensors, *(values[s] for s in graph.symbols))

    scope = Scope(graph.pattern or "+".join(graph.ops), with_parameters(graph.inputs, call), stages)

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        _check_names(graph.inputs, inputs)
        with torch.no_grad():
            result = scope.entry(*(inputs[name] for name in graph.inputs))
        return dict(zip(graph.outputs, result if len(graph.outputs) > 1 else (result,), strict=True))

    run.scope = scope  # type: ignore[attr-defined]  # for whoever asks what ran
    return run


def _check_names(expected: tuple[str, ...], given: Mapping[str, Any]) -> None:
    if set(expected) != set(given):
        raise StructureMismatch(
            f"The graph's inputs are {list(expected)}; given were {list(given)}.", remedy="Pass exactly these names."
        )
