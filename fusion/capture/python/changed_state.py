"""What has changed of the state that a recording depends on: the first entry of a snapshot that does not hold, by name.

A snapshot says only that something changed. Its entries are asked one by one here, and the object that changed is
looked for among what the scope's modules hold.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch

from fusion.capture.python.reachable_state import ENTRY_NAMES, INTERNAL, PLAIN, Entry, Members
from fusion.capture.user_frame import is_users_file, short_line
from fusion.patterns.guards import Guard, GuardMiss, Words, miss_of
from fusion.patterns.leaves import Attribute, Path
from fusion.runtime.native import ABSENT

_MOST_LOOKED_AT = 20_000  # objects, for the name of one
_ROOT = "self"
_NOT_THERE = Words("not there")
_LEAVES = (torch.Tensor, type, ModuleType, *PLAIN)


def changed_entry(entries: Sequence[Entry], modules: Mapping[str, torch.nn.Module]) -> GuardMiss:
    """The first entry that does not hold now, in words: which attribute, item, class or code it is, before and now.

    Args:
        entries: as `runtime.snapshots.make_snapshot` takes them.
        modules: the scope's, by path prefix.
    """
    for entry in entries:
        now = _now(entry)
        if not _holds(entry, now):
            return _sized(entry, entries, modules) if entry[0] == "size" else _told(entry, now, entries, modules)
    return GuardMiss("state", _ROOT, "what it held", "something more")


def _now(entry: Entry) -> Any:
    """What a snapshot looks at."""
    match entry:
        case ("item", target, key, _):
            return dict.get(target, key, ABSENT)
        case ("index", target, place, _):
            return target[place] if len(target) > place else ABSENT
        case ("size", target, _):
            return len(target)
        case ("attribute", target, name, _):
            return getattr(target, name, ABSENT)
        case ("class", target, _):
            return type(target)
        case ("code", target, _):
            return target.__code__
        case ("call", target, _):
            return target()
    raise ValueError(f"{entry[0]!r} is no kind of entry")


def _holds(entry: Entry, now: Any) -> bool:
    wanted = entry[-1]
    if now is wanted or (entry[0] == "size" and now == wanted):
        return True
    return isinstance(wanted, PLAIN) and type(now) is type(wanted) and bool(now == wanted)


def _told(entry: Entry, now: Any, entries: Sequence[Entry], modules: Mapping[str, torch.nn.Module]) -> GuardMiss:
    kind, target, *rest = entry
    if isinstance(target, Members):
        path, _ = _find(target.held, entries, modules)
        return miss_of(Guard("state", path, Words("what it held")), Words("something else"))
    if kind == "call":
        name = getattr(target, "__qualname__", type(target).__qualname__)
        return miss_of(Guard("state", (f"{name}()",), rest[-1]), now)
    path, of_attributes = _find(target, entries, modules)
    if kind == "class":
        return miss_of(Guard("class", path, rest[-1]), now)
    if kind == "code":
        return miss_of(Guard("state", path, Words(f"its code at {_line(rest[-1])}")), Words(f"that at {_line(now)}"))
    if rest[0] != "cell_contents" or kind != "attribute":  # which the path of a closure's variable names
        path = (*path, Attribute(rest[0]) if kind == "attribute" or of_attributes else rest[0])
    before, found = (_NOT_THERE if value is ABSENT else value for value in (rest[-1], now))
    return miss_of(Guard("state", path, before), found)


def _line(code: Any) -> str:
    file = code.co_filename
    return short_line(file, code.co_firstlineno) if is_users_file(file) else f"line {code.co_firstlineno}"


def _sized(entry: Entry, entries: Sequence[Entry], modules: Mapping[str, torch.nn.Module]) -> GuardMiss:
    """A container that has more or fewer items: which one came or went, where it is a dict."""
    target = entry[1]
    path, of_attributes = _find(target, entries, modules)
    known = {e[2]: e[-1] for e in entries if e[0] == "item" and e[1] is target}
    ours = INTERNAL.union(ENTRY_NAMES) if of_attributes else frozenset()
    held = dict(target) if isinstance(target, dict) else {}
    changed = [key for key in (*known, *held) if (key in known) != (key in held) and key not in ours]
    if not changed:
        return miss_of(Guard("length", path, entry[-1]), len(target))
    key = changed[0]
    step = Attribute(key) if of_attributes and isinstance(key, str) else key
    return miss_of(Guard("state", (*path, step), known.get(key, _NOT_THERE)), held.get(key, _NOT_THERE))


def _find(target: Any, entries: Sequence[Entry], modules: Mapping[str, torch.nn.Module]) -> tuple[Path, bool]:
    """Where an object is found, from the scope's modules on, and whether it is a dict of something's attributes.

    Where it is not found, what it is called by itself.
    """
    for path, held, of_attributes in _walk(entries, modules):
        if held is target:
            return path, of_attributes
    if isinstance(target, CellType):
        return _variable(target, entries), False
    if isinstance(target, dict) and "__name__" in target:  # a Python module's
        return (str(target["__name__"]),), True
    if isinstance(target, (type, FunctionType)):
        return (target.__qualname__,), False
    return (f"a {type(target).__name__}",), False


def _variable(cell: CellType, entries: Sequence[Entry]) -> Path:
    """The name of a closure's variable."""
    for function in (entry[1] for entry in entries if entry[0] == "code"):
        for name, held in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            if held is cell:
                return (name,)
    return ("a variable of a closure",)


def _walk(entries: Sequence[Entry], modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[Path, Any, bool]]:
    """What modules hold, nearest first: its path, the object, and whether it is a dict of something's attributes."""
    waiting: list[tuple[Path, Any]] = []
    for prefix, module in modules.items():
        for name, child in module.named_modules():
            dotted = ".".join(filter(None, (prefix, name)))
            waiting.append(((dotted,) if prefix else (_ROOT, Attribute(name)) if name else (_ROOT,), child))
    classes = dict.fromkeys(base for _, child in waiting for base in type(child).__mro__)
    seen: set[int] = set()
    for path, held in waiting:  # grows on the way
        if id(held) in seen or isinstance(held, _LEAVES):
            continue
        seen.add(id(held))
        yield path, held, False
        own = _attributes(held)
        if own is not None:
            yield path, own, True
        if isinstance(held, torch.nn.Module):
            yield from ((path, (own or {}).get(name), True) for name in ("_parameters", "_buffers", "_modules"))
        if len(waiting) < _MOST_LOOKED_AT:
            waiting += _inside(path, held, own)
    for kind in classes:
        yield (kind.__qualname__,), gc.get_referents(kind.__dict__)[0], True


def _attributes(held: Any) -> dict[str, Any] | None:
    own = None if isinstance(held, FunctionType) else getattr(held, "__dict__", None)
    return own if type(own) is dict else None


def _inside(path: Path, held: Any, own: Mapping[str, Any] | None) -> list[tuple[Path, Any]]:
    """What an object holds, with the paths there."""
    if type(held) in (list, tuple):
        return [((*path, place), item) for place, item in enumerate(held)]
    found: list[tuple[Path, Any]] = []
    if isinstance(held, dict):
        found += [((*path, key), item) for key, item in dict(held).items()]
    kept = INTERNAL if isinstance(held, torch.nn.Module) else frozenset()
    return found + [((*path, Attribute(name)), value) for name, value in dict(own or {}).items() if name not in kept]
