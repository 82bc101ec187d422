"""What a native call is given and may change: lists and dicts, tensors. A plan finds out, and a re-run is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion.runtime.aliasing import storages
from fusion.runtime.rollback import UndoLog, overwrite

_MOST_KEPT = 1 << 20  # bytes of a tensor that is kept until a plan ends, in case it was written to
Contents = list[tuple[Any, Any]]  # each list and dict of a nest with a copy of it, the outer ones first


@dataclass(frozen=True, slots=True, eq=False)
class LoggedContainerChange:
    """What a log holds for a native call that changed a list or dict it was given.

    Attributes:
        result: what it returned.
        given: the lists and dicts, each with a copy from before the call.
    """

    result: Any
    given: Contents


@dataclass(slots=True, eq=False)  # not frozen, which would double the time that one takes: a plan makes many
class LoggedWrite:
    """What a log holds for a native call that wrote, or may have, to tensors it was given, which are used afterwards.

    Attributes:
        entry: what the log would hold otherwise.
        given: what those tensors hold after the call, by their places among the tensors it was given.
        later: places of tensors that others may write to after the call.
        passed_back: which leaves of the result live in the memory of tensors that the call was given.
        before: what earlier answers of the log held before the call, where it wrote to their memory.
    """

    entry: Any
    given: dict[int, Tensor]
    later: Sequence[int] = ()
    passed_back: dict[int, PassedBack] = field(default_factory=dict)
    before: UndoLog | None = None

    def put(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Writes that to the tensors that a re-run gives the call; returns what the call saw."""
        before = [kept(t) if place in self.given or place in self.later else t for place, t in enumerate(tensors)]
        for place, held in self.given.items():
            mine = tensors[place]
            if mine.shape == held.shape and not torch.equal(mine, held):
                if not overlaps(mine):
                    mine.copy_(held)
                elif mine.stride() == held.stride():
                    overwrite(mine, held)
        return before

    def answer(self, tensors: Sequence[Tensor]) -> Any:
        """The entry, in the memory of what a re-run gives the call where the call returned memory it was given."""
        if not self.passed_back:
            return self.entry
        leaves, nest = pytree.tree_flatten(self.entry)
        for number, back in self.passed_back.items():
            leaves[number] = back.of(tensors[back.place], leaves[number])
        return pytree.tree_unflatten(leaves, nest)


@dataclass(frozen=True, slots=True)
class PassedBack:
    """A tensor that a call returned in memory that it was given.

    Attributes:
        place: of the tensor that it was given, among those.
        strides: of that tensor.
        offset: elements from that tensor's first one to the result's; None where the result is that tensor itself.
    """

    place: int
    strides: tuple[int, ...]
    offset: int | None

    def of(self, own: Tensor, result: Tensor) -> Tensor:
        """What `result` is where the call is given `own`; `result` where that lies in memory in another way."""
        if self.offset is None:
            return own
        if own.stride() != self.strides or own.dtype is not result.dtype:
            return result
        return own.as_strided(result.shape, result.stride(), own.storage_offset() + self.offset)


def kept(tensor: Tensor) -> Tensor:
    """A copy that has its original's strides: torch's clone of an expanded tensor, or of a slice, lies elsewhere."""
    copy = tensor.clone()
    if copy.stride() == tensor.stride() or not tensor.numel():
        return copy
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((reach,), (1,)).clone().as_strided(tensor.shape, tensor.stride(), 0)


def overlaps(tensor: Tensor) -> bool:
    """Whether elements of a tensor share memory, as those of an expanded one do."""
    return torch._debug_has_internal_overlap(tensor) == 1


def copied(tensor: Tensor) -> Tensor:
    """A copy that can be written back: of a tensor whose elements share memory, one whose elements do, too."""
    return kept(tensor) if overlaps(tensor) else tensor.clone()


def versions(*tensors: Tensor) -> list[int] | None:
    """How often each tensor was written to; None for tensors of inference mode, of which torch does not tell."""
    for tensor in tensors:  # a loop, for its speed: a plan asks this twice for every layer
        if tensor.is_inference():
            return None
    return [t._version for t in tensors]


