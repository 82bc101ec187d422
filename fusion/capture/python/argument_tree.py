"""The leaves of a call's arguments (tensors, objects, plain values) by their paths, and the containers around them."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from fusion.capture.python.registry import has_opaque_methods
from fusion.patterns.leaves import Attribute, Path
from fusion.runtime.pytrees import fields_of

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
        items: what it held when it was met, in order, each with the steps of a path that lead there.
    """

    path: Path
    kind: type
    keys: tuple[Any, ...] | int | None
    value: Any
    items: tuple[tuple[Path, Any], ...] = field(default=(), compare=False, repr=False)

    def is_unchanged(self, but: Collection[Path] = ()) -> bool:
        """Whether it holds the very objects that it held when it was met; what is at the paths `but` may differ."""
        if self.value is None:
            return True
        parts = _parts(self.value)
        return parts is not None and self._identities(parts[1], but) == self._identities(self.items, but)

    def _identities(self, items: Iterable[tuple[Path, Any]], but: Collection[Path]) -> list[tuple[Path, int]]:
        return [(steps, id(item)) for steps, item in items if (*self.path, *steps) not in but]


class ArgumentTree(NamedTuple):
    """The leaves of a call's arguments, and the containers around them."""

    leaves: list[Leaf]
    containers: list[Container]


def _parts(value: Any) -> tuple[tuple[Any, ...] | int | None, list[tuple[tuple[Any, ...], Any]]] | None:
    """A container's keys, and its items with the steps of a path that lead to them; None for any other object."""
    kind = type(value)
    if has_opaque_methods(kind) and kind is not collections.UserDict:
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


def flatten(arguments: Mapping[str, Any]) -> ArgumentTree:
    """What a call's arguments, by parameter name, are made of."""
    leaves: list[Leaf] = []
    containers: list[Container] = []
    for name, value in arguments.items():
        _flatten((name,), value, leaves, containers, ())
    return ArgumentTree(leaves, containers)


def _flatten(path: Path, value: Any, leaves: list[Leaf], containers: list[Container], around: tuple[int, ...]) -> None:
    """Adds what is at a path; `around` are the containers it is in, of which one that holds itself is a leaf inside.

    No closure: one that calls itself keeps what it has seen alive until the garbage collector runs.
    """
    parts = None if isinstance(value, torch.Tensor) or id(value) in around else _parts(value)
    if parts is None:
        leaves.append(Leaf(path, value))
        return
    containers.append(Container(path, type(value), parts[0], value, tuple(parts[1])))
    if isinstance(value, collections.UserDict):  # an attribute that it gets hides an item, or a default
        containers.append(Container((*path, Attribute("__dict__")), dict, tuple(vars(value)), None))
    for steps, item in parts[1]:
        _flatten((*path, *steps), item, leaves, containers, (*around, id(value)))


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
