"""Recording a call: from a callable and its arguments to a RecordedGraph with what a plan must hold on to."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fusion import stack
from fusion.capture.finish import finish
from fusion.capture.python import registry
from fusion.capture.python.argument_snapshot import ArgumentSnapshot, Item
from fusion.capture.python.argument_tree import Leaf, is_atom, modules_of, tensors_of
from fusion.capture.python.outside_effects import OutsideEffects
from fusion.capture.python.reachable_state import Entry, ReachableState, is_library
from fusion.capture.python.replay import replay
from fusion.capture.python.state_changes import PythonState
from fusion.capture.recorded_call import RecordedCall
from fusion.capture.recorder import Recorder
from fusion.capture.user_frame import is_users_file, line_of, short_line, user_line
from fusion.faults import recording_code
from fusion.patterns.leaves import Path
from fusion.patterns.shortage import is_shortage, without_frames
from fusion.runtime.plan import Conditions

from .interrupts import held_back


@held_back
def record(
    call: Callable[..., Any],
    given: ArgumentSnapshot,
    invoke: Callable[[], Any],
    modules: Mapping[str, torch.nn.Module],
    *,
    steps: Mapping[str, torch.nn.Module] | None = None,
    max_ops: int = 4096,
    varying: Collection[tuple[Path, int]] = (),
    outside: Callable[[], list[Entry]] | None = None,
    numbers: bool = False,
) -> RecordedCall:
    """Runs `invoke()` once and records it.

    Args:
        call: the scope's callable, for messages.
        given: its arguments by parameter name, as they are before the call.
        invoke: makes the call.
        modules: modules whose tensors the scope may use, by path prefix ("" for the scope's own).
        steps: modules that are called natively, by path.
        max_ops: operators a recording may have.
        varying: (path, dimension) of tensor arguments' sizes that other recordings fixed to other numbers; one that
            fixes them again is refused.
        outside: gives snapshot entries for what a function finds in its closure and among global names.
        numbers: whether arguments' sizes are numbers, as for a forward that cannot take symbols in their place.

    Returns:
        the outcome; `result` is always what the call returned, recorded or not.
    """
    start = time.perf_counter()
    steps, where = dict(steps or {}), call_line(call)
    parts = _Parts.of(given)
    recorder = _recorder_for(given, parts, modules, steps, max_ops, varying, numbers)
    state = recorder.state
    if parts.opaque:
        state.refuse("opaque_argument", *_opaque(parts.opaque[0], where))
    kinds = registry.opaque_kinds(leaf.value for leaf in parts.objects)
    kinds = (*kinds, *{type(step) for step in steps.values()} - set(kinds))
    inside = [child for module in modules.values() for child in module.modules()]
    python = PythonState(modules, steps.values(), outside, given.arguments)
    effects = OutsideEffects()
    unsuited = False
    around = modules.get("") if steps else None
    result, failure = _observed(recorder, effects, python, invoke, (kinds, inside, around))
    changes, items = _notice_effects(recorder, effects, python, where)
    if failure is not None:
        _take_back(recorder, effects, python)
        unsuited = _refuse_failure(recorder, failure, symbolic=not numbers)
        with stack.lent(), replay(state.log, given.leaves, steps.values()):
            result = invoke()  # an error of the user's own comes again here
    recording = finish(recorder, result, _conditions(recorder, parts, items), start, items)
    recording.failure = replace(recording.failure, changes_state=changes, symbolic=unsuited)
    if recording.refusal is not None:
        recording.refusal = replace(recording.refusal, origin=recording.refusal.origin or where)
        if failure is None:  # else all was taken back, and the run that followed had no symbols
            python.settle()
    return recording


@dataclass(frozen=True, slots=True)
class _Parts:
    """The leaves of a call's arguments by what a recording makes of them.

    Attributes:
        tensors: they become inputs.
        objects: neither tensors nor plain values; `opaque` are those that cannot be looked into.
        generators: of random numbers.
    """

    tensors: tuple[Leaf, ...]
    objects: tuple[Leaf, ...]
    opaque: tuple[Leaf, ...]
    generators: tuple[torch.Generator, ...]

    @classmethod
    def of(cls, given: ArgumentSnapshot) -> _Parts:
        tensors = tuple(leaf for leaf in given.leaves if isinstance(leaf.value, torch.Tensor))
        others = [leaf for leaf in given.leaves if not isinstance(leaf.value, torch.Tensor)]
        objects = tuple(leaf for leaf in others if not is_atom(leaf.value))
        opaque = tuple(leaf for leaf in objects if not _can_be_given(leaf.value))
        generators = tuple(leaf.value for leaf in objects if isinstance(leaf.value, torch.Generator))
        return cls(tensors, objects, opaque, generators)


def _recorder_for(
    given: ArgumentSnapshot,
    parts: _Parts,
    modules: Mapping[str, torch.nn.Module],
    steps: Mapping[str, torch.nn.Module],
    max_ops: int,
    varying: Collection[tuple[Path, int]],
    numbers: bool,
) -> Recorder:
    """A recorder that knows a call's arguments, and the tensors and objects that its modules hold."""
    parameters = {
        id(tensor): (f"{prefix}.{path}" if prefix else path, tensor)
        for prefix, module in modules.items()
        for path, tensor in tensors_of(module, steps.values())
    }
    inside = [child for module in modules.values() for child in module.modules()]
    places = {leaf.path: f"x{i}" for i, leaf in enumerate(parts.tensors)}
    recorder = Recorder(
        [(places[leaf.path], leaf.path, leaf.value) for leaf in parts.tensors],
        parameters,
        {id(leaf.value): leaf.path for leaf in parts.objects},
        steps=steps,
        attributes=attributes_of(modules, steps.values()),
        watched=[*inside, *ReachableState(modules, (), steps.values()).modules],
        generators=parts.generators,
        max_ops=max_ops,
        varying=[(places[path], dim) for path, dim in varying if path in places],
        static=numbers,
        forgets=True,
    )
    recorder.state.arguments.containers = {id(c.value): c.path for c in given.containers if c.value is not None}
    recorder.state.arguments.snapshot = given
    return recorder


def _observed(
    recorder: Recorder,
    effects: OutsideEffects,
    python: PythonState,
    invoke: Callable[[], Any],
    watched: tuple[tuple[type, ...], list[torch.nn.Module], torch.nn.Module | None],
) -> tuple[Any, Exception | None]:
    """Makes the call under the recorder; its result, or what it raised. `watched`: as `Recorder.active` takes it."""
    try:
        with effects, recorder.active(*watched):
            try:
                return invoke(), None
            except Exception as error:
                if is_shortage(error):
                    without_frames(error)
                return None, error
    except BaseException:  # KeyboardInterrupt, say: what the forward has done stays done, as it does eagerly
        recorder.state.arguments.snapshot.settle()
        python.settle()
        raise


def _notice_effects(
    recorder: Recorder, effects: OutsideEffects, python: PythonState, where: str
) -> tuple[bool, tuple[Item, ...]]:
    """Refuses what the run did and no plan would do.

    Returns:
        whether it changed what it finds outside its arguments, and the items of dicts that it has set.
    """
    state = recorder.state
    if effects.noticed is not None:
        state.refuse("python_state", f"the forward {effects.noticed}, which no plan would do", effects.line or where)
    change = _attempted(recorder, python.change)
    if change is not None:
        if state.refusal is None:
            state.module = python.changing()
        line = python.line() or where
        state.refuse("python_state", f"the forward {change} in what it finds outside its arguments", line)
    items = _attempted(recorder, state.arguments.snapshot.set_items)
    if items is None:
        state.refuse("python_state", "the forward changes a list or dict it was given", where)
    return change is not None, items or ()


def _take_back(recorder: Recorder, effects: OutsideEffects, python: PythonState) -> None:
    """Everything is as it was before a run that raised, but for what native calls did."""
    state = recorder.state
    python.settle()
    state.effects.undo.rewind()
    recorder.reads.take_back_python_writes()
    state.arguments.snapshot.rewind()
    effects.rewind()
    if not state.log:  # what native calls did is not done again, and stays
        python.restore()


def _refuse_failure(recorder: Recorder, failure: Exception, *, symbolic: bool) -> bool:
    """The run raised; whether that may be for the symbols in the place of sizes."""
    state, code = recorder.state, recording_code(failure)
    unsuited = state.refusal is None and symbolic and code == "recorder_error"
    if code != "recorder_error":
        state.refusal = None  # whatever came before it
    told = f"{type(failure).__name__} while sizes were symbols: {failure}"
    state.refuse(code, told, line_of(failure))
    recorder.give_up()
    return unsuited


def _conditions(recorder: Recorder, parts: _Parts, items: tuple[Item, ...]) -> Conditions:
    """What a plan checks of the arguments beside tensors."""
    given = recorder.state.arguments.snapshot
    return Conditions(
        tuple((c.path, c.kind, c.keys) for c in given.containers),
        tuple((leaf.path, leaf.value) for leaf in given.leaves if is_atom(leaf.value)),
        tuple((leaf.path, type(leaf.value)) for leaf in parts.objects),
        tuple(recorder.state.arguments.aliases),
        apart=given.apart(items),
    )


def _attempted(recorder: Recorder, step: Callable[[], Any]) -> Any:
    """What a step after the run gives; where it fails, for an object that answers nothing, None and a refusal."""
    try:
        return step()
    except Exception as error:
        words = f"what the forward did is not known: {type(error).__name__}: {error}"
        recorder.state.refuse(recording_code(error), words, "")
        return None


def _can_be_given(value: Any) -> bool:
    """Whether an object may be an argument of a scope."""
    return isinstance(value, torch.Generator) or registry.has_opaque_methods(type(value))


def _opaque(leaf: Leaf, where: str) -> tuple[str, str, str]:
    """What to say of an argument that cannot be looked into, where, and what to do about it."""
    kind, name = type(leaf.value), str(leaf.path[0])
    if is_library(kind.__module__):
        return f"the argument {name!r} holds a {kind.__module__}.{kind.__name__}", where, ""
    remedy = f"pass what the forward reads of it, or register {kind.__name__}'s methods with fusion.register_island"
    return f"the argument {name!r} holds a {kind.__name__}", where, remedy


def call_line(call: Callable[..., Any]) -> str:
    """ "file:line" where the user has defined a callable; where it is called, if it is torch's."""
    code = getattr(inspect.unwrap(getattr(call, "forward_function", call)), "__code__", None)
    if code is None or not is_users_file(code.co_filename):
        return user_line()
    return short_line(code.co_filename, code.co_firstlineno)


def attributes_of(
    modules: Mapping[str, torch.nn.Module], steps: Iterable[torch.nn.Module]
) -> dict[int, tuple[str, Any]]:
    """Objects that the modules hold as attributes, by id: their paths and themselves."""
    found: dict[int, tuple[str, Any]] = {}
    for prefix, module in modules.items():
        for path, child in modules_of(module, steps):
            for name, value in vars(child).items():
                if hasattr(value, "__dict__") and not isinstance(value, (torch.nn.Module, torch.Tensor, type)):
                    found.setdefault(id(value), (".".join(filter(None, (prefix, path, name))), value))
    return found
