"""From what a recorder has met to a recording: effects settled, symbols named, results and conditions written down."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion.capture.functionalize import Functionalized
from fusion.capture.leftover_symbols import without_symbols
from fusion.capture.python.argument_snapshot import Item
from fusion.capture.python.argument_tree import Atom
from fusion.capture.recorded_call import BoundValues, Failure, RecordedCall, RecordedRun, unwrap_result
from fusion.capture.recorder import Recorder
from fusion.capture.symbolic_shapes import GuardError, Translation, hint, is_symbolic
from fusion.faults import recording_code
from fusion.patterns.leaves import Argument, Expect, Ref
from fusion.patterns.nodes import Node, OpNode, made_by
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.specs import TensorSpec
from fusion.patterns.wellformed import check_recording
from fusion.refusal import Refusal, Refused
from fusion.runtime.plan import Conditions
from fusion.runtime.pytrees import flatten as flatten_result
from fusion.runtime.pytrees import mapped, unflatten


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
    undo = state.effects.undo
    run = RecordedRun(state.arguments.snapshot, undo=undo, left=undo.now())
    recording = RecordedCall(unwrap_result(result), state.refusal, Failure(state.module), reader=state.reader, run=run)
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
        state.arguments.snapshot.settle()
    else:
        leaves, tree = flatten_result(recording.result)
        recording.result = unflatten(map(hint, leaves), tree)
        recording.run.values_set = mapped(hint, state.arguments.snapshot.values(items))
    recording.seconds = time.perf_counter() - start
    return recording


def _fill(
    recording: RecordedCall, recorder: Recorder, result: Any, conditions: Conditions, items: tuple[Item, ...]
) -> None:
    state = recorder.state
    state.effects.check_generators()
    outcome = (result, state.arguments.snapshot.values(items)) if items else result
    leaves, tree = flatten_result(outcome, state.arguments.containers)
    leaves = [state.fake_values.settled(leaf) for leaf in leaves]
    returned = [state.name_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    settled = Functionalized(recorder, [name for name in returned if name is not None])
    translation = state.fake_values.finish(_sizes(recorder, settled, leaves))
    state.notice_fixed_size()
    if state.refusal is not None:
        raise Refused(state.refusal.code, state.refusal.sentence, state.refusal.origin)
    outputs = tuple(_output(leaf, recorder, settled, translation) for leaf in leaves)
    recording.graph = RecordedGraph(
        inputs=tuple(state.arguments.inputs),
        parameters=tuple(state.values.parameters.items()),
        constants=tuple(state.values.constants),
        mutated=tuple(sorted(settled.mutated)),
        nodes=tuple(_translated(node, translation) for node in settled.calls.nodes),
        outputs=outputs,
        structure=str(tree),
        specs=tuple((name, _spec(fake, translation)) for name, fake in state.values.fakes.items()),
        symbols=tuple(translation.sources),
        guards=tuple(translation.guards),
        opaque=tuple(state.values.opaque),
        objects=tuple(known for known, _ in recorder.operands.held.values()),
        outer_writes=settled.outer_writes,
        draws=settled.draws,
        items=items,
        guard_origins=tuple(translation.lines.get(guard, "") for guard in translation.guards),
    )
    check_recording(recording.graph)
    recording.bound = BoundValues(
        {name: state.values.real[name] for name in state.values.parameters},
        dict(state.values.constants),
        {name: value for name, (_, value) in recorder.operands.held.items()},
    )
    recording.unfunctionalized_nodes = tuple(_translated(node, translation) for node in state.nodes)
    recording.renamed = settled.renamed
    recording.conditions = _apart(conditions, recorder, settled)
    recording.tree = tree
    outer = [*(i.name for i in state.arguments.inputs), *state.values.parameters]
    recording.devices = {name: state.values.real[name].device for name in outer}
    recording.run.real, recording.run.log = state.values.real, state.log
    recording.values = {s.symbol: _value_of(s, recorder) for s in translation.sources}
    recording.functions = tuple(recorder.calls.functions)


def _sizes(recorder: Recorder, settled: Functionalized, outputs: Iterable[Any]) -> Iterator[Any]:
    """Every size that a plan has to compute."""
    for fake in recorder.state.values.fakes.values():
        yield from fake.shape
        yield from fake.stride()
    for node in (*settled.calls.nodes, *recorder.state.nodes):
        yield from pytree.tree_leaves((node.args, node.kwargs))
    yield from outputs


def _apart(conditions: Conditions, recorder: Recorder, settled: Functionalized) -> Conditions:
    """Adds which tensors the recording wrote to, and which others it met in other memory."""
    state, copied = recorder.state, recorder.reads.copied
    inputs, parameters = [i.name for i in state.arguments.inputs], list(state.values.parameters)
    memory, made = state.effects.memory, state.effects.made
    given = {*inputs, *parameters}
    results = [o for n in settled.calls.nodes if not isinstance(n, OpNode) for o in made_by(n)]
    opaque = [o for o in dict.fromkeys(results) if o in memory and o not in given and memory[o] not in made]
    changed_memory = settled.outer | {key for _, key in settled.native} | {memory[name] for name, _ in copied}
    groups = {key: tuple(n for n in (*given, *opaque) if memory[n] == key) for key in changed_memory}
    groups = dict(sorted(((k, group) for k, group in groups.items() if group), key=lambda pair: min(pair[1])))
    if not groups:
        return conditions
    place = {key: number for number, key in enumerate(groups)}
    return replace(
        conditions,
        mutated_groups=tuple(tuple(n for n in (*inputs, *parameters) if memory[n] == key) for key in groups),
        separate_inputs=tuple(n for n in inputs if memory[n] not in place),
        separate_parameters=tuple(n for n in parameters if memory[n] not in place),
        opaque_aliases=tuple((name, place.get(memory[name], -1)) for name in opaque),
    )


def _value_of(source: Any, recorder: Recorder) -> int:
    if source.kind == "result":
        return recorder.state.numbers[source.value]
    tensor = recorder.state.values.real[source.value]
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
    if id(leaf) in recorder.state.arguments.containers:
        return Argument(recorder.state.arguments.containers[id(leaf)])
    raise Refused("opaque_output", f"the result holds a {type(leaf).__name__}")


_CONSTANTS = frozenset(kind for kind in Atom if kind is not bytes)


def _translated(node: Node, translation: Translation) -> Node:
    """A call with sizes as the graph writes them."""
    return node.mapped(lambda x: translation.dim(x) if is_symbolic(x) else x)


def _spec(fake: torch.Tensor, translation: Translation) -> TensorSpec:
    return TensorSpec(
        fake.dtype,
        tuple(translation.dim(d) for d in fake.shape),
        tuple(translation.dim(d) for d in fake.stride()),
        fake.device.type,
    )
