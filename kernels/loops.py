"""The kernel IR: one nest of loops over rows and a column, small enough to print and read.

A kernel runs over an iteration space of row axes (parallel) and one column axis. Per row it first computes its
reductions in order, each a pass over the column, then stores. Everything else is expressions (`patterns.scalar`)
over loads at explicit element offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch

from fusion.patterns import scalar, symbols
from fusion.patterns.errors import GraphError
from fusion.patterns.forks import cached_property
from fusion.patterns.scalar import Apply, Constant, Dot, Load, Reduce, Reduced, Scalar, Scan, Scanned, Select, Size
from fusion.patterns.symbols import Dim


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop: index name and how far it runs from 0."""

    name: str
    extent: Dim


@dataclass(frozen=True, slots=True)
class Argument:
    """An input tensor.

    Attributes:
        name: "a0", "a1", ...
        dtype: element type in memory.
        shape, strides: Dims over the nest's size symbols; a call whose tensors differ is refused by the launcher.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """An output tensor, allocated by the launcher.

    Attributes:
        name: "o0", "o1", ...
        dtype: element type in memory.
        shape: Dims over the nest's size symbols.
        order: dimensions from outermost to innermost in memory; the tensor is dense in that order.
        loose: (dimension, stride) of dimensions of size 1 whose stride in eager's result is not that of a dense tensor.
            No element depends on them; they are set so that `stride()` is eager's.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[Dim, ...]
    order: tuple[int, ...]
    loose: tuple[tuple[int, Dim], ...] = ()

    @property
    def strides(self) -> tuple[Dim, ...]:
        """Strides in elements, by dimension; those of a dense tensor, also where they are loose."""
        strides: list[Dim] = [0] * len(self.shape)
        running: Dim = 1
        for dim in reversed(self.order):
            strides[dim] = running
            running = symbols.as_dim(running * self.shape[dim])
        return tuple(strides)


@dataclass(frozen=True, slots=True)
class Reduction:
    """One pass over a row: `name` becomes `fn` over `body` for column 0..extent. Earlier reductions may be read.

    A running one, a scan, has a value at every column below `extent`: `fn` over the columns up to that one. `halves`
    are terms whose running total is a float32 on processors, as eager's is: it goes past float32's range where eager's
    does.
    """

    name: str
    fn: str
    body: Scalar
    extent: Dim
    running: bool = False
    halves: bool = False


@dataclass(frozen=True, slots=True)
class Store:
    """Writes `value` (rounded already) to `output` at an element offset; once per row when `per_row`."""

    output: str
    offset: Dim
    value: Scalar
    per_row: bool = False


@dataclass(frozen=True, slots=True)
class SizeParameter:
    """Where a size symbol's value comes from at a call.

    Attributes:
        symbol: its name in the nest.
        source: "shape" or "stride" of input number `argument` at dimension `dim`, or "given": passed by the caller
            as integer number `argument`.
    """

    symbol: str
    source: str
    argument: int
    dim: int = 0


@dataclass(frozen=True)
class LoopNest:
    """A kernel before it is source.

    Attributes:
        name: an identifier made of the ops it fuses.
        subgraph: digest of the SubGraph it computes.
        inputs, outputs: tensors, in call order.
        rows: parallel axes, outermost first; empty means one row.
        column: the innermost axis, or None when every store is per row.
        reductions: in the order they must run.
        stores: what it writes.
        sizes: the size symbols, in the order they are passed to the kernel.
        numerics: "eager" or "fp32".
        origin: for each op, "op @ file:line", for comments in the source; no part of the digest.
    """

    name: str
    subgraph: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Output, ...]
    rows: tuple[Axis, ...]
    column: Axis | None
    reductions: tuple[Reduction, ...]
    stores: tuple[Store, ...]
    sizes: tuple[SizeParameter, ...]
    numerics: str = "eager"
    origin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        verify(self)

    @cached_property
    def roots(self) -> tuple[Scalar, ...]:
        """All expressions: reduction bodies, then stored values."""
        return (*(r.body for r in self.reductions), *(s.value for s in self.stores))

    def __str__(self) -> str:
        return "\n".join([*head_text(self.name, self.numerics, self.inputs, self.outputs, self.sizes), *self.loops()])

    def loops(self) -> list[str]:
        """The lines of its text that say what runs, without the tensors and sizes."""
        text = _Text()
        lines: list[str] = []
        indent = "  "
        for axis in self.rows:
            lines.append(f"{indent}for {axis.name} in {symbols.render(axis.extent)}:")
            indent += "  "
        for r in self.reductions:
            fn = f"{r.fn} {'along' if r.running else 'over'}{' halves' if r.halves else ''}"
            lines.append(f"{indent}{r.name} = {fn} j in {symbols.render(r.extent)} of {text.of(r.body)}")
        for per_row in (True, False):
            stores = [s for s in self.stores if s.per_row == per_row]
            if not per_row and stores and self.column:
                lines.append(f"{indent}for {self.column.name} in {symbols.render(self.column.extent)}:")
                indent += "  "
            lines += [f"{indent}{s.output}[{symbols.render(s.offset)}] = {text.of(s.value)}" for s in stores]
        return lines


