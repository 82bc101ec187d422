"""Where things come from: the tensors and objects in a call's arguments, and the user's line behind an operator."""

from __future__ import annotations

import collections
import functools
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch

from fusion.patterns.leaves import Attribute, Path
from fusion.runtime.pytrees import fields_of

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ROOT = os.path.dirname(_PACKAGE)
_OURS = tuple(
    prefix + os.sep
    for prefix in (
        _PACKAGE,
        os.path.join(_ROOT, "runtime"),
        os.path.join(_ROOT, "patterns"),
        os.path.join(_ROOT, "kernels"),
        os.path.dirname(torch.__file__),
    )
)
_DEMO = os.path.join(_PACKAGE, "demo")  # a model such as users have
_PYTHON = tuple({sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("platstdlib") + os.sep})
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_TAKES_ANYTHING = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS

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
    while frame is not None and _is_passed_over(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def user_line() -> str:
    """ "file:line" of the user's code that is running; the file's last two path parts.

    Inside of a library's function that is the line which calls the library, and inside of a library's module the line
    of its forward. Wrappers around a forward, as decorators make, are nobody's line.
    """
    return _line_of(_frames(sys._getframe(1)))


def line_of(error: BaseException) -> str:
    """`user_line` for where an error was raised; "" where no user's code is in its traceback."""
    steps = reversed(list(traceback.walk_tb(error.__traceback__)))
    return _line_of((frame, line) for frame, line in steps if not _is_passed_over(frame.f_code.co_filename))


def short_line(file: str, line: int) -> str:
    """ "file:line" for people: the file's last two path parts."""
    return f"{os.sep.join(file.split(os.sep)[-2:])}:{line}"


def is_users_file(file: str) -> bool:
    """Whether a file's lines may be named as the user's: it is not torch's, not ours and not made up."""
    return bool(file) and not _is_passed_over(file)


def _is_passed_over(file: str) -> bool:
    if file.startswith("<") or "contextlib" in file:
        return True
    return file.startswith(_OURS) and not file.startswith(_DEMO)


def _frames(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Frames of users and libraries with their lines, the innermost first."""
    while frame is not None:
        if not _is_passed_over(frame.f_code.co_filename):
            yield frame, frame.f_lineno
        frame = frame.f_back


def _line_of(frames: Iterable[tuple[FrameType, int]]) -> str:
    first: tuple[FrameType, int] | None = None
    for frame, line in frames:
        if _is_wrapper(frame.f_code):
            continue
        first = first or (frame, line)
        package = _package_of(frame.f_code.co_filename)
        if not package:  # the user's own
            return short_line(frame.f_code.co_filename, line)
        if isinstance(frame.f_locals.get("self"), torch.nn.Module):  # a library's module, and its helpers
            chosen = first if _package_of(first[0].f_code.co_filename) == package else (frame, line)
            return short_line(chosen[0].f_code.co_filename, chosen[1])
    return "" if first is None else short_line(first[0].f_code.co_filename, first[1])


@functools.cache
def _package_of(file: str) -> str:
    """The folder or file of an installed package, or of Python's library, that a file belongs to; "" for a user's."""
    for place in _INSTALLED:
        if place in file:
            return file.split(place, 1)[1].split(os.sep)[0]
    return next((file[len(place) :].split(os.sep)[0] for place in _PYTHON if file.startswith(place)), "")


@functools.cache
def _is_wrapper(code: CodeType) -> bool:
    """Whether code is a library's decorator around another function: a closure that takes any arguments."""
    takes_anything = code.co_flags & _TAKES_ANYTHING == _TAKES_ANYTHING
    return takes_anything and bool(code.co_freevars) and bool(_package_of(code.co_filename))


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
        value: the container; None for the names of the attributes of one.
    """

    path: Path
    kind: type
    keys: tuple[Any, ...] | int | None
    value: Any


def _parts(value: Any) -> tuple[tuple[Any, ...] | int | None, list[tuple[tuple[Any, ...], Any]]] | None:
    """A container's keys, and its items with the steps of a path that lead to them; None for any other object."""
    from fusion.capture.python.interception import has_islands  # which looks for arguments here

    kind = type(value)
    if has_islands(kind) and kind is not collections.UserDict:
        return None
    if kind in (tuple, list) or (isinstance(value, tuple) and _is_record(kind)):
        return len(value), [((i,), item) for i, item in enumerate(value)]
    if isinstance(value, collections.UserDict):
        return _parts_of_mapping(value)
    fields = fields_of(value)
    if fields is not None and not isinstance(value, torch.nn.Module):
        return None, [((Attribute(name),), item) for name, item in fields.items()]
    if isinstance(value, dict) and _has_plain_keys(value):
        mirrored = getattr(value, "__dict__", {})  # transformers' ModelOutput shows its items as attributes too
        if all(key in value and value[key] is held for key, held in mirrored.items() if held is not None):
            return tuple(value), [((key,), item) for key, item in value.items()]
    return None


def _parts_of_mapping(value: Any) -> tuple[tuple[Any, ...], list[tuple[tuple[Any, ...], Any]]] | None:
    """As `_parts`, for a UserDict or one of a subclass, such as a tokenizer's result: its items and plain attributes.

    What else it holds is not looked into, and refused where a forward reads it.
    """
    own, kind = vars(value), type(value)
    if type(own.get("data")) is not dict or not _has_plain_keys(own["data"]):
        return None
    if any(getattr(kind, name) is not getattr(collections.UserDict, name) for name in ("__iter__", "__len__")):
        return None  # which a plan would ask, in every call
    if any(hasattr(getattr(kind, name, None), "__set__") for name in own):
        return None  # an attribute that code answers for
    plain = [((Attribute(name),), held) for name, held in own.items() if isinstance(held, Atom)]
    return tuple(own["data"]), [((Attribute("data"), key), item) for key, item in own["data"].items()] + plain


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
        if isinstance(value, collections.UserDict):  # an attribute that it gets hides an item, or a default
            containers.append(Container((*path, Attribute("__dict__")), dict, tuple(vars(value)), None))
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
