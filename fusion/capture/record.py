"""Recording a call: from a callable and its arguments to a RecordedGraph with what a plan must hold on to."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion import stack
from fusion.capture.functionalize import Functionalized
from fusion.capture.leftover_symbols import without_symbols
from fusion.capture.python import registry
from fusion.capture.python.argument_snapshot import ArgumentSnapshot, Item
from fusion.capture.python.argument_tree import Atom, Leaf, is_atom, modules_of, tensors_of
from fusion.capture.python.container_proxy import is_looked_into, put_back, real
from fusion.capture.python.opaque_calls import as_tuples
from fusion.capture.python.outside_effects import OutsideEffects
from fusion.capture.python.reachable_state import Entry, ReachableState, is_library
from fusion.capture.python.replay import replay
from fusion.capture.python.state_changes import PythonState
from fusion.capture.recorder import Recorder
from fusion.capture.released_memory import without_contents
from fusion.capture.symbolic_shapes import GuardError, Translation, hint, is_symbolic
from fusion.capture.user_frame import is_users_file, line_of, short_line, user_line
from fusion.faults import recording_code
from fusion.patterns.leaves import Argument, Expect, Path, Ref, map_leaves
from fusion.patterns.nodes import IslandNode, OpNode
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.shortage import is_shortage, without_frames
from fusion.patterns.specs import TensorSpec
from fusion.patterns.wellformed import check_recording
from fusion.refusal import Refusal, Refused
from fusion.runtime.plan import Conditions
from fusion.runtime.pytrees import flatten as flatten_result
from fusion.runtime.pytrees import mapped, unflatten
from fusion.runtime.rollback import State, UndoLog

from .interrupts import held_back


@dataclass
class RecordedCall:
    """The outcome of one recorded call.

    Attributes:
        result: what the call returned.
        refusal: why it cannot be replayed, or None.
        graph: the recorded graph, or None when refused.
        conditions: what a plan checks beside sizes.
        constants: tensors by value name.
        parameters: tensors by value name.
        tree: pytree structure of the result.
        devices: full device of every input and parameter by value name.
        objects: what islands call and are given beside arguments, by value name.
        real: every tensor of the run by value name; drop it when the kernels are proved. Large ones that the forward
            had dropped by its end hold nothing.
        log: results of the islands, in order.
        met: the calls as the run made them, before in-place ones were settled.
        renamed: constants that each run starts from a copy of: the copy's name.
        undo: takes back what the run did to memory and generators that outlive it.
        left: what the run left there.
        seconds: how long recording took.
        culprit: the module inside the scope in whose forward the refusal arose; None for the scope's own.
        changes: whether the run changed the Python state of its modules.
        reader: the module inside the scope whose forward was the first to go by numbers that tensors held, or None.
        given: what the call was given.
        values_set: what it put into dicts it was given, by the graph's `items`.
        unsuited: whether the forward failed on symbols in the place of sizes; it may take numbers.
        functions: modules that it called and that the scope's modules do not hold: their state counts, too.
    """

    result: Any
    refusal: Refusal | None
    graph: RecordedGraph | None = None
    conditions: Conditions | None = None
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    tree: Any = None
    devices: dict[str, torch.device] = field(default_factory=dict)
    real: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    log: list[Any] = field(default_factory=list)
    met: tuple[OpNode | IslandNode, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    undo: UndoLog = field(default_factory=UndoLog)
    left: State = ((), ())
    seconds: float = 0.0
    objects: dict[str, Any] = field(default_factory=dict)
    culprit: torch.nn.Module | None = None
    reader: torch.nn.Module | None = None
    changes: bool = False
    unsuited: bool = False
    given: ArgumentSnapshot = field(default_factory=lambda: ArgumentSnapshot({}))
    values_set: tuple[Any, ...] = ()
    functions: tuple[torch.nn.Module, ...] = ()

    @property
    def outcome(self) -> Any:
        """What a plan's run is compared with: the result, with the values of the items it sets where it does."""
        assert self.graph is not None
        return (self.result, self.values_set) if self.graph.items else self.result

    def bare(self) -> RecordedCall:
        """What the call can be made again with: no tensors of the recorded run."""
        return replace(self, result=None, real={}, values_set=())

    def share(self, result: Any) -> None:
        """Lets go of the recorded result for another one, which is the same to the bit."""
        assert self.graph is not None
        self.result = result
        given = {*(i.name for i in self.graph.inputs), *self.parameters, *self.constants}
        for leaf in self.graph.outputs:
            if isinstance(leaf, Ref) and leaf.name in self.real and leaf.name not in given:
                self.real[leaf.name] = without_contents(self.real[leaf.name])


