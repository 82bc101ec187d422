"""Where things come from: the tensors and objects in a call's arguments, and the user's line behind an operator."""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from fusion.patterns.leaves import Attribute, Path
from fusion.runtime.nesting import fields_of

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ROOT = os.path.dirname(_PACKAGE)
_OURS = tuple(
    prefix + os.sep
    for prefix in (
        os.path.join(_PACKAGE, "capture"),
        os.path.join(_PACKAGE, "decide"),
        os.path.join(_ROOT, "runtime"),
        os.path.join(_ROOT, "patterns"),
        os.path.join(_PACKAGE, "runtime"),
        os.path.join(_PACKAGE, "patterns"),
        os.path.dirname(torch.__file__),
    )
)

Atom = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)


def is_atom(value: Any) -> bool:
    """Whether a plan may compare a plain value by type and value: its class answers as the builtin one does."""
    kind = type(value)
    if kind in Atom:
        return True
    return isinstance(value, Atom) and all(
        getattr(kind, name) is getattr(base, name)
        for base in kind.__mro__
        if base in Atom
        for name in ("__eq__", "__ne__")
    )


def is_ours(filename: str) -> bool:
    """Whether code of a file is torch's or part of what records and runs plans."""
    return filename.startswith(_OURS)


def user_frame() -> FrameType | None:
    """The innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not is_ours(name) and not name.startswith("<") and "contextlib" not in name:
            return frame
        frame = frame.f_back
    return None


def user_line() -> str:
    """ "file:line" of that frame; the file's last two path parts."""
    frame = user_frame()
    if frame is None:
        return ""
    return f"{os.sep.join(frame.f_code.co_filename.split(os.sep)[-2:])}:{frame.f_lineno}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a call's arguments."""

    path: Path
    value: Any


@dataclass(frozen=True, slots=True)
class Container:
    """A container met on the way to the leaves; a plan checks that it still has this shape.

    Attributes:
        path: where it is.
        kind: its exact type.
        keys: of a mapping its keys, of a sequence its length, None for a dataclass.
        value: the container.
    """

    path: Path
    kind: type
    keys: tuple[Any, ...] | int | None
    value: Any


def _parts(value: Any) -> tuple[tuple[Any, ...] | int | None, list[tuple[tuple[Any, ...], Any]]] | None:
    """A container's keys, and its items with the steps of a path that lead to them; None for any other object."""
    from .islands import has_islands  # which looks for arguments here

    kind = type(value)
    if has_islands(kind) and kind is not collections.UserDict:
        return None
    if kind in (tuple, list) or (isinstance(value, tuple) and _is_record(kind)):
        return len(value), [((i,), item) for i, item in enumerate(value)]
    if isinstance(value, collections.UserDict):
        if set(vars(value)) != {"data"} or not _has_plain_keys(value.data):
            return None
        return tuple(value), [((Attribute("data"), key), item) for key, item in value.data.items()]
    fields = fields_of(value)
    if fields is not None and not isinstance(value, torch.nn.Module):
        return None, [((Attribute(name),), item) for name, item in fields.items()]
    if isinstance(value, dict) and _has_plain_keys(value):
        mirrored = getattr(value, "__dict__", {})  # transformers' ModelOutput shows its items as attributes too
        if all(key in value and value[key] is held for key, held in mirrored.items() if held is not None):
            return tuple(value), [((key,), item) for key, item in value.items()]
    return None


def _is_record(kind: type) -> bool:
    """Whether a tuple's subclass is a NamedTuple, one of torch's results with named fields, or a size."""
    return kind is torch.Size or hasattr(kind, "_fields") or hasattr(kind, "n_sequence_fields")


def _has_plain_keys(mapping: Mapping[Any, Any]) -> bool:
    return all(type(key) in (str, int) for key in mapping)


def flatten(arguments: Mapping[str, Any]) -> tuple[list[Leaf], list[Container]]:
    """The leaves of a call's arguments by parameter name, and the containers around them."""
    leaves: list[Leaf] = []
    containers: list[Container] = []
    around: list[int] = []  # containers that the one being visited is in: one that holds itself is a leaf inside

    def visit(path: Path, value: Any) -> None:
        parts = None if isinstance(value, torch.Tensor) or id(value) in around else _parts(value)
        if parts is None:
            leaves.append(Leaf(path, value))
            return
        containers.append(Container(path, type(value), parts[0], value))
        around.append(id(value))
        for steps, item in parts[1]:
            visit((*path, *steps), item)
        around.pop()

    for name, value in arguments.items():
        visit((name,), value)
    return leaves, containers


def modules_of(
    module: torch.nn.Module, skip: Iterable[torch.nn.Module] = (), *, repeats: bool = False
) -> Iterator[tuple[str, torch.nn.Module]]:
    """A module and those below it with their dotted paths, but for the modules of `skip` and what is below them."""
    yield from module.named_modules(memo=set(skip), remove_duplicate=not repeats)


def tensors_of(module: torch.nn.Module, skip: Iterable[torch.nn.Module] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers and plain tensor attributes of a module tree, with their dotted paths."""
    for prefix, child in modules_of(module, skip, repeats=True):
        dot = f"{prefix}." if prefix else ""
        held = [child.__dict__.get("_parameters") or {}, child.__dict__.get("_buffers") or {}, child.__dict__]
        for names in held:
            for name, value in names.items():
                if isinstance(value, torch.Tensor):
                    yield f"{dot}{name}", value
