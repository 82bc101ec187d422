"""Guards as values: what a plan checks, where the checked value comes from, and what it has to be.

A plan's text checks all guards of a recording at once and says only yes or no. The values here say which one did not
hold, so that a report can: `runtime.guard_list` makes them from a recording.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from . import symbols
from .leaves import Attribute, Path

# kind -> what is checked
KINDS: dict[str, str] = {
    "class": "the exact class of an argument, or of what was found",
    "length": "how many items a list or tuple has",
    "keys": "the keys of a dict, in order",
    "value": "a Python value among the arguments",
    "same": "two places hold one object",
    "apart": "two places hold different objects",
    "tensor": "a tensor is a plain one, in strided memory",
    "dtype": "a tensor's dtype",
    "device": "a tensor's device",
    "rank": "how many dimensions a tensor has",
    "size": "a tensor's size in one dimension",
    "stride": "a tensor's stride in one dimension",
    "relation": "a condition on sizes",
    "memory": "tensors that are written to share memory with no others",
    "read": "what an attribute, an item or a method of an argument gives",
    "call": "what a native call gives",
    "data": "a number that a tensor holds",
    "kernel": "what a kernel is given",
    "state": "what modules, closures and global names hold",
    "unknown": "the guard that did not hold could not be told",
}

_NUMBERS: tuple[Any, ...] = (bool, int, float, complex)
_LONGEST = 80  # letters of a value
_MOST_ITEMS = 4  # of a container
_CALLS = {"length": "len", "class": "type", "keys": "list"}
_SUFFIXES = {"dtype": ".dtype", "device": ".device", "rank": ".ndim"}


@dataclass(frozen=True, slots=True)
class Guard:
    """One condition under which a plan is valid.

    Attributes:
        kind: one of `KINDS`.
        path: where the value comes from: a parameter of the scope, then keys and attributes; ("self", .config, .x).
        wanted: what it has to be: a value, a class, a Dim for a size or stride, another `Path`, or words.
        dim: of a size or stride.
        origin: "file:line" of the user's code that depends on it, or "".
    """

    kind: str
    path: Path
    wanted: Any
    dim: int | None = None
    origin: str = ""

    @property
    def source(self) -> str:
        """The value as the user would write it: "x.shape[1]", "len(mask)", "type(config)"."""
        text = place(self.path)
        if self.kind in _CALLS:
            return f"{_CALLS[self.kind]}({text})"
        if self.kind == "size":
            return f"{text}.shape[{self.dim}]"
        return f"{text}.stride({self.dim})" if self.kind == "stride" else text + _SUFFIXES.get(self.kind, "")


@dataclass(frozen=True, slots=True)
class GuardMiss:
    """A guard that did not hold, in words: it keeps nothing of the user's alive.

    Attributes:
        kind: of the guard.
        source: the value, as `Guard.source`.
        wanted, got: what it had to be, and what it was; at most some 80 letters each.
        origin: as the guard's.
    """

    kind: str
    source: str
    wanted: str
    got: str
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.source} is {self.got}; the plan is for {self.wanted}"


def miss_of(guard: Guard, got: Any, wanted: Any = None) -> GuardMiss:
    """Puts a guard that did not hold into words.

    Args:
        guard: the guard.
        got: what was found in the place of what it wants; words, where it is a `Words`.
        wanted: shown instead of what the guard wants.
    """
    before, now = shorten(guard.wanted if wanted is None else wanted), shorten(got)
    if now == before:
        now = _cut(f"another {now.removeprefix('a ')}")
    return GuardMiss(guard.kind, guard.source, before, now, guard.origin)


class Words(str):
    """Text that is shown as it is, rather than as the value of a string."""

    __slots__ = ()


def place(path: Path) -> str:
    """A path for people, printable and cut: `position_embeddings[0]`, `config.scale`."""
    text = str(path[0])[:_LONGEST]
    for key in path[1:]:
        text += f".{str(key)[:_LONGEST]}" if isinstance(key, Attribute) else f"[{shorten(key)}]"
        if len(text) > _LONGEST:
            break
    return _cut(text)


def shorten(value: Any) -> str:
    """A value for people, in at most 80 printable letters. Runs no code of the user's, and never fails.

    Tensors are told by dtype and sizes, values of plain types by their `repr`, other objects by their class.
    """
    try:
        return _cut(_text(value))
    except Exception:  # a class that answers nothing, a number with too many digits to print
        return "a value that cannot be shown"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST and text.isprintable():
        return text
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."


def _text(value: Any, inside: bool = False) -> str:
    kind = type(value)
    if kind is Words:
        return str(value)
    if issubclass(kind, sympy.Expr):
        return symbols.render(value)
    if kind in (torch.Tensor, torch.nn.Parameter):
        return f"{str(value.dtype).removeprefix('torch.')}{'' if value.is_nested else list(value.shape)}"
    if issubclass(kind, type):
        return _name(value)
    if issubclass(kind, enum.Enum):
        return f"{_name(kind)}.{value._name_}"
    if kind in (list, tuple, dict, set, frozenset):
        return _container_text(value, inside)
    for text in (str, bytes):
        if issubclass(kind, text):
            return text.__repr__(text.__getitem__(value, slice(_LONGEST)))
    number = next((number for number in _NUMBERS if issubclass(kind, number)), None)
    if number is not None:
        return str(number.__repr__(value))
    if value is None or kind in (torch.dtype, torch.device, torch.layout, torch.memory_format):
        return repr(value).removeprefix("torch.")
    return f"a {_name(kind)}"


def _name(kind: type) -> str:
    """A class's own name, which no metaclass of the user's answers for."""
    return str(type.__dict__["__name__"].__get__(kind))


def _container_text(value: Any, inside: bool) -> str:
    """The first few items; of a container inside another only how many it has."""
    kind = type(value)
    if inside:
        return f"a {kind.__name__} of {len(value)}"
    first = itertools.islice(value.items() if kind is dict else value, _MOST_ITEMS)
    texts = [f"{_text(i[0], True)}: {_text(i[1], True)}" if kind is dict else _text(i, True) for i in first]
    texts += [f"... {len(value)} in all"] if len(value) > _MOST_ITEMS else []
    left, right = "[]" if kind is list else "()" if kind is tuple else "{}"
    comma = "," if kind is tuple and len(value) == 1 else ""
    return f"{left}{', '.join(texts)}{comma}{right}"
