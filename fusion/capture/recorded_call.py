"""The outcome of a recorded call: the graph, or why there is none, and what the call itself gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.python.container_proxy import is_looked_into, put_back, real
from fusion.capture.released_memory import without_contents
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import Node
from fusion.patterns.recorded import RecordedGraph
from fusion.refusal import Refusal
from fusion.runtime.plan import Conditions
from fusion.runtime.pytrees import flatten as flatten_result
from fusion.runtime.pytrees import unflatten
from fusion.runtime.rollback import State, UndoLog


@dataclass
class RecordedRun:
    """What one run met and left: what its plans are proved on, and what making the call again starts from.

    Attributes:
        given: what the call was given.
        real: every tensor of the run by value name; drop it when the kernels are proved. Large ones that the forward
            had dropped by its end hold nothing.
        log: results of opaque calls and reads, in order.
        undo: takes back what the run did to memory and generators that outlive it.
        left: what the run left there.
        values_set: what it put into dicts it was given, by the graph's `items`.
    """

    given: ArgumentSnapshot = field(default_factory=lambda: ArgumentSnapshot({}))
    real: dict[str, torch.Tensor] = field(default_factory=dict)
    log: list[Any] = field(default_factory=list)
    undo: UndoLog = field(default_factory=UndoLog)
    left: State = ((), ())
    values_set: tuple[Any, ...] = ()


@dataclass(frozen=True)
class BoundValues:
    """What a scope's plans find outside their arguments, by value name.

    Attributes:
        parameters: tensors that the scope's modules hold.
        constants: tensors that the run made from Python data.
        objects: what calls are made on, and are given, beside arguments.
    """

    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    objects: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and constants."""
        return {**self.parameters, **self.constants}


@dataclass(frozen=True)
class Failure:
    """What is known of a run that was refused, beside the reason.

    Attributes:
        module: the module inside the scope in whose forward the refusal arose; None for the scope's own.
        changes_state: whether the run changed the Python state of its modules.
        symbolic: whether the forward failed on symbols in the place of sizes; it may take numbers.
    """

    module: torch.nn.Module | None = None
    changes_state: bool = False
    symbolic: bool = False


@dataclass
class RecordedCall:
    """The outcome of one recorded call.

    Attributes:
        result: what the call returned.
        refusal: why it cannot be replayed, or None.
        failure: what else is known of a run that was refused.
        graph: the recorded graph, or None when refused.
        conditions: what a plan checks beside sizes.
        tree: pytree structure of the result.
        devices: full device of every input and parameter by value name.
        values: sizes of this call by symbol.
        bound: what its plans are bound to.
        run: what the run met and left.
        unfunctionalized_nodes: the calls as the run made them, before in-place ones were settled.
        renamed: constants that each run starts from a copy of: the copy's name.
        seconds: how long recording took.
        reader: the module inside the scope whose forward was the first to go by numbers that tensors held, or None.
        functions: modules that it called and that the scope's modules do not hold: their state counts, too.
    """

    result: Any
    refusal: Refusal | None
    failure: Failure = Failure()
    graph: RecordedGraph | None = None
    conditions: Conditions | None = None
    tree: Any = None
    devices: dict[str, torch.device] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    bound: BoundValues = field(default_factory=BoundValues)
    run: RecordedRun = field(default_factory=RecordedRun)
    unfunctionalized_nodes: tuple[Node, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    reader: torch.nn.Module | None = None
    functions: tuple[torch.nn.Module, ...] = ()

    @property
    def outcome(self) -> Any:
        """What a plan's run is compared with: the result, with the values of the items it sets where it does."""
        assert self.graph is not None
        return (self.result, self.run.values_set) if self.graph.items else self.result

    def bare(self) -> RecordedCall:
        """What the call can be made again with: no tensors of the recorded run."""
        return replace(self, result=None, run=replace(self.run, real={}, values_set=()))

    def released(self) -> RecordedCall:
        """What equal modules can follow: no tensors at all."""
        return replace(self, result=None, run=RecordedRun(), bound=BoundValues(objects=self.bound.objects))

    def share(self, result: Any) -> None:
        """Lets go of the recorded result for another one, which is the same to the bit."""
        assert self.graph is not None
        self.result = result
        real = self.run.real
        given = {*(i.name for i in self.graph.inputs), *self.bound.parameters, *self.bound.constants}
        for leaf in self.graph.outputs:
            if isinstance(leaf, Ref) and leaf.name in real and leaf.name not in given:
                real[leaf.name] = without_contents(real[leaf.name])


def unwrap_result(result: Any) -> Any:
    """A result with the caller's own lists and dicts for those that told a session what was taken from them."""
    try:
        leaves, tree = flatten_result(result)
    except Exception:  # such as a list that holds itself; no plan returns it
        return result
    for leaf in leaves:
        put_back(leaf)
    if not any(map(is_looked_into, leaves)):
        return result
    return unflatten(map(real, leaves), tree)
