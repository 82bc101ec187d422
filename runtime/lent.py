"""Lists and dicts that a native call is given: it may change them, which a plan finds out and does not hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

Contents = list[tuple[Any, Any]]  # each list and dict of a nest with a copy of it, the outer ones first


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """What a log holds for a native call that changed a list or dict it was given.

    Attributes:
        result: what it returned.
        given: the lists and dicts, each with a copy from before the call.
    """

    result: Any
    given: Contents


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
    found: Contents = []

    def visit(value: Any) -> None:
        if type(value) in (list, dict):
            found.append((value, value.copy()))
        if isinstance(value, (tuple, list)):
            for item in value:
                visit(item)
        elif type(value) is dict:
            for item in value.values():
                visit(item)

    visit(nest)
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
    """A log's entry for a native call: its result, or `Changed` where it changed what it was given."""
    return result if unchanged(before) else Changed(result, before)


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
