"""Scalar expressions: what one element of a value is, as a small tree both emitters print.

Nodes are immutable and shared (a node used twice is one object), so identity tells a common subexpression.
Every node has the dtype it computes in: float32, float64, int64, int32 or bool. A half-precision value is a
float32 that was rounded, `round_to(x, torch.bfloat16)`, and an 8 or 16 bit integer an int32 that was wrapped.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .symbols import Dim

HALF_TYPES = (torch.bfloat16, torch.float16)
NARROW_TYPES = (torch.int8, torch.int16, torch.uint8)
COMPUTE_TYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)

# Every primitive an emitter must be able to print: name -> number of operands.
PRIMITIVES: dict[str, int] = {
    "neg": 1, "abs": 1, "exp": 1, "expm1": 1, "log": 1, "log1p": 1, "sqrt": 1, "rsqrt": 1, "sin": 1, "cos": 1,
    "tanh": 1, "erf": 1, "floor": 1, "ceil": 1, "trunc": 1, "round": 1, "not": 1, "isnan": 1,
    "add": 2, "sub": 2, "mul": 2, "div": 2, "pow": 2, "fmod": 2, "atan2": 2,
    "shl": 2, "shr": 2,  # of integers; by a negative number or past the last bit, 0 or (shr) the sign's bits
    "max": 2, "min": 2,  # both hand NaN on, as torch does
    "lt": 2, "le": 2, "gt": 2, "ge": 2, "eq": 2, "ne": 2, "and": 2, "or": 2, "xor": 2,
    "where": 3,
    "fma": 3,  # of floats: a * b + c, rounded once
    "cast": 1,  # to the node's dtype
    "round_bfloat16": 1, "round_float16": 1,  # float32 -> nearest half, kept as float32
    "wrap_int8": 1, "wrap_int16": 1, "wrap_uint8": 1,  # int32 -> its lowest bits, kept as int32
}  # fmt: skip

# Reductions and scans: name -> the value of an empty one over floats; `identity` gives it for any dtype.
REDUCTIONS: dict[str, float] = {"sum": 0.0, "prod": 1.0, "max": float("-inf"), "min": float("inf")}
SCANS = ("sum", "prod")


@dataclass(frozen=True, slots=True, eq=False)
class Scalar:
    """Base of all nodes; arithmetic on nodes builds nodes."""

    dtype: torch.dtype

    def __add__(self, other: Scalar | float) -> Scalar:
        return apply("add", self, other)

    def __radd__(self, other: float) -> Scalar:
        return apply("add", other, self)

    def __sub__(self, other: Scalar | float) -> Scalar:
        return apply("sub", self, other)

    def __rsub__(self, other: float) -> Scalar:
        return apply("sub", other, self)

    def __mul__(self, other: Scalar | float) -> Scalar:
        return apply("mul", self, other)

    def __rmul__(self, other: float) -> Scalar:
        return apply("mul", other, self)

    def __truediv__(self, other: Scalar | float) -> Scalar:
        return apply("div", self, other)

    def __rtruediv__(self, other: float) -> Scalar:
        return apply("div", other, self)

    def __neg__(self) -> Scalar:
        return apply("neg", self)


@dataclass(frozen=True, slots=True, eq=False)
class Constant(Scalar):
    """A number, in the node's dtype."""

    value: float | int | bool


@dataclass(frozen=True, slots=True, eq=False)
class Size(Scalar):
    """A size or index expression as a number."""

    dim: Dim


@dataclass(frozen=True, slots=True, eq=False)
class Load(Scalar):
    """An element of an input, widened to the node's dtype.

    Attributes:
        argument: the input's name.
        offset: element offset from the input's first element, over loop indices and size symbols.
        storage: the dtype in memory.
    """

    argument: str
    offset: Dim
    storage: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Apply(Scalar):
    """A primitive applied to operands."""

    fn: str
    args: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Select(Scalar):
    """`cases[k]` for the first k with `index < bounds[k]`; the last case has no bound."""

    index: Dim
    bounds: tuple[Dim, ...]
    cases: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Scalar):
    """`fn` over `body` for the column index from 0 to `extent`; `body` names the column index as `COLUMN`."""

    fn: str
    body: Scalar
    extent: Dim


@dataclass(frozen=True, slots=True, eq=False)
class Scan(Scalar):
    """`fn` over `body` for the column index from 0 up to where it stands, inclusive; a value for every column.

    `extent` is how far the column may run. `halves`: the terms are stored in half precision, so that eager on a
    processor adds them up in float32, not in float64.
    """

    fn: str
    body: Scalar
    extent: Dim
    halves: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Dot(Scalar):
    """The sum over `body` for the index `INNER` from 0 to `extent`, at one column: a score of attention."""

    body: Scalar
    extent: Dim


@dataclass(frozen=True, slots=True, eq=False)
class Reduced(Scalar):
    """The result of a kernel's reduction called `name`; the same for every column of a row."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Scanned(Scalar):
    """The result of a kernel's scan called `name` at the column."""

    name: str


COLUMN = "j"  # the name of the column index in every expression
INNER = "c"  # the name of the index that a Dot sums over


