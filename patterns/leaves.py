"""The leaves of calls: references, sizes, constants and paths, nested tuples of them, and their form in JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from . import symbols
from .errors import GraphError

Path = tuple[str | int, ...]  # a parameter of the scope, then indices, keys and `Attribute`s into it
Leaf = Any  # a Ref, Dim, float, bool, None, str, torch.dtype, torch.device, torch.layout or torch.memory_format


class Attribute(str):
    """A step of a path that is an attribute's name rather than a key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f".{self}"


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A use of the value called `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Expect:
    """A Python value a recording depended on; a plan that meets another one is not valid for this call."""

    value: Any

    def __hash__(self) -> int:
        return hash(repr(self.value))  # which may be a list


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument object of the scope that is handed back as it came."""

    path: Path


def leaves(tree: Leaf) -> Iterator[Leaf]:
    """The leaves of nested tuples, left to right."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def map_leaves(function: Callable[[Leaf], Leaf], tree: Leaf) -> Any:
    """`tree` with `function` applied to every leaf."""
    if isinstance(tree, tuple):
        return tuple(map_leaves(function, branch) for branch in tree)
    return function(tree)


def renaming(rename: Callable[[str], str]) -> Callable[[Leaf], Leaf]:
    """A function for `map_leaves` that renames the values which `Ref`s stand for."""
    return lambda leaf: Ref(rename(leaf.name)) if isinstance(leaf, Ref) else leaf


def ref_names(*trees: Leaf) -> tuple[str, ...]:
    """The names of the `Ref`s among the leaves of nested tuples, left to right."""
    found: list[str] = []
    waiting = list(reversed(trees))
    while waiting:
        leaf = waiting.pop()
        if isinstance(leaf, Ref):
            found.append(leaf.name)
        elif isinstance(leaf, tuple):
            waiting += leaf[::-1]
    return tuple(found)


def path_text(path: Path) -> str:
    """A path for people: `position_embeddings[0]`."""
    return str(path[0]) + "".join(repr(key) if isinstance(key, Attribute) else f"[{key!r}]" for key in path[1:])


def show(leaf: Leaf) -> str:
    """A leaf or nested tuple of leaves, for people."""
    if isinstance(leaf, tuple):
        return "(" + ", ".join(map(show, leaf)) + ")"
    return leaf.name if isinstance(leaf, Ref) else str(leaf)


def encode(leaf: Leaf) -> Any:
    """A leaf or nested tuple of leaves as JSON-able data; `decode` reads it back."""
    if isinstance(leaf, tuple):
        return [encode(branch) for branch in leaf]
    if leaf is None or isinstance(leaf, (bool, int, str)):
        return leaf
    if isinstance(leaf, float):
        return {"float": leaf.hex()}
    if isinstance(leaf, Ref):
        return {"ref": leaf.name}
    if isinstance(leaf, Expect):
        return {"expect": encode(leaf.value)}
    if isinstance(leaf, Argument):
        return {"argument": list(leaf.path)}
    if isinstance(leaf, sympy.Expr):
        return {"dim": symbols.render(leaf)}
    if isinstance(leaf, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(leaf)}
    if isinstance(leaf, torch.device):
        return {"device": str(leaf)}
    if isinstance(leaf, complex):
        return {"complex": [leaf.real.hex(), leaf.imag.hex()]}
    if isinstance(leaf, list):
        return {"list": [encode(branch) for branch in leaf]}
    raise GraphError(f"A call's argument {leaf!r} of type {type(leaf).__name__} has no place in a graph.")


def decode(data: Any) -> Any:
    """Reads what `encode` wrote."""
    if isinstance(data, list):
        return tuple(decode(x) for x in data)
    if not isinstance(data, Mapping):
        return data
    ((kind, value),) = data.items()
    if kind == "float":
        return float.fromhex(value)
    if kind == "ref":
        return Ref(value)
    if kind == "argument":
        return Argument(tuple(value))
    if kind == "expect":
        return Expect(decode(value))
    if kind == "dim":
        return symbols.parse(value)
    if kind == "list":
        return list(map(decode, value))
    if kind == "torch":
        return torch_constant(value)
    if kind == "device":
        return torch.device(value)
    if kind == "complex":
        return complex(float.fromhex(value[0]), float.fromhex(value[1]))
    raise GraphError(f"Unknown kind of encoded argument {kind!r}.")


def torch_constant(text: str) -> Any:
    """The dtype, layout or memory format that prints as `text`; else GraphError."""
    prefix, _, name = text.partition(".")
    constant = getattr(torch, name, None)
    if prefix != "torch" or not isinstance(constant, (torch.dtype, torch.layout, torch.memory_format)):
        raise GraphError(f"{text!r} is no dtype, layout or memory format of this torch.")
    return constant


def sha256(data: Any) -> str:
    """SHA-256 of JSON-able data, as hexadecimal digits, the same in every process."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
