"""What one element of a SubGraph's value is, as a scalar expression over the inputs' elements.

A value is a function from index to expression, so fusing is inlining: views become index maps, pointwise operators
become arithmetic, a reduction becomes a `Reduce` node over the column index, a scan a `Scan` node. All knowledge of
operators comes from the operator table.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import sympy
import torch

from fusion.kernels.half_values import HalfValues
from fusion.kernels.sums import attention, product
from fusion.patterns import indexing, ops, scalar, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.extents import disagreement
from fusion.patterns.graph import SubGraph
from fusion.patterns.indexing import Extents, Index
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import Call, Kind, Operator, Run
from fusion.patterns.scalar import (
    COLUMN,
    HALF_TYPES,
    Load,
    Reduce,
    Reduced,
    Scalar,
    Scan,
    Size,
)
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim

# Joins and shifted views multiply: every level may ask for its operand at two indices. Past this many elements a kernel
# recomputes more than it saves.
LIMIT = 4096

DTYPES = (*HALF_TYPES, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, *scalar.NARROW_TYPES)


class Elements:
    """The elements of one SubGraph's values.

    Args:
        graph: the SubGraph.
        rows: extents of the row indices by name.
        eager: whether every operator's result is rounded to its dtype, or intermediates stay in float32.

    Raises:
        LoweringError: "not_fusable", "operator_use" or "dtype", for a call no kernel can hold.
    """

    def __init__(self, graph: SubGraph, rows: Mapping[str, Dim], *, eager: bool) -> None:
        self.graph = graph
        self.rows = rows
        self.eager = eager
        self.reduced_at: list[Index] = []  # the row index of every reduction that was built
        self._conditional = 0  # in how many element rows the element being built may be one case
        self._memo: dict[tuple[str, Index, Dim], Scalar] = {}
        self._loads: dict[tuple[str, Dim], Load] = {}
        self._row_results: dict[tuple[str, Index], tuple[tuple[Scalar, ...], tuple[Scalar, ...], Scalar]] = {}
        self._halves = HalfValues()

    def at(self, name: str, index: Index, column: Dim) -> Scalar:
        """The element of `name` at `index`, which may name the column index, running to `column`.

        Raises:
            LoweringError: "reduction_in_column", "reduction_in_join", "scan_index", "dtype", "index", "too_large".
        """
        key = (name, index, column)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= LIMIT:
                raise LoweringError(
                    "too_large",
                    f"The region needs more than {LIMIT} different elements of its values per result.",
                    remedy="Make several kernels of it, each of fewer operators.",
                )
            found = self._memo[key] = self._build(name, index, column)
        return found

    def _build(self, name: str, index: Index, column: Dim) -> Scalar:
        node = self.graph.producer.get(name)
        if node is None:
            return self._load(name, index)
        row, call = ops.row_of(node.op), ops.call_of(node, self.graph.spec)
        if row.kind is Kind.VIEW:
            assert row.index is not None
            operand = row.index(call, index, self._extents(column), node.outputs.index(name))
            return self.at(node.refs[0], operand, column)
        if row.kind is Kind.ELEMENT:
            return self.rounded(self._element(node, row, call, index, column), call.outputs[0].dtype)
        if row.kind is Kind.PRODUCT:
            return self.rounded(self._product(node, row, call, index), call.outputs[0].dtype)
        if row.kind is Kind.REDUCTION:
            dtype = self.graph.spec[name].dtype
            return self.rounded(self._reduction(node, row, name, index, column), dtype)
        return self.rounded(self._pointwise(node, row, call, index, column), call.outputs[0].dtype)

    def _extents(self, column: Dim) -> Extents:
        return {**self.rows, COLUMN: column}

    def _load(self, name: str, index: Index) -> Load:
        spec = self.graph.spec[name]
        offset = indexing.offset(index, spec.strides)
        load = self._loads.get((name, offset))
        if load is None:
            load = Load(scalar.compute_type(spec.dtype), name, offset, spec.dtype)
            self._loads[name, offset] = load
        return load

    def rounded(self, x: Scalar, dtype: torch.dtype) -> Scalar:
        """`x` as a value of `dtype` inside the kernel."""
        if dtype not in HALF_TYPES:
            return scalar.round_to(x, dtype)
        return scalar.round_to(x, dtype) if self.eager and not self.exact(x, dtype) else scalar.cast(x, torch.float32)

    def exact(self, x: Scalar, dtype: torch.dtype) -> bool:
        """Whether `x` is a value of the half-precision `dtype` already, so that rounding would change nothing."""
        return self._halves.holds(x, dtype)

    def _pointwise(self, node: OpNode, row: Operator, call: Call, index: Index, column: Dim) -> Scalar:
        result = call.outputs[0]
        positional, named = _schema(node.op)
        compared = _promoted(node, row, self.graph.spec, positional) if result.dtype is torch.bool else None

        dtype = compared or result.dtype
        on_cpu = self.eager and result.device == "cpu"
        narrowed = compared is not None or (row.narrows and on_cpu)

        def operand(leaf: Any, numeric: bool, position: int = -1) -> Any:
            if isinstance(leaf, Ref):
                wanted = None if position in row.unpromoted else dtype
                wide = on_cpu and compared is None and position == row.wide and not self.graph.spec[leaf.name].shape
                return self._operand(leaf.name, result, wanted, index, column, wide=wide)
            return self._number(leaf, dtype, narrowed) if numeric else leaf

        assert row.expression is not None
        args = [operand(a, n, k) for k, (a, n) in enumerate(zip(node.args, positional, strict=False))]
        kwargs = {k: operand(v, named[k]) for k, v in node.kwargs}
        return row.expression(*args, **kwargs, **({"result": result.dtype} if row.typed else {}))

    def _operand(
        self, name: str, result: TensorSpec, dtype: torch.dtype | None, index: Index, column: Dim, *, wide: bool
    ) -> Scalar | None:
        """An operand's element in the dtype the operator computes in, or in its own where `dtype` is None.

        torch converts operands to the result's dtype before it computes, but for a 0-d one that is taken `wide`.
        None for an operand that does not broadcast to the result: one of which only the dtype is read.
        """
        spec = self.graph.spec[name]
        if not _broadcasts(spec.shape, result.shape):
            return None
        x = self.at(name, indexing.broadcast_index(index, result.shape, spec.shape), column)
        if dtype is None:
            return x
        if dtype != spec.dtype and not wide:
            x = self.rounded(x, dtype)
        return scalar.cast(x, scalar.compute_type(dtype))

    def _number(self, leaf: Any, dtype: torch.dtype, narrowed: bool) -> Any:
        compute = scalar.compute_type(dtype)
        if isinstance(leaf, (bool, int, float)):
            value = torch.tensor(leaf, dtype=dtype).item() if narrowed and dtype in HALF_TYPES else leaf
            if type(leaf) is int and dtype in scalar.NARROW_TYPES:
                value = torch.tensor(leaf).to(dtype).item()  # -1 is 255 where there is no sign
            return scalar.constant(value, compute)
        return Size(compute, leaf) if isinstance(leaf, sympy.Expr) else leaf

    def _element(self, node: OpNode, row: Operator, call: Call, index: Index, column: Dim) -> Scalar:
        dtype = call.outputs[0].dtype

        def read(number: int, at: Index) -> Scalar:
            self._conditional += 1
            x = self.at(node.refs[number], at, column)
            self._conditional -= 1
            x = x if call.inputs[number].dtype == dtype else self.rounded(x, dtype)
            return scalar.cast(x, scalar.compute_type(dtype))

        assert row.element is not None
        return row.element(call, index, self._extents(column), read)

    def _product(self, node: OpNode, row: Operator, call: Call, index: Index) -> Scalar:
        if self._conditional or any(s.name == COLUMN for s in symbols.free_symbols(index)):
            raise LoweringError(
                "reduction_in_column",
                f"The result of {node.op} is needed for every column, so it would be computed again for each.",
                remedy="Cut the region at this operator.",
            )
        apart = disagreement(node, self.graph)
        if apart is not None:
            sizes = " and ".join(map(symbols.render, apart))
            raise LoweringError("operator_use", f"{node.op} needs the sizes {sizes} to be equal, which is not known.")
        if row.attention is not None:
            return attention(self.at, node, row, call, index)
        self.reduced_at.append(index)
        return product(self.at, node, row, call, index)

    def _reduction(self, node: OpNode, row: Operator, name: str, index: Index, column: Dim) -> Scalar:
        call = ops.call_of(node, self.graph.spec)
        assert row.dims is not None
        number, dims, rank = node.outputs.index(name), row.dims(call), len(call.inputs[0].shape)
        full = row.keeps and number == 0
        apart = full or len(call.outputs[number].shape) == rank  # the reduced dimensions are in the index
        at = tuple(i for d, i in enumerate(index) if d not in dims) if apart else index
        slots, inner, expression = self._over_run(node, row, call, number, at, dims)
        position = tuple(index[d] for d in dims) if full else ()
        if any(isinstance(n, Scan) for n in scalar.walk(expression)):
            self._check_scan(node, position)
        outer = self._run_elements(node, call, dims, (index, position), column) if full else inner

        def replaced(leaf: Scalar, by: tuple[Scalar, ...]) -> Scalar | None:
            return next((x for slot, x in zip(slots, by, strict=True) if slot is leaf), None)

        def fill(leaf: Scalar) -> Scalar | None:
            if isinstance(leaf, (Reduce, Scan)):  # a slot inside is the element at the reduction's own column
                return scalar.rebuild(leaf, lambda x: replaced(x, inner), inside)
            return replaced(leaf, outer)

        inside: dict[int, Scalar] = {}
        return scalar.rebuild(expression, fill)

    def _over_run(
        self, node: OpNode, row: Operator, call: Call, number: int, at: Index, dims: tuple[int, ...]
    ) -> tuple[tuple[Scalar, ...], tuple[Scalar, ...], Scalar]:
        """Slots for the elements of `Run`, those elements at the column, and the result over the slots.

        `at` is the index over the dimensions that are not reduced.
        """
        if any(s.name == COLUMN for s in symbols.free_symbols(at)):
            raise LoweringError(
                "reduction_in_column",
                f"The result of {node.op} is needed for every column, so it would be computed again for each.",
                remedy="Cut the region at this operator.",
            )
        found = self._row_results.get((node.outputs[number], at))
        if found is None:
            shape = call.inputs[0].shape
            kept = [d for d in range(len(shape)) if d not in dims]
            if self._conditional and not self._inside(at, tuple(shape[d] for d in kept)):
                raise LoweringError(
                    "reduction_in_join",
                    f"{node.op} makes rows of a part of a cat; before it is known which part a row belongs to, it "
                    "would read outside its operand.",
                    remedy="Cut the region at the cat.",
                )
            self.reduced_at.append(at)
            sizes = tuple(shape[d] for d in dims)
            extent = symbols.product(sizes)
            column = symbols.index_symbol(COLUMN)
            position = indexing.delinearize(column, sizes, {COLUMN: extent})
            whole: dict[int, Dim] = {**dict(zip(kept, at, strict=True)), **dict(zip(dims, position, strict=True))}
            index = tuple(whole[d] for d in range(len(shape)))
            inner = self._run_elements(node, call, dims, (index, position), extent)
            slots = tuple(Reduced(x.dtype, "slot") for x in inner)
            assert row.expression is not None
            expression = row.expression(call, Run(slots[0], slots[1], slots[2:], extent), number)
            found = self._row_results[node.outputs[number], at] = (slots, inner, expression)
        return found

    def _run_elements(
        self, node: OpNode, call: Call, dims: tuple[int, ...], where: tuple[Index, Index], column: Dim
    ) -> tuple[Scalar, ...]:
        """The element of the operand at an index, its position in the reduced dimensions, and the other operands'."""
        (index, position), shape = where, call.inputs[0].shape
        given = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, torch.dtype)]
        index = tuple(0 if isinstance(n, int) and n == 1 else i for i, n in zip(index, shape, strict=True))
        x = self.at(node.refs[0], index, column)
        x = scalar.cast(self.rounded(x, given[0]), scalar.compute_type(given[0])) if given else x
        others = tuple(
            self.at(name, indexing.broadcast_index(index, shape, spec.shape), column)
            for name, spec in zip(node.refs[1:], call.inputs[1:], strict=True)
        )
        linear = indexing.linearize(position, tuple(shape[d] for d in dims))
        return (x, Size(torch.int64, indexing.joined(linear)), *others)

    def _check_scan(self, node: OpNode, position: Index) -> None:
        """A scan stands at the kernel's own column, and is there for all columns."""
        if self._conditional or position != (symbols.index_symbol(COLUMN),):
            raise LoweringError(
                "scan_index",
                f"The result of {node.op} is read at {position}, which is not the column the kernel runs over.",
                remedy="Cut the region at this operator.",
            )

    def _inside(self, index: Index, shape: tuple[Dim, ...]) -> bool:
        """Whether the row indices provably stay inside the tensor, whatever a join selects."""
        pairs = list(zip(index, shape, strict=False))
        return all(indexing.reaches(i, 0, self.rows) and indexing.below(i, size, self.rows) for i, size in pairs)


