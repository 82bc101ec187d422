"""What a named pattern is, and a small builder to write its graph down."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..forks import cached_property
from ..graph import SubGraph
from ..leaves import Leaf, Ref
from ..nodes import OpNode
from ..specs import TensorSpec, contiguous_strides
from ..symbols import Dim

FULL = 2**63 - 1  # the end of a slice that goes to the end, as torch writes it


@dataclass(frozen=True)
class Pattern:
    """A named SubGraph shape.

    Inputs of the graph stand for any values. Its float constants stand for any number; its int constants for
    themselves. Views, conversions and the order of operands of add and mul are matched up to normalisation
    (see `forms`). The first output is the one a region must have; a region may leave out the others.

    Attributes:
        name: what reports show. Several patterns may share one: variants of the same thing.
        create: makes the graph; called once, when the pattern is first used.
        vectors: inputs that stand only for tensors of one dimension (a bias, a scale per channel).
        holds: whether numbers may stand for the float constants, which it takes in the order of the pattern's calls.
        whole: whether a region must have all outputs of the pattern, not only the first.
    """

    name: str
    create: Callable[[], SubGraph]
    vectors: tuple[str, ...] = ()
    holds: Callable[..., bool] | None = None
    whole: bool = False

    @cached_property
    def graph(self) -> SubGraph:
        """The graph, bearing the pattern's name."""
        made = self.create()
        return made if made.pattern == self.name else made.with_pattern(self.name)


def dense_strides(shape: Sequence[Dim], order: Sequence[int]) -> tuple[Dim, ...]:
    """Strides, in elements, of a tensor that is dense with its dimensions in `order`, outermost first."""
    packed = contiguous_strides(tuple(shape[d] for d in order))
    return tuple(packed[tuple(order).index(d)] for d in range(len(shape)))


def _broadcast(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


class GraphBuilder:
    """Writes a SubGraph down call by call."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.inputs: list[str] = []
        self.nodes: list[OpNode] = []
        self.specs: dict[str, TensorSpec] = {}

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[Dim]) -> Ref:
        """A row-major input."""
        self.inputs.append(name)
        self.specs[name] = TensorSpec.contiguous(dtype, tuple(shape), self.device)
        return Ref(name)

    def call(
        self,
        op: str,
        *args: Leaf,
        name: str | None = None,
        shape: Sequence[Dim] | None = None,
        strides: Sequence[Dim] | None = None,
        dtype: torch.dtype | None = None,
        kwargs: tuple[tuple[str, Leaf], ...] = (),
    ) -> Ref:
        """A call of `aten.OP`; what is not said of its result is as broadcasting its operands makes it, row-major."""
        node = OpNode(f"aten.{op}", args, kwargs, (name or f"t{len(self.nodes)}",))
        operands = [self.specs[r] for r in node.refs]
        sizes = _broadcast([o.shape for o in operands]) if shape is None else tuple(shape)
        made = dtype or functools.reduce(torch.promote_types, [o.dtype for o in operands])
        spec = TensorSpec.contiguous(made, sizes, self.device)
        if strides is not None:
            spec = TensorSpec(spec.dtype, sizes, tuple(strides), self.device)
        self.nodes.append(node)
        self.specs[node.outputs[0]] = spec
        return Ref(node.outputs[0])

    def convert(self, x: Ref, dtype: torch.dtype, name: str | None = None) -> Ref:
        """`x` in `dtype`; no call where it is already, as in a recording."""
        return x if self.specs[x.name].dtype == dtype else self.call("to.dtype", x, dtype, dtype=dtype, name=name)

    def per_row(self, op: str, x: Ref, name: str | None = None) -> Ref:
        """A reduction of the last dimension, which stays, with size 1."""
        return self.call(op, x, (-1,), True, shape=(*self.specs[x.name].shape[:-1], 1), name=name)

    def compare(self, op: str, left: Ref, right: Leaf, name: str | None = None) -> Ref:
        """A comparison."""
        return self.call(op, left, right, dtype=torch.bool, name=name)

    def graph(self, *outputs: Ref) -> SubGraph:
        """What was written down."""
        return SubGraph(
            tuple(self.inputs), tuple(self.nodes), tuple(o.name for o in outputs), tuple(self.specs.items())
        )
