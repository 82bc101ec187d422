"""Following: recording a call of a scope whose twin was recorded already, without fake tensors.

The 28 layers of a model are one class with other weights. The first is recorded with symbols; for each of the others
it is enough to see that its run does, call for call, what the first one's recording says at these sizes. That costs a
tenth. Whatever differs ends the following, the run goes on untouched, and the next call is recorded in full.

What makes it sound: the twins run the same code (same classes) with equal attributes, but for one integer that the
recording knows as an argument of opaque calls (a layer's number); the call meets all guards of the recording; every
operator, argument and result layout is compared. A plan that comes of it is still proved against eager at another
shape before it is trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch

from fusion.capture.function_mode import DATA_READS, LAYOUT_READS, NUMPY, HiddenFunctionMode
from fusion.capture.python.argument_tree import tensors_of
from fusion.capture.python.call_matcher import CallMatcher
from fusion.capture.python.container_proxy import is_looked_into
from fusion.capture.python.interception import session
from fusion.capture.python.state_at_calls import StateAtCalls
from fusion.capture.recorded_call import BoundValues, RecordedCall, RecordedRun
from fusion.capture.recorder import below_autograd
from fusion.capture.released_memory import alike
from fusion.capture.trace_matcher import OperatorMatcher, TraceMatcher
from fusion.patterns import symbols
from fusion.patterns.leaves import Ref, map_leaves
from fusion.patterns.nodes import Node, OpNode
from fusion.patterns.ops import resolve
from fusion.patterns.ops.effects import has_effect


class _Reads(HiddenFunctionMode):
    """Notices what the dispatch mode cannot see: data reads, and `contiguous()` that did nothing."""

    def __init__(self, matcher: TraceMatcher) -> None:
        super().__init__()
        self._matcher = matcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        matcher = self._matcher
        if matcher.following:
            if func in DATA_READS or func in NUMPY or func in LAYOUT_READS:
                matcher.diverged = f"{func} reads tensor data"
            elif any(map(is_looked_into, (*args, *(kwargs or {}).values()))):
                matcher.diverged = f"{func} is given a list that an object holds"
            elif func is torch.Tensor.contiguous and result is args[0]:
                matcher.attempt(lambda: matcher.elided_contiguous(args[0]))
        return result


def follow(
    twin: RecordedCall,
    values: Mapping[str, int],
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    objects: Mapping[int, Any],
    invoke: Callable[[], Any],
) -> tuple[Any, RecordedCall | None, str]:
    """Makes a call and follows its twin's recording.

    Args:
        twin: the recording.
        values: the input symbols' values in this call; the twin's guards on them hold.
        module: the scope's module.
        inputs: tensors of this call by the recording's value names.
        objects: argument objects of this call by id: their paths.
        invoke: makes the call.

    Returns:
        the call's result; the module's own recording, or None; why not.
    """
    assert twin.graph is not None
    start = time.perf_counter()
    tensors = dict(tensors_of(module))
    copied = {copy: constant for constant, copy in twin.renamed.items()}
    outputs = tuple(Ref(copied.get(o.name, o.name)) if isinstance(o, Ref) else o for o in twin.graph.outputs)
    matcher = TraceMatcher(
        replace(twin.graph, nodes=twin.unfunctionalized_nodes, outputs=outputs),
        values,
        {id(tensor): name for name, tensor in inputs.items()},
        {id(tensor): path for path, tensor in tensors.items()},
    )
    matcher.values.real.update(inputs)
    assert twin.conditions is not None
    kinds = {kind for _, kind in twin.conditions.kinds}
    calls = CallMatcher(matcher, objects)
    with below_autograd(session(calls, calls, tuple(kinds)), _Reads(matcher), OperatorMatcher(matcher)):
        calls.begun = StateAtCalls()
        result = invoke()
        if switched := calls.begun.switched():
            matcher.diverged = matcher.diverged or f"switches {switched}"
    matcher.quiet(matcher.values.sweep)
    matcher.attempt(lambda: matcher.conclude(result) if matcher.diverged is None else None)
    if matcher.diverged is not None:
        return result, None, matcher.diverged
    graph = replace(twin.graph, nodes=_own_nodes(twin.graph.nodes, matcher.nodes, twin.renamed))
    real, undo = matcher.values.real, matcher.effects.undo
    _complete(real, graph.nodes, matcher.sizes.values)
    parameters = {name: tensors[path] for name, path in graph.parameters}  # some were only asked for their layout
    recording = replace(
        twin,
        result=result,
        graph=graph,
        bound=BoundValues(parameters, matcher.values.constants, twin.bound.objects),
        run=RecordedRun(real=real, log=matcher.log, undo=undo, left=undo.now()),
        values=matcher.sizes.values,
        unfunctionalized_nodes=tuple(matcher.nodes),
        seconds=time.perf_counter() - start,
    )
    return result, recording, ""


def _own_nodes(theirs: Sequence[Node], met: Sequence[Node], copies: Mapping[str, str]) -> tuple[Node, ...]:
    """The twin's nodes with the numbers that this run gave to its calls.

    Args:
        theirs: the twin's nodes.
        met: what this run did, before in-place calls were settled: as many nodes that are no operators.
        copies: by the name of a constant that is written to, the name of the copy that each run starts from.
    """
    own = iter([node.renamed(lambda name: copies.get(name, name)) for node in met if not isinstance(node, OpNode)])
    return tuple(node if isinstance(node, OpNode) else next(own) for node in theirs)


def _complete(real: dict[str, torch.Tensor], nodes: Sequence[Node], values: Mapping[str, int]) -> None:
    """Makes the values that a recording has where the run had an in-place call."""

    def leaf(x: Any) -> Any:
        return held[x.name] if isinstance(x, Ref) else symbols.evaluate(x, values) if isinstance(x, sympy.Expr) else x

    for node in nodes:
        if isinstance(node, OpNode) and len(node.outputs) == 1 and node.outputs[0] not in real and not has_effect(node):
            held = alike({name: real[name] for name in node.refs})
            kwargs = {k: map_leaves(leaf, v) for k, v in node.kwargs}
            real[node.outputs[0]] = resolve(node.op)(*map_leaves(leaf, node.args), **kwargs)
