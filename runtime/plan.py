"""Plans: a recording as straight-line Python. What they are made of and bound to; `plan_writer` writes their source.

A plan is a function of the scope's parameters, in signature order. It first checks everything the recording depended
on, and returns `MISS` when something differs; then it runs library calls, kernels and opaque calls. A check that fails
after one of these has changed something, and any error, goes to `FAIL` with what they returned so far.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch

from fusion.patterns.guards import GuardMiss
from fusion.patterns.leaves import Path
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph, SymbolSource
from fusion.patterns.source import define, parse
from fusion.patterns.symbols import Dim
from fusion.runtime.aliasing import storages
from fusion.runtime.call_log import Contents
from fusion.runtime.pytrees import mapped
from fusion.runtime.rollback import UndoLog
from fusion.runtime.verify import check_text


class _Miss:
    def __repr__(self) -> str:
        return "MISS"


MISS: Any = _Miss()


class Teller(Protocol):
    """What knows a plan's guards by the lines of its text (`step_guards.StepGuards`)."""

    def miss(self, line: int, local: Mapping[str, Any]) -> GuardMiss | None:
        """The guard that did not hold at a line, given the plan's local variables."""

    def origin(self, line: int) -> str:
        """The user's line behind a line of the plan."""


class Deoptimized(Exception):
    """A guard failed after an opaque call had an effect; the original forward takes over.

    A plan's text raises the class. Which guard it was is told from the line of the plan that raises it.

    Attributes:
        miss: the guard that did not hold, in words; None where it is not known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.miss = _told(sys._getframe(1))

    @property
    def origin(self) -> str:
        """The user's line that depends on it, or ""."""
        return "" if self.miss is None else self.miss.origin

    def __str__(self) -> str:
        told = "something that the forward was given or found is not as it was recorded"
        return told if self.miss is None else str(self.miss)


def _told(frame: FrameType) -> GuardMiss | None:
    """The guard that did not hold where a plan is just now."""
    teller = frame.f_globals.get(TELLER)
    if teller is None:
        return None
    local = frame.f_locals
    try:
        return teller.miss(frame.f_lineno, local)  # type: ignore[no-any-return]
    except Exception:  # an object that answers nothing: the plan is left all the same
        return None
    finally:
        if type(local) is dict:
            local.clear()  # it is a copy, which would keep the plan's tensors alive as long as its frame


class Missed(Deoptimized):
    """A guard failed before anything has happened: raised by plans that are to say which (`Source.telling`)."""


TELLER = "TELLER"  # the name in a plan's namespace of its `Teller`


@dataclass(frozen=True, slots=True)
class LoggedError:
    """What a log holds for an opaque call that raised: a re-run of the original meets the same error.

    Attributes:
        error: the error.
        given: the lists and dicts that it was given and changed, as in `LoggedContainerChange`.
    """

    error: Exception
    given: Contents = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A kernel in a plan.

    Attributes:
        inputs, outputs: value names.
        given: sizes the launcher takes as integers, after the inputs.
        nodes: indices of the calls that it computes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    given: tuple[Dim, ...] = ()
    nodes: tuple[int, ...] = ()


def as_it_is(result: Any) -> Any:
    """What a read returned, for a log: a tensor that a later effect may write to is copied."""
    return mapped(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, result)


Step = tuple[str, int]  # ("node", index into graph.nodes) or ("region", index into the kernels)