def log_writes(
    log: list[Any], before: list[int] | None, places: Sequence[int], changing: Sequence[int], *tensors: Tensor
) -> None:
    """Makes the log's last entry say what tensors hold that its call has written to, or may have.

    Args:
        log: the log.
        before: their versions before the call; without, they are kept unless they are large.
        places: where they are among the tensors it was given.
        changing: the places of those that others write to, too: the plan itself, or a re-run that takes the write back.
        tensors: the tensors.
    """
    if before is None:
        given = {place: t for place, t in zip(places, tensors, strict=True) if t.nbytes <= _MOST_KEPT}
        for place in given.keys() & changing if changing else ():
            given[place] = copied(given[place])
    else:
        now = zip(places, tensors, before, strict=True)
        given = {place: copied(t) for place, t, version in now if t._version != version}
    if given:
        log[-1] = LoggedWrite(log[-1], given)


def log_differences(log: list[Any], before: Sequence[Tensor], places: Sequence[int], *tensors: Tensor) -> None:
    """As `log_writes`, by what all the tensors that the call was given held before it.

    A re-run that is compared with this one has to keep what the call saw, as this one did: the entry says of which
    tensors.
    """
    lent = dict(zip(places, tensors, strict=True))
    given = {p: copied(t) for p, t in lent.items() if not torch.equal(t, before[p])}
    answered, old = storages(answers(log[:-1])), UndoLog()
    for place in given:
        if storages([lent[place]]) <= answered:
            old.keep(lent[place], before[place])
    log[-1] = LoggedWrite(log[-1], given, places, before=old or None)


def answers(log: Iterable[Any]) -> list[Tensor]:
    """The tensors that a log's entries answer with."""
    plain = [entry.entry if type(entry) is LoggedWrite else entry for entry in log]
    plain = [entry.result if type(entry) is LoggedContainerChange else entry for entry in plain]
    return [leaf for leaf in pytree.tree_leaves(plain) if isinstance(leaf, Tensor) and has_strides(leaf)]


def has_strides(tensor: Tensor) -> bool:
    """Whether a tensor says where its elements lie; nested ones, and those inside `torch.func.vmap`, do not."""
    plain = tensor.layout is torch.strided and not tensor.is_nested
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def passed_back(result: Any, places: Sequence[int], tensors: Sequence[Tensor]) -> dict[int, PassedBack]:
    """Which leaves of a call's result live in the memory of tensors that it was given; `places` are theirs."""
    found: dict[int, PassedBack] = {}
    given = list(zip(places, tensors, strict=True))
    for number, leaf in enumerate(pytree.tree_leaves(result)):
        for place, tensor in given if isinstance(leaf, Tensor) and has_strides(leaf) else ():
            if leaf is tensor:
                found[number] = PassedBack(place, tensor.stride(), None)
            elif number not in found and leaf.dtype is tensor.dtype and storages([leaf]) == storages([tensor]):
                offset = leaf.storage_offset() - tensor.storage_offset()
                if 0 <= offset <= _reach(tensor) - _reach(leaf):  # of the tensor itself, not of what that is a view of
                    found[number] = PassedBack(place, tensor.stride(), offset)
    return found


def _reach(tensor: Tensor) -> int:
    """Elements from a tensor's first one in memory to behind its last."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0


def note_passed_back(log: list[Any], places: Sequence[int], *tensors: Tensor) -> None:
    """Makes the log's last entry say which of its results live in the memory of tensors that its call was given."""
    last = log[-1]
    plain = last.entry if type(last) is LoggedWrite else last
    if back := passed_back(plain, places, tensors):
        log[-1] = LoggedWrite(plain, {}, passed_back=back) if plain is last else replace(last, passed_back=back)


def held_before(tensors: Iterable[Tensor], others: Iterable[Tensor] = ()) -> UndoLog:
    """What tensors hold that earlier calls returned, before a call that writes to them.

    Args:
        tensors: those that the call is known to write to.
        others: those that it may write to; they are kept unless they are large.
    """
    old = UndoLog()
    for tensor in tensors:
        old.writing(None, tensor, ())
    for tensor in others:
        if tensor.nbytes <= _MOST_KEPT:
            old.writing(None, tensor, ())
    return old


