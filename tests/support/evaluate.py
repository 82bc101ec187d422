"""A LoopNest's meaning, in numpy: the tier that needs no compiler and no device.

Independent of both emitters and of torch's operators. It also checks what no emitted kernel can: every load lies inside
its tensor wherever its value counts, and every output element is written exactly once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from fusion.kernels.bundle import Nest, parts_of
from fusion.kernels.loops import LoopNest, Output, Reduction
from fusion.patterns import symbols
from fusion.patterns.scalar import COLUMN, Apply, Constant, Load, Reduced, Scalar, Scanned, Select, Size, identity
from fusion.patterns.symbols import Dim

Array = np.ndarray

_TYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.bool: np.bool_,
}
_DIM: dict[type, Callable[[Array, Array], Array]] = {
    sympy.Add: np.add,
    sympy.Mul: np.multiply,
    sympy.Pow: np.power,
    FloorDiv: lambda a, b: np.sign(a) * (np.abs(a) // b),
    Mod: np.fmod,
    Max: np.maximum,
    Min: np.minimum,
}
_REDUCE = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def evaluate(nest: Nest, *inputs: torch.Tensor, given: Sequence[int] = ()) -> tuple[torch.Tensor, ...]:
    """What the kernel makes of `inputs`; `given` are the sizes no input shows, in order.

    Raises:
        AssertionError: a load outside its tensor, or an output element not written exactly once.
    """
    sizes = _sizes(nest, inputs, given)
    memory = {a.name: _flat(t) for a, t in zip(nest.inputs, inputs, strict=True)}
    outputs = {o.name: _Buffer(o, sizes) for o in nest.outputs}
    with np.errstate(all="ignore"):
        for part in parts_of(nest):
            _run(part, sizes, memory, outputs)
    return tuple(outputs[o.name].tensor() for o in nest.outputs)


def _run(nest: LoopNest, sizes: Mapping[str, int], memory: Mapping[str, Array], outputs: Mapping[str, _Buffer]) -> None:
    rank = len(nest.rows) + 1
    at: dict[str, Array] = {}
    for k, axis in enumerate(nest.rows):
        at[axis.name] = _steps(symbols.evaluate(axis.extent, sizes), k, rank)
    reduced: dict[str, Array] = {}
    scans = {r.name: r for r in nest.reductions if r.running}

    def over(extent: Dim) -> _Expressions:
        column = _steps(symbols.evaluate(extent, sizes), rank - 1, rank)
        return _Expressions({**sizes, **at, COLUMN: column}, memory, reduced, scans)

    for r in nest.reductions:
        if r.running:
            continue  # computed where it is read, over the columns of that loop
        scope = over(r.extent)
        body = scope.spread(scope.of(r.body))
        start = identity(r.fn, r.body.dtype)
        made = _REDUCE[r.fn].reduce(body, axis=-1, keepdims=True, initial=start, dtype=_wide(r.fn, body))
        reduced[r.name] = made.astype(body.dtype)
    for store in nest.stores:
        scope = over(1 if store.per_row or nest.column is None else nest.column.extent)
        outputs[store.output].write(scope.spread(scope.dim(store.offset)), scope.spread(scope.of(store.value)))


def _wide(fn: str, body: Array) -> np.dtype:
    """The dtype of partial results: sums of float32 in double, so that the order does not matter."""
    return np.dtype(np.float64) if body.dtype == np.float32 and fn in ("sum", "prod") else body.dtype


def _sizes(nest: Nest, inputs: Sequence[torch.Tensor], given: Sequence[int]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for s in nest.sizes:
        if s.source == "given":
            sizes[s.symbol] = given[s.argument]
        else:
            tensor = inputs[s.argument]
            sizes[s.symbol] = tensor.shape[s.dim] if s.source == "shape" else tensor.stride(s.dim)
    return sizes


def _flat(tensor: torch.Tensor) -> Array:
    """The memory a tensor reaches, from its first element on; halves exactly as float32."""
    reach = (
        0 if tensor.numel() == 0 else 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    )
    flat = tensor.as_strided((reach,), (1,))
    return (flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat).numpy()


def _steps(extent: int, axis: int, rank: int) -> Array:
    return np.arange(extent, dtype=np.int64).reshape([extent if k == axis else 1 for k in range(rank)])


@dataclass
class _Expressions:
    """Values of expressions at all loop indices at once."""

    names: Mapping[str, int | Array]
    memory: Mapping[str, Array]
    reduced: Mapping[str, Array]
    scans: Mapping[str, Reduction]
    memo: dict[tuple[int, int], Array] = field(default_factory=dict)
    conditions: list[Array] = field(default_factory=lambda: [np.array(True)])

    def spread(self, x: Array) -> Array:
        """`x` at every point of the space."""
        arrays = [a for a in self.names.values() if isinstance(a, np.ndarray)]
        return np.broadcast_to(x, np.broadcast_shapes(*(a.shape for a in arrays)))

    def dim(self, dim: Dim) -> Array:
        """The value of a size or index expression, divided as emitted code divides: with truncation."""
        if isinstance(dim, int) or dim.is_Integer:
            return np.asarray(int(dim), dtype=np.int64)
        if isinstance(dim, sympy.Symbol):
            return np.asarray(self.names[dim.name], dtype=np.int64)
        return functools.reduce(_DIM[type(dim)], [self.dim(part) for part in dim.args])

    def of(self, node: Scalar, condition: int = 0) -> Array:
        """The value of `node`, which counts where condition number `condition` holds."""
        key = (id(node), condition)
        if key not in self.memo:
            value = np.asarray(self._value(node, condition))
            assert value.dtype == _TYPES[node.dtype], f"{node} has dtype {value.dtype}"
            self.memo[key] = value
        return self.memo[key]

    def _value(self, node: Scalar, condition: int) -> Array:
        kind = _TYPES[node.dtype]
        match node:
            case Constant(value=value):
                return np.asarray(value, dtype=kind)
            case Size(dim=dim):
                return self.dim(dim).astype(kind)
            case Reduced(name=name):
                return self.reduced[name]
            case Scanned(name=name):
                body = self.spread(self.of(self.scans[name].body, condition))
                return (
                    _REDUCE[self.scans[name].fn].accumulate(body, axis=-1, dtype=_wide("sum", body)).astype(body.dtype)
                )
            case Load(argument=argument, offset=offset):
                return self._load(self.memory[argument], self.dim(offset), condition).astype(kind)
            case Select(index=index, bounds=bounds, cases=cases):
                return self._select(self.dim(index), [self.dim(b) for b in bounds], cases, condition)
            case Apply(fn="cast", args=(x,)):
                value = self.of(x, condition)
                return value != 0 if node.dtype is torch.bool else value.astype(kind)
            case Apply(fn=fn, args=args):
                return _apply(fn, [self.of(a, condition) for a in args])
        raise AssertionError(f"{node} has no value")

    def _load(self, memory: Array, offset: Array, condition: int) -> Array:
        inside = (offset >= 0) & (offset < len(memory))
        assert np.all(inside | ~self.conditions[condition] | self._nowhere), "a load outside its tensor"
        return memory[np.where(inside, offset, 0)] if len(memory) else np.zeros(offset.shape, memory.dtype)

    @property
    def _nowhere(self) -> bool:
        return self.spread(np.array(0)).size == 0

    def _select(self, index: Array, bounds: list[Array], cases: tuple[Scalar, ...], condition: int) -> Array:
        result: Array | None = None
        left = self.conditions[condition]
        chosen: list[tuple[Array, Array]] = []
        for bound, case in zip([*bounds, None], cases, strict=True):
            here = left if bound is None else left & (index < bound)
            left = left if bound is None else left & ~(index < bound)
            self.conditions.append(here)
            chosen.append((here, self.of(case, len(self.conditions) - 1)))
        for here, value in reversed(chosen):
            result = value if result is None else np.where(here, value, result)
        assert result is not None
        return result


def _apply(fn: str, args: list[Array]) -> Array:
    kind = args[-1].dtype.type
    if fn in _BINARY or fn in ("max", "min"):
        assert args[0].dtype == args[1].dtype, f"{fn} of {args[0].dtype} and {args[1].dtype}"
    if fn == "where":
        assert args[0].dtype == np.bool_ and args[1].dtype == args[2].dtype
        return np.where(*args)
    if fn == "fma":  # the product of two float32 is exact in double; of doubles this rounds twice
        return (args[0].astype(np.float64) * args[1] + args[2]).astype(kind)
    if fn == "rsqrt":
        return kind(1) / np.sqrt(args[0])
    if fn == "erf":
        return np.vectorize(math.erf, otypes=[np.float64])(args[0]).astype(kind)
    return {**_UNARY, **_BINARY}[fn](*args)


def shifted_left(x: Array, by: Array) -> Array:
    """x << by; 0 where that shifts by a number outside the bits."""
    inside = (by >= 0) & (by < 8 * by.dtype.itemsize)
    return np.where(inside, x << np.where(inside, by, 0), 0).astype(x.dtype)


def shifted_right(x: Array, by: Array) -> Array:
    """x >> by; only the sign's bits where that shifts by a number outside the bits."""
    last = 8 * by.dtype.itemsize - 1
    return (x >> np.where((by >= 0) & (by <= last), by, last)).astype(x.dtype)