@dataclass(frozen=True)
class Conditions:
    """What must hold of a call's arguments beside tensors; as a recording collects it, in plain values.

    Attributes:
        containers: (path, type, number of items or keys, or None where the type tells all).
        atoms: (path, value), compared by type and value.
        kinds: (path, exact type).
        aliases: pairs of paths that hold one tensor.
        mutated_groups: groups of inputs and parameters that are written to; those of a group share memory. A group
            is empty where only what is found, or given by native calls, lives in that memory.
        separate_inputs: inputs that live in other memory than all of `mutated_groups`.
        separate_parameters: parameters that do.
        apart: pairs of paths that lead to different containers.
        opaque_aliases: tensors that are found inside objects, or that opaque calls give: the place in `mutated_groups`
            of the memory they live in, or -1. Empty where nothing is written to.
    """

    containers: tuple[tuple[Path, type, Any], ...]
    atoms: tuple[tuple[Path, Any], ...]
    kinds: tuple[tuple[Path, type], ...]
    aliases: tuple[tuple[Path, Path], ...]
    mutated_groups: tuple[tuple[str, ...], ...] = ()
    separate_inputs: tuple[str, ...] = ()
    separate_parameters: tuple[str, ...] = ()
    apart: tuple[tuple[Path, Path], ...] = ()
    opaque_aliases: tuple[tuple[str, int], ...] = ()

    @property
    def memory(self) -> tuple[Any, ...]:
        """What must hold of the memory that tensors live in."""
        return self.mutated_groups, self.separate_inputs, self.separate_parameters, self.opaque_aliases


@dataclass(frozen=True)
class PlanSpec:
    """What a plan is generated from; equal shapes share their code.

    Attributes:
        graph: the recording.
        conditions: its conditions.
        parameters: the scope's parameter names in signature order.
        devices: full device of every input, then of every parameter.
        tree: pytree structure of the result, or of the result and the items that are set.
    """

    graph: RecordedGraph
    conditions: Conditions
    parameters: tuple[str, ...]
    devices: tuple[torch.device, ...]
    tree: Any


@dataclass
class Plan:
    """A callable plan.

    Attributes:
        run: the function; takes the scope's arguments in signature order.
        source: its text.
    """

    run: Callable[..., Any]
    source: str

    def release(self) -> None:
        """Lets go of what its names are bound to, after its last run: the function is one of them, and so only the
        garbage collector would."""
        self.run.__globals__.clear()


@dataclass
class Source:
    """A plan's text and what its names stand for; parameters, constants and `call_constants` are bound later.

    Attributes:
        text: one function.
        names: objects by name.
        teller: knows the guards by the lines of the text.
    """

    text: str
    names: dict[str, Any] = field(default_factory=dict)
    teller: Teller | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def telling(self) -> Source:
        """The same plan, but that it raises `Missed`, which names the guard, where this one returns `MISS`."""
        text = self.text.replace("return MISS", "raise Missed")  # a line that only `GuardWriter.miss` writes
        return Source(text, {**self.names, "Missed": Missed}, self.teller)

    def bind(self, values: Mapping[str, Any]) -> Plan:
        """Makes the plan callable.

        Args:
            values: objects for the names that differ between scopes of one shape.
        """
        namespace = {**self.names, **values, TELLER: self.teller}
        _check_names(self.text, frozenset(namespace))
        return Plan(define(self.text, "plan", namespace, "<fusion plan>"), self.text)


@functools.lru_cache(maxsize=4096)
def _check_names(text: str, bound: frozenset[str]) -> None:
    check_text(parse(text), bound | {"math"})  # guards may round a share of a size


def call_constants(graph: RecordedGraph) -> dict[str, Any]:
    """Numbers that opaque calls and reads are given, by their name in plans ("i0_1"): a layer's number, say."""
    found: dict[str, Any] = {}
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, OpNode):
            for position, leaf in enumerate(node.args):
                if bound_later(leaf):
                    found[f"i{index}_{position}"] = leaf
    return found


def standing(conditions: Conditions, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What every plan of a recording is bound to beside its tensors.

    Args:
        conditions: the recording's.
        tensors: its parameters by value name.
    """
    held = storages(tensors[name] for name in conditions.separate_parameters)
    return {"UNDO": UndoLog, "HELD": held, "OWN": frozenset(map(id, tensors.values()))}


def bound_later(leaf: Any) -> bool:
    """Whether an opaque call's argument is bound by name, so that scopes that differ in it share their code."""
    return type(leaf) is int


def input_symbols(graph: RecordedGraph) -> tuple[SymbolSource, ...]:
    """The symbols that are known before a plan's first call, by symbol name."""
    names = {i.name for i in graph.inputs}
    return tuple(sorted((s for s in graph.symbols if s.value in names), key=lambda s: s.symbol))