@held_back
def record(
    call: Callable[..., Any],
    arguments: Mapping[str, Any],
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
        arguments: its arguments by parameter name, as `inspect.Signature.bind` gives them.
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
    given = ArgumentSnapshot(arguments)
    leaves, containers = given.leaves, given.containers
    others = [leaf for leaf in leaves if not (isinstance(leaf.value, torch.Tensor) or is_atom(leaf.value))]
    objects = {id(leaf.value): leaf.path for leaf in others}
    generators = [leaf.value for leaf in leaves if isinstance(leaf.value, torch.Generator)]
    opaque = [leaf for leaf in leaves if id(leaf.value) in objects and not _can_be_given(leaf.value)]
    kinds = registry.island_kinds(leaf.value for leaf in leaves if id(leaf.value) in objects)
    steps = dict(steps or {})
    kinds = (*kinds, *{type(step) for step in steps.values()} - set(kinds))
    parameters = {
        id(tensor): (f"{prefix}.{path}" if prefix else path, tensor)
        for prefix, module in modules.items()
        for path, tensor in tensors_of(module, steps.values())
    }
    inside = [child for module in modules.values() for child in module.modules()]
    tensors = [leaf for leaf in leaves if isinstance(leaf.value, torch.Tensor)]
    recorder = Recorder(
        [(f"x{i}", leaf.path, leaf.value) for i, leaf in enumerate(tensors)],
        parameters,
        objects,
        steps=steps,
        attributes=attributes_of(modules, steps.values()),
        watched=[*inside, *ReachableState(modules, (), steps.values()).modules],
        generators=generators,
        max_ops=max_ops,
        varying=[(f"x{i}", dim) for i, leaf in enumerate(tensors) for path, dim in varying if leaf.path == path],
        static=numbers,
        forgets=True,
    )
    state = recorder.state
    state.containers = {id(c.value): c.path for c in containers if c.value is not None}
    state.given = given
    where = call_line(call)
    if opaque:
        state.refuse("opaque_argument", *_opaque(opaque[0], where))
    python = PythonState(modules, steps.values(), outside, arguments)
    effects = OutsideEffects()
    failure: Exception | None = None
    unsuited = False
    try:
        with effects, recorder.active(kinds, inside):
            try:
                result = invoke()
            except Exception as error:
                failure = error
                if is_shortage(error):
                    without_frames(error)
    except BaseException:  # KeyboardInterrupt, say: what the forward has done stays done, as it does eagerly
        given.settle()
        python.settle()
        raise
    if effects.noticed is not None:
        state.refuse("python_state", f"the forward {effects.noticed}, which no plan would do", effects.line or where)
    change = _attempted(recorder, python.change)
    if change is not None:
        if state.refusal is None:
            state.module = python.changing()
        line = python.line() or where
        state.refuse("python_state", f"the forward {change} in what it finds outside its arguments", line)
    items = _attempted(recorder, given.set_items)
    if items is None:
        state.refuse("python_state", "the forward changes a list or dict it was given", where)
    if failure is not None:
        python.settle()
        state.effects.undo.rewind()
        recorder.reads.take_back_python_writes()
        given.rewind()
        effects.rewind()
        if not state.log:  # what native calls did is not done again, and stays
            python.restore()
        code = recording_code(failure)
        unsuited = state.refusal is None and not numbers and code == "recorder_error"
        if code != "recorder_error":
            state.refusal = None  # whatever came before it
        told = f"{type(failure).__name__} while sizes were symbols: {failure}"
        state.refuse(code, told, line_of(failure))
        recorder.give_up()
        with stack.lent(), replay(state.log, arguments, steps.values()):
            result = invoke()  # an error of the user's own comes again here
    conditions = Conditions(
        tuple((c.path, c.kind, c.keys) for c in containers),
        tuple((leaf.path, leaf.value) for leaf in leaves if is_atom(leaf.value)),
        tuple((leaf.path, type(leaf.value)) for leaf in leaves if id(leaf.value) in objects),
        tuple(state.aliased_inputs),
        apart=given.apart(items or ()),
    )
    recording = finish(recorder, result, conditions, start, items or ())
    recording.changes = change is not None
    recording.unsuited = unsuited
    if recording.refusal is not None:
        recording.refusal = replace(recording.refusal, origin=recording.refusal.origin or where)
        python.settle()
    return recording


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
    return isinstance(value, torch.Generator) or registry.has_islands(type(value))


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


def finish(
    recorder: Recorder, result: Any, conditions: Conditions, start: float, items: tuple[Item, ...] = ()
) -> RecordedCall:
    """Turns what a recorder met into a Recording.

    Args:
        recorder: the recorder.
        result: what the run returned.
        conditions: on the arguments.
        start: when the run began, by `time.perf_counter`.
        items: of dicts among the arguments, which the run has set.
    """
    state = recorder.state
    state.forget()
    state.notice_fixed_size()
    recorder.reads.check_lists()
    recording = RecordedCall(unwrap_result(result), state.refusal, culprit=state.module, reader=state.reader)
    recording.undo = state.effects.undo
    recording.left = recording.undo.now()
    recording.given = state.given
    if state.refusal is None:
        try:
            _fill(recording, recorder, result, conditions, items)
        except Refused as refused:
            recording.refusal = refused.refusal
        except GuardError as error:
            recording.refusal = Refusal("guard", str(error))
        except Exception as error:
            recording.refusal = Refusal(recording_code(error), f"{type(error).__name__}: {error}")
    if recording.refusal is not None:
        recording.graph = None
        recording.result = without_symbols(recording.result)
        state.given.settle()
    else:
        leaves, tree = flatten_result(recording.result)
        recording.result = unflatten(map(hint, leaves), tree)
        recording.values_set = mapped(hint, state.given.values(items))
    recording.seconds = time.perf_counter() - start
    return recording


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


def _fill(
    recording: RecordedCall, recorder: Recorder, result: Any, conditions: Conditions, items: tuple[Item, ...]
) -> None:
    state = recorder.state
    state.effects.check_generators()
    outcome = (result, state.given.values(items)) if items else result
    leaves, tree = flatten_result(outcome, state.containers)
    leaves = [state.fake_values.settled(leaf) for leaf in leaves]
    returned = [state.name_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    settled = Functionalized(recorder, [name for name in returned if name is not None])
    translation = state.fake_values.finish(_sizes(recorder, settled, leaves))
    state.notice_fixed_size()
    if state.refusal is not None:
        raise Refused(state.refusal.code, state.refusal.sentence, state.refusal.origin)
    outputs = tuple(_output(leaf, recorder, settled, translation) for leaf in leaves)
    recording.graph = RecordedGraph(
        inputs=tuple(state.inputs),
        parameters=tuple(state.parameters.items()),
        constants=tuple(state.constants),
        mutated=tuple(sorted(settled.mutated)),
        nodes=tuple(_translated(node, translation) for node in settled.calls.nodes),
        outputs=outputs,
        structure=str(tree),
        specs=tuple((name, _spec(fake, translation)) for name, fake in state.fakes.items()),
        symbols=tuple(translation.sources),
        guards=tuple(translation.guards),
        opaque=tuple(state.opaque),
        objects=tuple(known for known, _ in recorder.operands.held.values()),
        outer_writes=settled.outer_writes,
        draws=settled.draws,
        items=items,
        guard_origins=tuple(translation.lines.get(guard, "") for guard in translation.guards),
    )
    check_recording(recording.graph)
    recording.objects = {name: value for name, (_, value) in recorder.operands.held.items()}
    recording.met = tuple(_translated(node, translation) for node in state.nodes)
    recording.renamed = settled.renamed
    recording.conditions = _apart(conditions, recorder, settled)
    recording.constants = dict(state.constants)
    recording.parameters = {name: state.real[name] for name in state.parameters}
    recording.tree = tree
    outer = [*(i.name for i in state.inputs), *state.parameters]
    recording.devices = {name: state.real[name].device for name in outer}
    recording.real = state.real
    recording.values = {s.symbol: _value_of(s, recorder) for s in translation.sources}
    recording.log = state.log
    recording.functions = tuple(recorder.calls.functions)


def _sizes(recorder: Recorder, settled: Functionalized, outputs: Iterable[Any]) -> Iterator[Any]:
    """Every size that a plan has to compute."""
    for fake in recorder.state.fakes.values():
        yield from fake.shape
        yield from fake.stride()
    for node in (*settled.calls.nodes, *recorder.state.nodes):
        yield from pytree.tree_leaves((as_tuples(node.args), as_tuples(node.kwargs)))
    yield from outputs


def _apart(conditions: Conditions, recorder: Recorder, settled: Functionalized) -> Conditions:
    """Adds which tensors the recording wrote to, and which others it met in other memory."""
    state, copied = recorder.state, recorder.reads.copied
    inputs = [i.name for i in state.inputs]
    memory, made = state.effects.memory, state.effects.made
    given = {*inputs, *state.parameters}
    results = [o for n in settled.calls.nodes if isinstance(n, IslandNode) for o in n.outputs if isinstance(o, str)]
    met = [o for o in dict.fromkeys(results) if o in memory and o not in given and memory[o] not in made]
    changed_memory = settled.outer | {key for _, key in settled.native} | {memory[name] for name, _ in copied}
    groups = {key: tuple(n for n in (*given, *met) if memory[n] == key) for key in changed_memory}
    groups = dict(sorted(((k, group) for k, group in groups.items() if group), key=lambda pair: min(pair[1])))
    if not groups:
        return conditions
    place = {key: number for number, key in enumerate(groups)}
    return replace(
        conditions,
        written=tuple(tuple(n for n in (*inputs, *state.parameters) if memory[n] == key) for key in groups),
        others=tuple(n for n in inputs if memory[n] not in place),
        held=tuple(n for n in state.parameters if memory[n] not in place),
        met=tuple((name, place.get(memory[name], -1)) for name in met),
    )


def _value_of(source: Any, recorder: Recorder) -> int:
    if source.kind == "result":
        return recorder.state.numbers[source.value]
    tensor = recorder.state.real[source.value]
    return int(tensor.shape[source.dim] if source.kind == "shape" else tensor.stride(source.dim))


def _output(leaf: Any, recorder: Recorder, settled: Functionalized, translation: Translation) -> Any:
    if isinstance(leaf, torch.Tensor):
        name = recorder.state.name_of(leaf)
        if name is None:
            raise Refused("unknown_tensor", "the result holds a tensor that no operator of the forward made")
        if (leaf.requires_grad or vars(leaf)) and recorder.state.made(name):
            raise Refused("opaque_output", "the result holds a tensor that requires gradients or has attributes")
        return Ref(settled.renamed.get(name, name))
    if is_symbolic(leaf):
        return translation.dim(leaf)
    if type(leaf) in _CONSTANTS:
        return Expect(leaf)
    known = recorder.operands.objects.get(id(leaf))
    if known is not None:
        return known if isinstance(known, Ref) else Argument(known)
    if id(leaf) in recorder.state.containers:
        return Argument(recorder.state.containers[id(leaf)])
    raise Refused("opaque_output", f"the result holds a {type(leaf).__name__}")


_CONSTANTS = frozenset(kind for kind in Atom if kind is not bytes)


def _translated(node: Any, translation: Translation) -> Any:
    def leaf(x: Any) -> Any:
        return translation.dim(x) if is_symbolic(x) else x

    arguments = None if node.args is None else map_leaves(leaf, as_tuples(node.args))
    return replace(node, args=arguments, kwargs=map_leaves(leaf, as_tuples(node.kwargs)))


def _spec(fake: torch.Tensor, translation: Translation) -> TensorSpec:
    return TensorSpec(
        fake.dtype,
        tuple(translation.dim(d) for d in fake.shape),
        tuple(translation.dim(d) for d in fake.stride()),
        fake.device.type,
    )


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