def head_text(
    name: str,
    numerics: str,
    inputs: tuple[Argument, ...],
    outputs: tuple[Output, ...],
    sizes: tuple[SizeParameter, ...],
) -> list[str]:
    """The first lines of a kernel's text: its name, its tensors, where its sizes come from."""
    lines = [f"kernel {name} ({numerics} numerics)"]
    lines += [f"  in  {a.name}: {_type(a.dtype)}{_dims(a.shape)} strides {_dims(a.strides)}" for a in inputs]
    lines += [f"  out {o.name}: {_type(o.dtype)}{_dims(o.shape)} order {list(o.order)}{_loose(o)}" for o in outputs]
    for s in sizes:
        where = f"argument {s.argument}" if s.source == "given" else f"a{s.argument}.{s.source}[{s.dim}]"
        lines.append(f"  size {s.symbol} = {where}")
    return lines


def _loose(output: Output) -> str:
    return "".join(f" stride[{dim}] {symbols.render(stride)}" for dim, stride in output.loose)


def verify(nest: LoopNest) -> None:
    """Rejects a malformed LoopNest.

    Raises:
        GraphError: an expression names an unknown input, index, size or reduction; a choice has not one
            bound less than cases; a reduction is not hoisted, has no such function, takes bools, or is used twice under
            one name; a scan is read where there is no column, or at more columns than it has, or as if it were one
            value.
    """
    checks = _Checks(nest)
    tensors: tuple[Argument | Output, ...] = (*nest.inputs, *nest.outputs)
    for tensor in tensors:
        for d in (*tensor.shape, *tensor.strides):
            checks.dim(d, f"the structure of {tensor.name}")
    for axis in nest.rows + ((nest.column,) if nest.column else ()):
        checks.dim(axis.extent, f"the extent of {axis.name}")
    for reduction in nest.reductions:
        checks.reduction(reduction)
    if not nest.stores:
        raise GraphError(f"{nest.name}: a kernel that stores nothing.")
    for store in nest.stores:
        checks.store(store)


