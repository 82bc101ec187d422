"""The calls that graphs are made of, as immutable values: operators, and what a plan calls natively."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .leaves import Leaf, Path, Ref, decode, encode, leaves, map_leaves, path_text, ref_names, sha256


@dataclass(frozen=True, slots=True)
class OpNode:
    """One operator call.

    Attributes:
        op: the operator's full name with its overload, "aten.mul.Tensor".
        args: positional arguments in schema order; tensors are `Ref`s, sizes are Dims, nested tuples allowed.
        kwargs: keyword arguments, sorted by name.
        outputs: the names of the values it makes. What an in-place call hands back is a new name for the same memory.
        origin: "file:line" of the user's code; no part of equality.
    """

    op: str
    args: tuple[Leaf, ...]
    kwargs: tuple[tuple[str, Leaf], ...] = ()
    outputs: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    _refs: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads, in order, with repeats."""
        if self._refs is None:
            object.__setattr__(self, "_refs", ref_names(self.args, self.kwargs))
        assert self._refs is not None
        return self._refs

    @property
    def digest(self) -> str:
        """SHA-256 over the structure, the same in every process."""
        return sha256(self.to_json())

    def renamed(self, rename: Callable[[str], str]) -> OpNode:
        """The same call over other value names."""

        def leaf(x: Leaf) -> Leaf:
            return Ref(rename(x.name)) if isinstance(x, Ref) else x

        return OpNode(
            self.op,
            map_leaves(leaf, self.args),
            map_leaves(leaf, self.kwargs),
            tuple(rename(o) for o in self.outputs),
            self.origin,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` reads it back. The origin is left out."""
        return {
            "op": self.op,
            "args": encode(self.args),
            "kwargs": [[k, encode(v)] for k, v in self.kwargs],
            "outputs": list(self.outputs),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> OpNode:
        return OpNode(
            data["op"],
            decode(data["args"]),
            tuple((k, decode(v)) for k, v in data["kwargs"]),
            tuple(data["outputs"]),
        )


@dataclass(frozen=True, slots=True)
class IslandNode:
    """A call that is made natively and never looked into: a method with Python side effects, a module that is a step of
    its scope, a class whose instance the scope makes, a read of a tensor's data.

    Attributes:
        receiver: what it is called on: a path among the scope's arguments, or the `Ref` of an object or tensor.
        method: the method's name; "" where the receiver itself is called; an attribute's name when `args` is None.
        args, kwargs: as in `OpNode`; objects are `Ref`s or `Argument`s.
        outputs: one leaf per flattened result: the name of a tensor, symbol or object it makes, or `Expect(value)`.
        effect: True when the call changes state; False for a read, which a plan may check before any effect.
        structure: how the flattened results nest: "leaf", "tuple", "list", or the text of a pytree structure.
        given_up: results of earlier islands that nobody held any more when this call was made.
        given: how the arguments nest where lists or dicts are among them: the text of a pytree structure of the
            positional and the named ones, by name; `args` are its leaves then, and `kwargs` is empty. Else "".
        kind: the exact class of the list, dict or object that a read gives; None for other results.
        copied: whether a later native call writes to the tensor that a read gives, so that a plan takes a copy.
        lent: tensors among the arguments that are used after the call, which may write to them: their places.
    """

    receiver: Path | Ref
    method: str
    args: tuple[Leaf, ...] | None
    kwargs: tuple[tuple[str, Leaf], ...]
    outputs: tuple[Any, ...]
    effect: bool
    structure: str
    dead_results: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    given: str = ""
    kind: type | None = None
    copied: bool = False
    lent: tuple[int, ...] = ()

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        read = leaves((self.receiver if isinstance(self.receiver, Ref) else None, self.args, self.kwargs))
        return tuple(leaf.name for leaf in read if isinstance(leaf, Ref))


def island_text(node: IslandNode) -> str:
    """What an island calls, for people: `past_key_values.update`."""
    receiver = node.receiver.name if isinstance(node.receiver, Ref) else path_text(node.receiver)
    return f"{receiver}.{node.method}" if node.method else receiver


def given_tensors(node: IslandNode, tensors: Container[str]) -> list[str]:
    """Names of the tensors among a call's arguments, in order.

    Args:
        node: the call.
        tensors: the names that stand for tensors.
    """
    given = leaves((node.args, tuple(value for _, value in node.kwargs)))
    return [leaf.name for leaf in given if isinstance(leaf, Ref) and leaf.name in tensors]


@functools.cache
def writes(op: str) -> bool:
    """Whether an operator, by its full name, writes to a tensor it is given; False for one this torch does not have."""
    target: Any = torch.ops
    for part in op.split("."):
        target = getattr(target, part, None)
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