def check_calls(graph: SubGraph) -> None:
    """Whether one kernel can hold every call of `graph`.

    Raises:
        LoweringError: "not_fusable", "operator_use", "dtype" or "device".
    """
    for node in graph.nodes:
        row = ops.lookup(node.op)
        if row is None or row.kind in (Kind.LIBRARY, Kind.EFFECT):
            raise LoweringError("not_fusable", f"{node.op} has no element-wise definition.", remedy="It runs eagerly.")
        reason = row.covers(ops.call_of(node, graph.spec))
        if reason is not None:
            raise LoweringError("operator_use", f"{node.op}: {reason}.", remedy="It runs eagerly.")
    for name, spec in graph.specs:
        if spec.dtype not in DTYPES:
            raise LoweringError("dtype", f"The value {name} is {spec.text()}; kernels hold no {spec.dtype}.")
    devices = {spec.device for _, spec in graph.specs}
    if len(devices) > 1:
        raise LoweringError("device", f"The region's values live on {sorted(devices)}, a kernel runs on one device.")


def _broadcasts(shape: tuple[Dim, ...], to: tuple[Dim, ...]) -> bool:
    if len(shape) > len(to):
        return False
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return not any(isinstance(a, int) and isinstance(b, int) and a not in (1, b) for a, b in pairs)


