"""What a native call is given and may change: lists and dicts, tensors. A plan finds out, and a re-run is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion.runtime.aliasing import storages
from fusion.runtime.rollback import UndoLog

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
    """

    entry: Any
    given: dict[int, Tensor]
    later: Sequence[int] = ()

    def put(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Writes that to the tensors that a re-run gives the call; returns what the call saw."""
        before = [kept(t) if place in self.given or place in self.later else t for place, t in enumerate(tensors)]
        for place, held in self.given.items():
            mine = tensors[place]
            if (
                mine.shape == held.shape
                and not torch.equal(mine, held)
                and torch._debug_has_internal_overlap(mine) != 1
            ):
                mine.copy_(held)
        return before


def kept(tensor: Tensor) -> Tensor:
    """A copy that has its original's strides: torch's clone of an expanded tensor, or of a slice, lies elsewhere."""
    copy = tensor.clone()
    if copy.stride() == tensor.stride() or not tensor.numel():
        return copy
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((reach,), (1,)).clone().as_strided(tensor.shape, tensor.stride(), 0)


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
        changing: the places of those that the plan itself writes to.
        tensors: the tensors.
    """
    if before is None:
        given = {place: t for place, t in zip(places, tensors, strict=True) if t.nbytes <= _MOST_KEPT}
        for place in given.keys() & changing if changing else ():
            given[place] = given[place].clone()
    else:
        now = zip(places, tensors, before, strict=True)
        given = {place: t.clone() for place, t, version in now if t._version != version}
    if given:
        log[-1] = LoggedWrite(log[-1], given)


def log_differences(log: list[Any], before: Sequence[Tensor], places: Sequence[int], *tensors: Tensor) -> None:
    """As `log_writes`, by what all the tensors that the call was given held before it.

    A re-run that is compared with this one has to keep what the call saw, as this one did: the entry says of which
    tensors.
    """
    given = {p: t.clone() for p, t in zip(places, tensors, strict=True) if not torch.equal(t, before[p])}
    log[-1] = LoggedWrite(log[-1], given, places)


def keep_outer(undo: UndoLog, outer: Sequence[Tensor], *tensors: Tensor) -> None:
    """Keeps what those of the tensors hold that live in the memory of what a call was given: `outer`."""
    memory = storages(outer)
    for tensor in tensors:
        if storages([tensor]) <= memory:
            undo.writing(None, tensor, ())


def let_go(log: list[Any], place: int, gone: Any) -> None:
    """Takes a result out of a log."""
    entry = log[place]
    log[place] = LoggedWrite(gone, entry.given, entry.later) if type(entry) is LoggedWrite else gone


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