class _Checks:
    """The checks of one nest, reduction by reduction and store by store."""

    def __init__(self, nest: LoopNest) -> None:
        self.nest = nest
        self.known = {a.name for a in nest.rows} | {scalar.COLUMN, scalar.INNER} | {s.symbol for s in nest.sizes}
        self.inputs = {a.name for a in nest.inputs}
        self.outputs = {o.name for o in nest.outputs}
        self.done: dict[str, Reduction] = {}

    def refuse(self, what: str) -> GraphError:
        """The error that says what is wrong with the nest."""
        return GraphError(f"{self.nest.name}: {what}.")

    def reduction(self, reduction: Reduction) -> None:
        """A reduction or scan, which those after it may read."""
        known, name = scalar.SCANS if reduction.running else scalar.REDUCTIONS, reduction.name
        if reduction.fn not in known:
            raise self.refuse(f"{reduction.fn!r} is no {'scan' if reduction.running else 'reduction'}")
        if reduction.body.dtype is torch.bool:
            raise self.refuse(f"the reduction {name} takes bools; they reduce as integers")
        if name in self.done:
            raise self.refuse(f"two reductions are called {name!r}")
        if {s.name for s in symbols.free_symbols([reduction.extent])} & {scalar.COLUMN}:
            raise self.refuse(f"the extent of the reduction {name} depends on the column")
        self.dim(reduction.extent, f"reduction {name}")
        self.expression(reduction.body, f"reduction {name}", reduction.extent)
        self.done[name] = reduction

    def store(self, store: Store) -> None:
        """A store of a value per column, or per row."""
        column = self.nest.column
        if store.output not in self.outputs:
            raise self.refuse(f"a store to {store.output!r}, which is no output")
        if not store.per_row and column is None:
            raise self.refuse("a store per column in a kernel without a column axis")
        self.dim(store.offset, f"store to {store.output}")
        columns = column.extent if column is not None and not store.per_row else None
        self.expression(store.value, f"store to {store.output}", columns)

    def dim(self, d: Dim, where: str) -> None:
        """A size or offset."""
        unknown = {s.name for s in d.free_symbols} - self.known if isinstance(d, sympy.Expr) else set()
        if unknown:
            raise self.refuse(f"{where} uses {sorted(unknown)}, which are no index or size of the kernel")

    def expression(self, root: Scalar, where: str, columns: Dim | None) -> None:
        """A value in a loop over `columns`, or once per row."""
        for node in scalar.walk(root):
            match node:
                case Load(argument=argument, offset=offset):
                    self.load(argument, offset, where, columns)
                case Reduced(name=name):
                    self.result(name, where, columns, running=False)
                case Scanned(name=name):
                    self.result(name, where, columns, running=True)
                case Reduce() | Scan():
                    raise self.refuse(f"{where} holds a reduction that was not hoisted")
                case Select(index=index, bounds=bounds, cases=cases):
                    if len(cases) != len(bounds) + 1:
                        raise self.refuse(f"{where} chooses of {len(cases)} cases by {len(bounds)} bounds")
                    for d in (index, *bounds):
                        self.dim(d, where)
                case Size(dim=d) | Dot(extent=d):
                    self.dim(d, where)
                case Apply(fn=fn) if fn not in scalar.PRIMITIVES:
                    raise self.refuse(f"{where} applies {fn!r}, which is no primitive")

    def load(self, argument: str, offset: Dim, where: str, columns: Dim | None) -> None:
        """A load from an input."""
        if argument not in self.inputs:
            raise self.refuse(f"{where} loads from {argument!r}, which is no input")
        self.dim(offset, where)
        if columns is None and scalar.COLUMN in {s.name for s in symbols.free_symbols([offset])}:
            raise self.refuse(f"{where} is stored once per row but depends on the column")

    def result(self, name: str, where: str, columns: Dim | None, *, running: bool) -> None:
        """A read of a reduction or scan."""
        made = self.done.get(name)
        if made is None:
            raise self.refuse(f"{where} reads the reduction {name!r} before it is computed")
        if made.running != running:
            raise self.refuse(f"{where} reads {name!r} as a {'scan' if running else 'reduction'}, not so")
        if running and columns is None:
            raise self.refuse(f"{where} is stored once per row but reads the scan {name!r}")
        if running and isinstance(columns, int) and isinstance(made.extent, int) and columns > made.extent:
            raise self.refuse(f"{where} reads the scan {name!r} beyond its {made.extent} columns")


class _Text:
    def of(self, node: Scalar) -> str:
        match node:
            case Constant(value=value):
                return repr(value)
            case Size(dim=d):
                return symbols.render(d)
            case Load(argument=argument, offset=offset):
                return f"{argument}[{symbols.render(offset)}]"
            case Reduced(name=name):
                return name
            case Dot(body=body, extent=extent):
                return f"dot[c < {symbols.render(extent)}]({self.of(body)})"
            case Scanned(name=name):
                return f"{name}[j]"
            case Select(index=index, bounds=bounds, cases=cases):
                parts = [
                    f"{self.of(c)} if {symbols.render(index)} < {symbols.render(b)} else "
                    for c, b in zip(cases[:-1], bounds, strict=True)
                ]
                return "(" + "".join(parts) + self.of(cases[-1]) + ")"
            case Apply(fn="cast"):
                return f"{_type(node.dtype)}({self.of(node.args[0])})"
            case Apply(fn=fn, args=args):
                return f"{fn}({', '.join(map(self.of, args))})"
            case Reduce(fn=fn, body=body, extent=extent):
                return f"{fn}[j < {symbols.render(extent)}]({self.of(body)})"
            case _:
                return repr(node)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dims(dims: tuple[Dim, ...]) -> str:
    return "[" + ", ".join(symbols.render(d) for d in dims) + "]"