@functools.cache
def _schema(op: str) -> tuple[tuple[bool, ...], dict[str, bool]]:
    """Which arguments of `op` are numbers to compute with (not flags or names), by position and by name."""
    arguments = ops.resolve(op)._schema.arguments
    numeric = {a.name: any(kind in str(a.type) for kind in ("Tensor", "number")) for a in arguments}
    return tuple(numeric.values()), numeric


def _promoted(node: OpNode, row: Operator, spec: Mapping[str, TensorSpec], numeric: tuple[bool, ...]) -> torch.dtype:
    """The dtype torch compares `node`'s operands in (c10's promotion: dimensions before 0-d before numbers)."""
    leaves = [a for k, (a, n) in enumerate(zip(node.args, numeric, strict=False)) if n and k not in row.unpromoted]
    tensors = [spec[a.name] for a in leaves if isinstance(a, Ref)]
    numbers = [_number_type(a) for a in leaves if isinstance(a, (bool, int, float, sympy.Expr))]
    ranks = [[s.dtype for s in tensors if s.shape], [s.dtype for s in tensors if not s.shape], numbers]
    promoted: torch.dtype | None = None
    for dtypes in ranks:
        for dtype in dtypes[:1]:
            widest = functools.reduce(torch.promote_types, dtypes[1:], dtype)
            promoted = widest if promoted is None else _combined(promoted, widest)
    return promoted or torch.bool


def _number_type(number: Any) -> torch.dtype:
    if isinstance(number, bool):
        return torch.bool
    return torch.float32 if isinstance(number, float) else torch.int64


def _combined(higher: torch.dtype, lower: torch.dtype) -> torch.dtype:
    """Only a wider kind of number (bool, integer, floating) in a lower rank changes the dtype."""
    if higher.is_floating_point or (higher is not torch.bool and not lower.is_floating_point):
        return higher
    return torch.promote_types(higher, lower)
