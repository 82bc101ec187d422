"""What graphs are made of, as immutable values: operator calls, and beside them the nodes of `python_nodes`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .leaves import Leaf, decode, encode, map_leaves, ref_names, renaming, sha256
from .python_nodes import PythonNode


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

    @property
    def text(self) -> str:
        """What it calls, for people: the operator's full name."""
        return self.op

    def renamed(self, rename: Callable[[str], str]) -> OpNode:
        """The same call over other value names."""
        moved = self.mapped(renaming(rename))
        return OpNode(moved.op, moved.args, moved.kwargs, tuple(rename(o) for o in self.outputs), self.origin)

    def mapped(self, leaf: Callable[[Leaf], Leaf]) -> OpNode:
        """The same call with `leaf` applied to every leaf of its arguments."""
        args, kwargs = map_leaves(leaf, self.args), map_leaves(leaf, self.kwargs)
        return OpNode(self.op, args, kwargs, self.outputs, self.origin)

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


Node = OpNode | PythonNode


def made_by(node: Node) -> tuple[str, ...]:
    """Names of the values a node makes."""
    return tuple([o for o in node.outputs if isinstance(o, str)])


def argument_tensors(node: Node, tensors: Container[str]) -> list[str]:
    """Names of the tensors among a call's arguments, in order, with repeats.

    Args:
        node: the call.
        tensors: the names that stand for tensors.
    """
    return [name for name in ref_names(node.args, node.kwargs) if name in tensors]


@functools.cache
def writes(op: str) -> bool:
    """Whether an operator, by its full name, writes to a tensor it is given; False for one this torch does not have."""
    target: Any = torch.ops
    for part in op.split("."):
        target = getattr(target, part, None)
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
