"""One run of a module beside an equal one's recording: what it calls and reads, compared node by node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.capture.matched_values import Diverged, MatchedSizes, MatchedValues
from fusion.capture.mutation import MutationTracker, storage_key, tensors_written, view_in_place
from fusion.capture.python.opaque_calls import as_tuples
from fusion.capture.tracer import results_of
from fusion.patterns import known_products, symbols
from fusion.patterns.leaves import Expect, Ref, map_leaves, ref_names
from fusion.patterns.nodes import Node, OpNode
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.source import define
from fusion.runtime.pytrees import flatten as flatten_result


class TraceMatcher:
    """How far one run agrees, call for call, with the recording of a twin.

    Args:
        graph: the recording, its nodes as the twin's run made them.
        values: the input symbols' values in this run.
        inputs: names of the tensors among the arguments, by id.
        parameters: paths of the tensors that the module holds, by id.

    Attributes:
        nodes: the recording's that the run has met so far, with the numbers of this run.
        log: results of opaque calls and reads.
        diverged: the first thing that the run did otherwise, or None.
        effects: what the run changes.
        sizes, values: what the recording's symbols and names stand for in this run.
    """

    def __init__(
        self,
        graph: RecordedGraph,
        values: Mapping[str, int],
        inputs: Mapping[int, str],
        parameters: Mapping[int, str],
    ) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.log: list[Any] = []
        self.diverged: str | None = None
        self.effects = MutationTracker()
        self.sizes = MatchedSizes(graph, values)
        self.values = MatchedValues(graph, self.sizes, self.effects, inputs, parameters)
        self._paused = 0
        self._thread = threading.get_ident()

    @property
    def elsewhere(self) -> bool:
        """Whether it is another thread that runs, or a call that is not compared inside."""
        return bool(self._paused) or threading.get_ident() != self._thread

    @property
    def following(self) -> bool:
        """Whether the run still agrees with the recording, and this thread is looking."""
        return self.diverged is None and not self.elsewhere

    def quiet(self, build: Callable[[], Any]) -> Any:
        """What `build` gives; none of what it asks torch for is compared."""
        self._paused += 1
        try:
            return build()
        finally:
            self._paused -= 1

    def attempt(self, step: Callable[[], None]) -> None:
        """Compares something; where that fails, the run has diverged."""
        try:
            step()
        except Diverged as reason:
            self.diverged = str(reason)
        except Exception as error:
            self.diverged = f"{type(error).__name__}: {error}"

    def next(self) -> Node:
        """The recording's next node.

        Raises:
            Diverged: there is none.
        """
        if len(self.nodes) >= len(self.graph.nodes):
            raise Diverged("more calls than recorded")
        return self.graph.nodes[len(self.nodes)]

    def elided_contiguous(self, tensor: torch.Tensor) -> None:
        """`contiguous()` handed its operand back; the recording may hold the call."""
        node = self.graph.nodes[len(self.nodes)] if len(self.nodes) < len(self.graph.nodes) else None
        operand = (self.values.name_of(tensor),)
        if isinstance(node, OpNode) and node.op == "aten.contiguous.default" and node.refs == operand:
            self.values.bind(node.outputs[0], tensor)
            self.nodes.append(node)

    def conclude(self, result: Any) -> None:
        """The run is over: all calls were met, the guards hold, the result is made of the same values.

        Raises:
            Diverged: not so.
        """
        if len(self.nodes) != len(self.graph.nodes):
            raise Diverged("fewer calls than recorded")
        values = self.sizes.values
        for guard in self.graph.guards:
            holds = define(f"def holds({', '.join(values)}):\n    return {guard}", "holds", {}, "<fusion guard>")
            if not holds(*values.values()):
                raise Diverged(f"the guard {guard} does not hold")
        flat, tree = flatten_result(result)
        if str(tree) != self.graph.structure:
            raise Diverged("a result of another structure")
        for leaf, recorded in zip(flat, self.graph.outputs, strict=True):
            if isinstance(leaf, torch.Tensor):
                if recorded != Ref(self.values.name_of(leaf)):
                    raise Diverged("the result holds another value")
            elif isinstance(recorded, Expect) and (type(recorded.value) is not type(leaf) or recorded.value != leaf):
                raise Diverged("the result holds another constant")
            elif isinstance(recorded, sympy.Expr) and symbols.evaluate(recorded, values) != leaf:
                raise Diverged("the result holds another size")


class OperatorMatcher(TorchDispatchMode):
    """The mode that sees every operator of the run, below autograd, and compares it.

    Args:
        matcher: of the run.
    """

    def __init__(self, matcher: TraceMatcher) -> None:
        super().__init__()
        self._matcher = matcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, matcher = kwargs or {}, self._matcher
        if matcher.elsewhere or func is torch.ops.aten.detach_.default:
            return func(*args, **kwargs)
        matcher.effects.before(func, args, kwargs)
        if matcher.following and func._schema.is_mutable:
            matcher.values.before_write(tensors_written(func, args, kwargs))
        if matcher.following:
            matcher.quiet(matcher.values.sweep)
        result = known_products.call(func, args, kwargs)
        matcher.effects.after(args, kwargs, result)
        if matcher.following:
            matcher.attempt(lambda: self._compare(func, args, kwargs, result))
        return result

    def _compare(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        matcher, values = self._matcher, self._matcher.values
        if func is torch.ops.aten.lift_fresh.default and not values.is_known(args[0]):
            matcher.effects.made.add(storage_key(result))
            values.lifted(result)
            return
        targets = {id(t) for t in tensors_written(func, args, kwargs)}
        named = self._named(args)
        keywords = tuple(sorted((k, self._named(v)) for k, v in kwargs.items()))
        results = results_of(func, result)
        known = [values.names.get(id(r)) for r in results]
        handed_back = known and None not in known and not func._schema.is_mutable
        if handed_back and set(known) <= set(ref_names(named, keywords)):
            return
        node = matcher.next()
        if not isinstance(node, OpNode) or node.op != (view_in_place(func) or str(func)):
            raise Diverged(f"{func} where the recording differs")
        if map_leaves(matcher.sizes.concrete, (node.args, node.kwargs)) != (named, keywords):
            raise Diverged(f"other arguments of {func}")
        if len(node.outputs) != len(results):
            raise Diverged(f"{func} returns other results")
        for name, tensor in zip(node.outputs, results, strict=True):
            if id(tensor) in targets:
                values.rebound(name, tensor)
            else:
                values.made(name, tensor)
        matcher.nodes.append(node)

    def _named(self, argument: Any) -> Any:
        """An operator's argument as a recording has it: tensors by name, lists as tuples."""
        if isinstance(argument, torch.Tensor):
            return Ref(self._matcher.values.name_of(argument))
        if isinstance(argument, (list, tuple)):
            return tuple(map(self._named, argument))
        return as_tuples(argument)
