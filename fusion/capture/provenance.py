"""Where things come from: the tensors and objects in a call's arguments, and the user's line behind an operator."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fusion.patterns.graph import Path

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


def user_line() -> str:
    """ "file:line" of the innermost frame that is neither torch's nor ours; the file's last two path parts."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OURS) and not name.startswith("<") and "contextlib" not in name:
            return f"{os.sep.join(name.split(os.sep)[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a call's arguments."""

    path: Path
    value: Any


@dataclass(frozen=True, slots=True)
class Container:
    """A tuple, list or dict met on the way to the leaves; a plan checks that it still has this shape."""

    path: Path
    kind: type
    keys: tuple[Any, ...] | int


def flatten(arguments: Mapping[str, Any]) -> tuple[list[Leaf], list[Container]]:
    """The leaves of a call's arguments by parameter name, and the containers around them."""
    leaves: list[Leaf] = []
    containers: list[Container] = []

    def visit(path: Path, value: Any) -> None:
        if type(value) in (tuple, list):
            containers.append(Container(path, type(value), len(value)))
            for i, item in enumerate(value):
                visit((*path, i), item)
        elif type(value) is dict and all(isinstance(k, (str, int)) for k in value):
            containers.append(Container(path, dict, tuple(value)))
            for key, item in value.items():
                visit((*path, key), item)
        else:
            leaves.append(Leaf(path, value))

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