def _round_bfloat16(x: Array) -> Array:
    """To nearest, ties to even, on the bits: half of the last kept bit is added, less one where that bit is 0."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(x), x, rounded)


_UNARY: dict[str, Callable[..., Array]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "floor": np.floor, "ceil": np.ceil,
    "trunc": np.trunc, "round": np.round, "not": np.logical_not, "isnan": np.isnan,
    "wrap_int8": lambda x: x.astype(np.int8).astype(np.int32), "wrap_uint8": lambda x: x & np.int32(255),
    "wrap_int16": lambda x: x.astype(np.int16).astype(np.int32),
    "round_bfloat16": _round_bfloat16, "round_float16": lambda x: x.astype(np.float16).astype(np.float32),
}  # fmt: skip
_BINARY: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "fmod": np.fmod,
    "max": np.maximum, "min": np.minimum, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "atan2": np.arctan2, "shl": shifted_left, "shr": shifted_right,
}  # fmt: skip


class _Buffer:
    """An output's memory."""

    def __init__(self, output: Output, sizes: Mapping[str, int]) -> None:
        self.dtype = output.dtype
        self.shape = [symbols.evaluate(d, sizes) for d in output.shape]
        self.strides = [symbols.evaluate(d, sizes) for d in output.strides]
        self.values = np.zeros(math.prod(self.shape), dtype=object)
        self.written = np.zeros(math.prod(self.shape), dtype=np.int64)

    def write(self, offset: Array, value: Array) -> None:
        self.values = self.values.astype(value.dtype)
        self.values[offset.ravel()] = value.ravel()
        np.add.at(self.written, offset.ravel(), 1)

    def tensor(self) -> torch.Tensor:
        assert np.all(self.written == 1), "an output element is not written exactly once"
        flat = torch.from_numpy(self.values)
        stored = flat.to(self.dtype)
        if flat.is_floating_point():
            assert torch.equal(stored.to(flat.dtype).nan_to_num(), flat.nan_to_num()), "a stored value is not rounded"
        return stored.as_strided(self.shape, self.strides)