def compute_type(storage: torch.dtype) -> torch.dtype:
    """The dtype arithmetic on `storage` runs in: float32 for halves, int32 for small integers, else itself."""
    if storage in HALF_TYPES:
        return torch.float32
    if storage in NARROW_TYPES:
        return torch.int32
    return storage


def constant(value: float | int | bool, dtype: torch.dtype) -> Constant:
    """A number as a node."""
    if dtype is torch.bool:
        return Constant(dtype, bool(value))
    return Constant(dtype, float(value) if dtype.is_floating_point else int(value))


def identity(fn: str, dtype: torch.dtype) -> float | int:
    """The value of an empty reduction in the compute dtype `dtype`: integers have a least and a greatest value."""
    value = REDUCTIONS[fn]
    if dtype.is_floating_point:
        return value
    if fn in ("max", "min"):
        return torch.iinfo(dtype).min if fn == "max" else torch.iinfo(dtype).max
    return int(value)


_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne", "not", "isnan")


def apply(fn: str, *operands: Scalar | float | int | bool) -> Scalar:
    """Builds `fn(operands)`; plain numbers take the dtype of the first node among them (of `where`: the last)."""
    typed = [o.dtype for o in operands if isinstance(o, Scalar)]
    dtype = typed[-1] if fn == "where" else typed[0]
    nodes = tuple(o if isinstance(o, Scalar) else constant(o, dtype) for o in operands)
    if len(nodes) != PRIMITIVES[fn]:
        raise TypeError(f"{fn} takes {PRIMITIVES[fn]} operands, not {len(nodes)}")
    return Apply(torch.bool if fn in _COMPARISONS else dtype, fn, nodes)


def cast(x: Scalar, dtype: torch.dtype) -> Scalar:
    """`x` converted to the compute dtype `dtype`."""
    if x.dtype == dtype:
        return x
    if isinstance(x, Constant):
        # A float32 is what is nearest to the number that it is written as.
        value = ctypes.c_float(x.value).value if x.dtype is torch.float32 else x.value
        if math.isfinite(value) or dtype.is_floating_point or dtype is torch.bool:
            return constant(value, dtype)
    return Apply(dtype, "cast", (x,))


def round_to(x: Scalar, storage: torch.dtype) -> Scalar:
    """`x` as it would be after a trip through memory as `storage`."""
    if storage is torch.uint8 and x.dtype.is_floating_point:
        x = cast(x, torch.int64)  # as c10/util/TypeCast.h does, so that negative numbers wrap
    x = cast(x, compute_type(storage))
    name = str(storage).removeprefix("torch.")
    if storage in HALF_TYPES:
        return _rounded(x, f"round_{name}")
    return _rounded(x, f"wrap_{name}") if storage in NARROW_TYPES and not _fits(x, storage) else x


def _fits(x: Scalar, storage: torch.dtype) -> bool:
    """Whether an integer is a value of `storage` already."""
    match x:
        case Load(storage=own):
            return own is storage or own is torch.bool
        case Constant(value=value):
            return torch.iinfo(storage).min <= value <= torch.iinfo(storage).max
        case _:
            return False


def _rounded(x: Scalar, fn: str) -> Scalar:
    if isinstance(x, Apply) and x.fn == fn:
        return x
    return Apply(x.dtype, fn, (x,))


def children(node: Scalar) -> tuple[Scalar, ...]:
    """The nodes an expression is built from directly."""
    match node:
        case Apply(args=args):
            return args
        case Select(cases=cases):
            return cases
        case Reduce(body=body) | Scan(body=body) | Dot(body=body):
            return (body,)
        case _:
            return ()


def walk(*roots: Scalar) -> Iterator[Scalar]:
    """Every node below `roots` once, children first."""
    seen: set[int] = set()
    waiting = list(reversed(roots))
    while waiting:
        node = waiting[-1]
        below = [] if id(node) in seen else [c for c in children(node) if id(c) not in seen]
        if below:
            waiting += below[::-1]
            continue
        waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node


def rebuild(root: Scalar, change: Callable[[Scalar], Scalar | None], memo: dict[int, Scalar] | None = None) -> Scalar:
    """`root` with nodes replaced: where `change` gives a node, that one stands; below None, children are rebuilt."""
    memo = {} if memo is None else memo

    def visit(node: Scalar) -> Scalar:
        if id(node) in memo:
            return memo[id(node)]
        made = change(node)
        if made is None:
            made = with_children(node, tuple(map(visit, children(node))))
        memo[id(node)] = made
        return made

    return visit(root)


def with_children(node: Scalar, parts: tuple[Scalar, ...]) -> Scalar:
    """`node` over other children; itself where they are the same objects."""
    if all(a is b for a, b in zip(parts, children(node), strict=True)):
        return node
    match node:
        case Apply():
            return Apply(node.dtype, node.fn, parts)
        case Select():
            return Select(node.dtype, node.index, node.bounds, parts)
        case Reduce():
            return Reduce(node.dtype, node.fn, parts[0], node.extent)
        case Dot():
            return Dot(node.dtype, parts[0], node.extent)
        case Scan():
            return Scan(node.dtype, node.fn, parts[0], node.extent, node.halves)
        case _:
            return node