def note_overwritten(log: list[Any], old: UndoLog) -> None:
    """Makes the log's last entry say what its call has overwritten of what earlier entries answer."""
    if not old:
        return
    last = log[-1]
    log[-1] = replace(last, before=old) if type(last) is LoggedWrite else LoggedWrite(last, {}, before=old)


class Rewound:
    """What a log's answers were when their calls returned, for a re-run that is given them one after the other.

    A native call may write to what an earlier one has returned. The memory is the same: it is made to hold what it held
    before the first such call, and the re-run's own calls write to it again.
    """

    def __init__(self, log: Sequence[Any]) -> None:
        self._old = [e.before for e in log if type(e) is LoggedWrite and e.before is not None]
        self._now = [old.now() for old in self._old]
        for old in reversed(self._old):
            old.rewind()
        self._begin = [old.now() for old in self._old]

    def put_back(self) -> None:
        """Makes it hold what it held at the end of the run that the log is of, where the re-run wrote to memory of its
        own, or ended early."""
        untouched = [old.agrees(begin) for old, begin in zip(self._old, self._begin, strict=True)]
        for old, now in [(old, now) for old, now, left in zip(self._old, self._now, untouched, strict=True) if left]:
            old.put(now)


def keep_outer(undo: UndoLog, outer: Sequence[Tensor], *tensors: Tensor) -> None:
    """Keeps what those of the tensors hold that live in the memory of what a call was given: `outer`."""
    memory = storages(outer)
    for tensor in tensors:
        if storages([tensor]) <= memory:
            undo.writing(None, tensor, ())


def let_go(log: list[Any], place: int, gone: Any) -> None:
    """Takes a result out of a log."""
    entry = log[place]
    log[place] = replace(entry, entry=gone, passed_back={}) if type(entry) is LoggedWrite else gone


def is_nest(value: Any) -> bool:
    """Whether a value is no container, or a plain list, a dict with keys that are text or int, or a tuple of such.

    A tuple may be of a class that torch's pytrees make again: named, a shape, what an operator returns.
    """
    known = pytree.is_namedtuple_instance(value) or type(value) in pytree.SUPPORTED_NODES
    if type(value) is list or (isinstance(value, tuple) and known):
        return all(map(is_nest, value))
    if type(value) is dict:
        return all(type(key) in (str, int) for key in value) and all(map(is_nest, value.values()))
    return not isinstance(value, (tuple, list, dict, set))


def contents(nest: Any) -> Contents:
    """The lists and dicts among nested tuples, lists and dicts, each with a copy of what it holds."""
    found: Contents = [(nest, nest.copy())] if type(nest) in (list, dict) else []
    for item in nest.values() if type(nest) is dict else nest if isinstance(nest, (tuple, list)) else ():
        found += contents(item)
    return found


def unchanged(before: Contents) -> bool:
    """Whether lists and dicts hold the objects they held, in the same order."""
    return all(
        len(now) == len(then)
        and (
            all(a is b for a, b in zip(now, then, strict=True))
            if type(now) is list
            else list(now) == list(then) and all(now[key] is item for key, item in then.items())
        )
        for now, then in before
    )


def noted(result: Any, before: Contents) -> Any:
    """A log's entry for a native call: its result, or `LoggedContainerChange` where it changed what it was given."""
    return result if unchanged(before) else LoggedContainerChange(result, before)


def take_over(nest: Any, changed: Contents) -> None:
    """Makes the lists and dicts of `nest` hold what a call put into those of an equal nest."""
    mine = [container for container, _ in contents(nest)]
    theirs = {id(container): own for (container, _), own in zip(changed, mine, strict=True)}
    held = [container.copy() for container, _ in changed]
    for own, now in zip(mine, held, strict=True):
        own.clear()
        if type(now) is list:
            own.extend(theirs.get(id(item), item) for item in now)
        else:
            own.update({key: theirs.get(id(item), item) for key, item in now.items()})
