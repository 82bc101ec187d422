"""What a region is expected to gain: an estimate in microseconds, from sizes and a few constants per device.

It ranks choices that are all legal: whether a value is stored once or computed again where it is read, and which
regions become one kernel. Measurement has the last word, so a constant has to be right to within a factor of a few.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fusion.patterns import ops, scalar, symbols
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref, map_leaves
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import Kind, Operator
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.scalar import Apply, Load, Reduce, Scalar
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim

# The instruction footprint of one kernel. Past this many operators a kernel's body leaves the instruction cache and the
# registers, its expression is deep, and a compiler takes seconds for it; two kernels cost one launch more.
MOST_OPERATORS = 64
# Matrix products of one kernel: each has sums of its own in the first cache while a block of them is stored.
MOST_PRODUCTS = 3
# Memory streams of one kernel: inputs and outputs. Prefetchers follow some 32 streams, and each output is allocated.
MOST_VALUES = 32

# Regions are bundled where each one's work takes at most this many times what a launch costs. Above it there is little
# to save, and on a GPU the parts' programs would share the registers and warps of the neediest one.
_LAUNCHES_OF_WORK = 4

_UNKNOWN_SIZE = 256  # stands for a size symbol that the recorded call did not tell

# Simple vector operations that a primitive is worth; those not named count as one.
_WEIGHTS: dict[str, int] = {
    "exp": 12, "expm1": 16, "log": 14, "log1p": 16, "sin": 16, "cos": 16, "tanh": 20, "erf": 20, "pow": 30,
    "div": 4, "fmod": 8, "sqrt": 4, "rsqrt": 6,
}  # fmt: skip
_ELEMENT_WEIGHT = 4  # index arithmetic and a choice between operands
_ROW_WEIGHT = 24  # passes over a row


@dataclass(frozen=True, slots=True)
class Device:
    """Constants of a device, in microseconds and per microsecond.

    Attributes:
        operator_us: one eager operator called from a plan, without its work.
        kernel_us: one fused kernel called from a plan, without its work.
        bytes_per_us: memory bandwidth for data that may lie in a cache.
        operations_per_us: simple element-wise operations.
        lone_operators: whether one operator alone gains by becoming a kernel, through a cheaper call.
        products: whether kernels may hold matrix products.
        attention: whether they may hold attention.
    """

    operator_us: float
    kernel_us: float
    bytes_per_us: float
    operations_per_us: float
    lone_operators: bool
    products: bool
    attention: bool


# CPU: `torch.add` on small tensors takes 2 to 3 us through the dispatcher, the native launcher 0.8 us with its output
# allocated; 20 GB/s and 8 lanes at 3 to 4 GHz are one core's. CUDA: launching takes 4 to 5 us of the host's time
# either way; 2 TB/s and 20 T operations/s lie between an A100 and an H100.
DEVICES: dict[str, Device] = {
    "cpu": Device(2.5, 0.8, 2e4, 3e4, lone_operators=True, products=True, attention=True),
    "cuda": Device(5.0, 4.0, 2e6, 2e7, lone_operators=False, products=True, attention=False),
}


def device(name: str) -> Device:
    """The constants of a device type; an unknown one counts as a GPU."""
    return DEVICES.get(name, DEVICES["cuda"])


@dataclass(frozen=True, slots=True)
class Estimate:
    """What running a region as one kernel is expected to change.

    Attributes:
        launches_saved: calls of operators that go away, less the kernel's own.
        bytes_before, bytes_after: bytes moved by the operators one by one, and by the kernel.
        operations: simple operations of the kernel, those computed again included.
        operators, values: calls that compute, and tensors read and written: the footprint.
        work_us: the kernel's time without its launch.
        saved_us: expected gain.
    """

    launches_saved: int
    bytes_before: int
    bytes_after: int
    operations: int
    operators: int
    values: int
    work_us: float
    saved_us: float


def estimate(graph: SubGraph, values: Mapping[str, int]) -> Estimate:
    """The estimate for a region.

    Args:
        graph: the region.
        values: size symbols' values; one that is missing counts as some hundreds.
    """
    computing = [n for n in graph.nodes if ops.kind_of(n.op) is not Kind.VIEW]
    constants = device(graph.spec[graph.outputs[0]].device)
    sizes = Sizes(values)
    spec = graph.spec
    before = sum(sizes.bytes(spec[name]) for n in computing for name in (*dict.fromkeys(n.refs), *n.outputs))
    after = sum(sizes.bytes(spec[name]) for name in (*graph.inputs, *graph.outputs))
    operations = sum(_operations(part, sizes) for part in graph.parts)
    eager = len(computing) * constants.operator_us + before / constants.bytes_per_us
    multiplied = sum(_multiplications(n, spec, sizes) for n in computing) / constants.operations_per_us
    eager += multiplied
    work = multiplied + max(after / constants.bytes_per_us, operations / constants.operations_per_us)
    return Estimate(
        len(computing) - 1,
        before,
        after,
        operations,
        len(computing),
        len(graph.inputs) + len(graph.outputs),
        work,
        eager - constants.kernel_us - work,
    )


def multiplies_on(device_type: str, row: Operator) -> bool:
    """Whether kernels of a device may hold a row of matrix products, or of attention."""
    costs = device(device_type)
    return costs.products if row.attention is None else costs.attention


def _multiplications(node: OpNode, spec: Mapping[str, TensorSpec], sizes: Sizes) -> int:
    """Multiplications of a matrix product, which libraries and kernels both take their time for; 0 for other calls."""
    row, made = ops.row_of(node.op), spec[node.outputs[0]].shape
    call, index = ops.call_of(node, dict(spec)), (0,) * len(made)
    if row.attention is not None:
        return 2 * sizes.elements(made) * sizes.size(row.attention(call, index, 0, 0).places)
    return 0 if row.contraction is None else sizes.elements(made) * sizes.size(row.contraction(call, index, 0).extent)


def products_us(graph: RecordedGraph, values: Mapping[str, int]) -> float:
    """What torch is expected to take for those matrix products of a recording that kernels can hold.

    Args:
        graph: the recording.
        values: as in `estimate`.
    """
    sizes, spec, total = Sizes(values), dict(graph.spec), 0.0
    for node in graph.nodes:
        if not isinstance(node, OpNode) or ops.kind_of(node.op) is not Kind.PRODUCT:
            continue
        row, constants = ops.row_of(node.op), device(spec[node.outputs[0]].device)
        if multiplies_on(spec[node.outputs[0]].device, row) and row.covers(ops.call_of(node, spec)) is None:
            moved = sum(sizes.bytes(spec[name]) for name in (*node.refs, *node.outputs))
            multiplied = _multiplications(node, spec, sizes) / constants.operations_per_us
            total += constants.operator_us + max(moved / constants.bytes_per_us, multiplied)
    return total


def _operations(part: SubGraph, sizes: Sizes) -> int:
    """Simple operations of one loop nest: what is computed for an output runs over all of its elements."""
    spec = part.spec
    space = max((sizes.elements(spec[name].shape) for name in part.outputs), default=1)
    return sum(
        weight(n, spec) * max(space, sizes.elements(spec[n.outputs[0]].shape))
        for n in part.nodes
        if ops.kind_of(n.op) is not Kind.VIEW
    )


def is_launch_bound(graph: SubGraph, values: Mapping[str, int]) -> bool:
    """Whether a region's kernel does so little that launching it is a good part of its time.

    Args:
        graph: the region.
        values: as in `estimate`.
    """
    constants = device(graph.spec[graph.outputs[0]].device)
    return estimate(graph, values).work_us <= _LAUNCHES_OF_WORK * constants.kernel_us


class Sizes:
    """Elements and bytes of tensors at given values of the size symbols.

    Args:
        values: the symbols' values by name.
    """

    def __init__(self, values: Mapping[str, int]) -> None:
        self.values = values
        self._dims: dict[Dim, int] = {}
        self._elements: dict[tuple[Dim, ...], int] = {}

    def size(self, dim: Dim) -> int:
        """The value of one size."""
        if isinstance(dim, int):
            return dim
        known = self._dims.get(dim)
        if known is None:
            names = {s.name: self.values.get(s.name, _UNKNOWN_SIZE) for s in dim.free_symbols}
            known = self._dims[dim] = max(symbols.evaluate(dim, names), 0)
        return known

    def elements(self, shape: tuple[Dim, ...]) -> int:
        """How many elements a tensor of `shape` has."""
        known = self._elements.get(shape)
        if known is None:
            known = self._elements[shape] = math.prod(map(self.size, shape))
        return known

    def bytes(self, spec: TensorSpec) -> int:
        """The memory a tensor covers; what is expanded counts once."""
        pairs = zip(spec.shape, spec.strides, strict=True)
        shape = tuple(d for d, s in pairs if not (isinstance(s, int) and s == 0))
        return self.elements(shape) * spec.dtype.itemsize


def weight(node: OpNode, spec: Mapping[str, TensorSpec]) -> int:
    """Simple operations that one element of a call's result takes, from the operator table's expression."""
    row = ops.lookup(node.op)
    if row is None or row.kind is Kind.VIEW:
        return 0
    if row.kind is Kind.REDUCTION:
        return _ROW_WEIGHT
    if row.kind is Kind.PRODUCT:
        return 1
    if row.kind is not Kind.POINTWISE or row.expression is None:
        return _ELEMENT_WEIGHT
    kinds = tuple(spec[name].dtype for name in node.refs)
    return _pointwise_weight(node.op, _shapeless(node.args), tuple((k, _shapeless(v)) for k, v in node.kwargs), kinds)


def _shapeless(tree: Any) -> Any:
    """Arguments with value names left out, so that equal uses of an operator are weighed once."""
    return map_leaves(lambda leaf: Ref("") if isinstance(leaf, Ref) else leaf, tree)


@functools.lru_cache(maxsize=4096)
def _pointwise_weight(op: str, args: Any, kwargs: tuple[tuple[str, Any], ...], dtypes: tuple[torch.dtype, ...]) -> int:
    row = ops.row_of(op)
    operands = iter(dtypes)

    def operand(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            dtype = next(operands)
            return Load(scalar.compute_type(dtype), "", 0, dtype)
        if isinstance(leaf, (bool, int, float)) and dtypes:
            return scalar.constant(leaf, scalar.compute_type(dtypes[0]))
        return leaf

    assert row.expression is not None
    try:
        made = row.expression(*map_leaves(operand, args), **{k: map_leaves(operand, v) for k, v in kwargs})
    except Exception:  # a use that needs what only lowering knows, which then says what is wrong
        return _ELEMENT_WEIGHT
    return max(1, sum(_primitive(n) for n in scalar.walk(made))) if isinstance(made, Scalar) else 1


def _primitive(node: Scalar) -> int:
    if isinstance(node, Apply):
        return _WEIGHTS.get(node.fn, 1)
    return _ROW_WEIGHT if isinstance(node, Reduce) else 0
