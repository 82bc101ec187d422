"""A tensor that is made and then filled slice by slice, before anyone reads it, is the concatenation of the pieces."""

from __future__ import annotations

from typing import Any

from fusion.capture.settled_calls import SettledCalls
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops.effects import has_effect


def slices_to_cat(settled: SettledCalls, key: int) -> None:
    """Puts a `cat` in the place of the last of such writes, and takes the others and the empty tensor out.

    Args:
        settled: whose calls are looked at, and changed.
        key: the memory that is written to.
    """
    writes = [i for i, k in settled.writes if k == key]
    root, makers = _root(settled, key)
    dim = _filled(settled, root, makers, key, writes)
    if dim is None:
        return
    recorder, last = settled.recorder, writes[-1]
    pieces = [_piece(settled, i) for i in writes]
    parts = tuple(Ref(piece.outputs[0]) for piece in pieces)
    call = OpNode("aten.cat.default", (parts, dim), (), (root,), settled.op(last).origin)
    fakes = {piece.outputs[0]: settled.run(piece, recorder.state.values.fakes, fake=True) for piece in pieces}
    if not settled.same_layout(settled.run(call, fakes, fake=True), recorder.state.values.fakes[root]):
        return
    views = {settled.made[settled.op(i).args[0].name] for i in writes}
    for i, piece in zip(writes, pieces, strict=True):
        (name,) = piece.outputs
        recorder.state.values.fakes[name] = fakes[name]
        recorder.state.values.real[name] = settled.run(piece, recorder.state.values.real, fake=False)
        settled.memory[name] = settled.memory[piece.args[0].name]
        settled.made[name] = i
        settled.nodes[i] = piece
    settled.before[last], settled.nodes[last] = pieces[-1], call
    settled.dropped |= {*makers, *views}
    settled.made[root] = last
    settled.writes = [(i, k) for i, k in settled.writes if k != key]


def _root(settled: SettledCalls, key: int) -> tuple[str, list[int]]:
    """The value that holds all of the memory, and the nodes that make it: torch detaches what Python makes."""
    root = next(name for name, k in settled.memory.items() if k == key)
    makers = [settled.made[root]] if root in settled.made else []
    while makers:
        readers = [i for i, node in enumerate(settled.nodes) if root in node.refs]
        alias = settled.nodes[readers[0]] if len(readers) == 1 and root not in settled.returned else None
        if not isinstance(alias, OpNode) or alias.op != "aten.detach.default":
            break
        (root,) = alias.outputs
        makers.append(readers[0])
    return root, makers


def _piece(settled: SettledCalls, i: int) -> OpNode:
    """What the write `i` puts in its place, in the shape of that place."""
    node = settled.op(i)
    shape = tuple(settled.recorder.state.values.fakes[node.args[0].name].shape)
    return OpNode("aten.expand.default", (node.args[1], shape), (), (f"e{i}",), node.origin)


def _filled(settled: SettledCalls, root: str, makers: list[int], key: int, writes: list[int]) -> int | None:
    """The dimension along which the writes fill all of `root`, in order; None where they do something else."""
    fakes = settled.recorder.state.values.fakes
    maker = settled.nodes[makers[0]] if makers else None
    if not isinstance(maker, OpNode) or len(maker.outputs) != 1 or has_effect(maker):
        return None
    if len(writes) < 2 or key not in settled.recorder.state.effects.made:
        return None
    if not all(isinstance(node, OpNode) for node in settled.nodes[writes[0] : writes[-1]]):
        return None  # it may write to what a piece is read from
    dims: set[int] = set()
    reached = 0
    for i in writes:
        start = _slice(settled, root, i, writes[-1])
        if start is None or settled.known(start[1]) != settled.known(reached):
            return None
        dims.add(start[0])
        reached = reached + fakes[settled.op(i).args[0].name].shape[start[0]]
    dim = dims.pop()
    whole = settled.known(reached) == settled.known(fakes[root].shape[dim])
    return dim if whole and not dims and _unread(settled, root, makers, key, writes) else None


def _slice(settled: SettledCalls, root: str, i: int, last: int) -> tuple[int, object] | None:
    """Where the write `i` puts another tensor: the dimension, and the index it starts from; None for another write."""
    node = settled.nodes[i]
    if not isinstance(node, OpNode) or node.op != "aten.copy_.default":
        return None
    target, source = node.args[:2]
    at = settled.made.get(target.name)
    view = None if at is None else settled.nodes[at]
    if not isinstance(view, OpNode) or view.op != "aten.slice.Tensor" or view.args[0] != Ref(root) or view.kwargs:
        return None
    given: list[Any] = [*view.args, *(None, 0, None, None, 1)[len(view.args) :]]
    _, dim, start, _, step = given
    fakes = settled.recorder.state.values.fakes
    if step != 1 or not isinstance(source, Ref) or fakes[source.name].dtype != fakes[root].dtype:
        return None
    if any(k == settled.memory[source.name] and i < write <= last for write, k in settled.writes):
        return None  # it would be read after it has been written to
    return dim % fakes[root].ndim, start or 0


def _unread(settled: SettledCalls, root: str, makers: list[int], key: int, writes: list[int]) -> bool:
    """Whether nobody reads the memory before it is filled, nor afterwards but as `root` and what is made of it."""
    last = writes[-1]
    names = {name for name, k in settled.memory.items() if k == key}
    early = {name for name in names if name != root and settled.made.get(name, -1) <= last}
    views = {settled.made[settled.op(i).args[0].name] for i in writes}
    for i, node in enumerate(settled.nodes):
        read = names.intersection(node.refs)
        if i in writes:
            if read != {settled.op(i).args[0].name} or Ref(settled.op(i).args[0].name) in settled.op(i).args[1:]:
                return False
        elif (
            i not in makers and read and (read != {root} or i not in views if i <= last else not read.isdisjoint(early))
        ):
            return False
    return early.isdisjoint(settled.returned)
