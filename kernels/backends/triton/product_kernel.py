"""A nest of matrix products as a Triton function: a block of sums of each product, then the stores computed of them.

The left factors of a block are rows by terms, the right ones columns by terms. Terms are taken in chunks; beyond their
end both factors are 0, whatever lies there. The sums stay in registers until they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusion.kernels.backends.triton.expressions import Expressions
from fusion.kernels.backends.triton.kernel import function, opening
from fusion.kernels.backends.triton.lines import Lines
from fusion.kernels.backends.triton.load_masks import guards_of
from fusion.kernels.backends.triton.primitives import TYPES
from fusion.kernels.backends.triton.product_schedule import (
    ProductSchedule,
    column_places,
    operand_type,
    products_of,
    row_places,
)
from fusion.kernels.backends.triton.variance import COLUMN, ROW, Side, Variance
from fusion.kernels.iteration_space import moved
from fusion.kernels.loops import Axis, LoopNest
from fusion.kernels.products import Factors
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Apply, Load, Scalar
from fusion.patterns.symbols import Dim

_BOTH = ROW | COLUMN
_DEPTH = "depth"  # the term of the right factors, whose block has another shape than that of the left ones, `j`


@dataclass(frozen=True, slots=True)
class Plane:
    """Blocks over two sides, and where they end.

    Attributes:
        ones: the shape of a block of one element.
        row, rows, row_block: the variable of the first side, its size, and how much of it is a block.
        column, column_block: likewise; how far the second side runs depends on what is written.
    """

    ones: str
    row: str
    rows: Dim
    row_block: int
    column: str
    column_block: int

    def row_mask(self) -> str:
        """The condition that a place on the first side exists; "" where all do."""
        return _mask(self.row, self.rows, self.row_block)

    def column_mask(self, extent: Dim) -> str:
        """The condition that a place on the second side is one of `extent`; "" where all are."""
        return _mask(self.column, extent, self.column_block)


class Operands:
    """Writes the left, or the right, factors of products.

    Args:
        factors: their expressions.
        axes: the axes whose places are the first side of their blocks.
        plane: the blocks; the second side is the terms.
        lines: of the kernel.
        shape: of a block that `tl.dot` takes; "" where factors are multiplied one by one, so that any may be narrower.
    """

    def __init__(self, factors: Sequence[Scalar], axes: Sequence[Axis], plane: Plane, lines: Lines, shape: str) -> None:
        guards = guards_of(tuple(factors))
        terms = Side(plane.column, frozenset((plane.column,)))
        self._variance = Variance((axis.name for axis in axes), guards, row=plane.row, columns=terms)
        self._expressions = Expressions(tuple(factors), plane, lines, guards, self._variance)
        self._plane = plane
        self._lines = lines
        self._shape = shape

    def block(self, factor: Scalar, dtype: torch.dtype, extent: Dim) -> str:
        """The variable that holds a chunk of factors.

        Args:
            factor: its expression, whose values `dtype` holds exactly.
            dtype: of the block.
            extent: how many terms there are: beyond them the block is 0.
        """
        varies = self._variance.of(factor)
        mask = self._plane.column_mask(extent)
        if isinstance(factor, Load) and factor.storage is dtype and (varies & COLUMN or not mask):
            text = self._expressions.stored(factor)
        else:
            text = self._computed(factor, dtype, mask)
            varies |= COLUMN if mask else 0
        if self._shape and varies != _BOTH:
            text = f"tl.broadcast_to({text}, {self._shape})"
        return self._lines.name(varies, text)

    def _computed(self, factor: Scalar, dtype: torch.dtype, mask: str) -> str:
        rounds = f"round_{str(dtype).removeprefix('torch.')}"
        once = factor.args[0] if isinstance(factor, Apply) and factor.fn == rounds else factor
        text = self._expressions.operand(once, typed=True)
        text = f"tl.where({mask}, {text}, 0.0)" if mask else text
        return text if dtype is torch.float32 else f"{text}.to({TYPES[dtype]})"


class ProductKernel:
    """Writes one kernel. `name` is another than the nest's where it is a part of a bundle."""

    def __init__(self, nest: LoopNest, schedule: ProductSchedule, name: str) -> None:
        self._nest = nest
        self._schedule = schedule
        self._name = name
        self._form = products_of(nest)
        self._lines = Lines()

    def text(self) -> str:
        """The kernel's source."""
        outer = self._lines.outer
        outer += opening(self._nest, self._name)
        outer += self._place()
        outer += self._indices("[:, None, None]", "[None, :, None]") if self._schedule.few else self._indices()
        self._products()
        if self._schedule.few:
            outer += self._indices()
        self._lines.forget()
        self._stores()
        return function(self._nest, self._name, (*self._schedule.constants, "INDEX"), outer)

    def _place(self) -> list[str]:
        """The lines that say which rows and columns a program has.

        Programs go down GROUP blocks of rows, then on to the next block of columns, so that those that run at the same
        time read few different factors.
        """
        form, rows = self._form, row_places(self._form)
        lines = [f"across = ({symbols.print_python(column_places(form))} + (COLS - 1)) // COLS"]
        one_block = isinstance(rows, int) and rows <= self._schedule.rows
        lines.append(f"down = {1 if one_block else f'({symbols.print_python(rows)} + (ROWS - 1)) // ROWS'}")
        if form.batch:
            lines += [*_places(form.batch, "(program // (down * across))"), "place = program % (down * across)"]
        else:
            lines.append("place = program")
        if one_block:
            above, across = "", "place"
        else:
            lines += [
                "band = GROUP * across",
                "above = (place // band) * GROUP",
                "height = tl.minimum(down - above, GROUP)",
                "inside = place % band",
            ]
            above, across = "(above + inside % height) * ROWS + ", "(inside // height)"
        lines.append(f"rows = {above}tl.arange(0, ROWS).to(INDEX)")
        lines.append(f"columns = {across} * COLS + tl.arange(0, COLS).to(INDEX)")
        return lines

    def _indices(self, down: str = "[:, None]", across: str = "[None, :]") -> list[str]:
        """The lines that say which indices the rows and columns are, as blocks of such shapes."""
        form = self._form
        return [
            f"row = rows{down}",
            *_places(form.rows, "row"),
            f"column = columns{across}",
            *_places((*form.outer, form.lane), "column"),
        ]

    def _products(self) -> None:
        """The sums, each in the variable of its reduction's name; products of as many terms share a loop."""
        schedule, form = self._schedule, self._form
        by = {symbols.index_symbol(scalar.COLUMN): symbols.index_symbol(_DEPTH)}
        memo: dict[int, Scalar] = {}
        rights = {id(p): moved(p.right, by, memo) for p in form.products}
        across = (*form.outer, form.lane)
        ones = "[1, 1, 1]" if schedule.few else "[1, 1]"
        terms = schedule.depth
        left_plane = Plane(ones, "row", row_places(form), schedule.rows, scalar.COLUMN, terms)
        right_plane = Plane(ones, "column", column_places(form), schedule.columns, _DEPTH, terms)
        shapes = ("", "") if schedule.few else ("[ROWS, DEPTH]", "[DEPTH, COLS]")
        lefts = Operands([p.left for p in form.products], form.rows, left_plane, self._lines, shapes[0])
        others = Operands(list(rights.values()), across, right_plane, self._lines, shapes[1])
        for extent in dict.fromkeys(p.reduction.extent for p in form.products):
            group = [p for p in form.products if p.reduction.extent == extent]
            sums = {id(p): f"{p.reduction.name}_block" if schedule.few else p.reduction.name for p in group}
            shape = "[ROWS, COLS, DEPTH]" if schedule.few else "[ROWS, COLS]"
            self._lines.outer += [f"{name} = tl.zeros({shape}, tl.float32)" for name in sums.values()]
            with self._lines.loop(extent, "DEPTH", self._terms()):
                for p in group:
                    dtype = operand_type(p)
                    left, right = lefts.block(p.left, dtype, extent), others.block(rights[id(p)], dtype, extent)
                    self._lines.add(COLUMN, f"{sums[id(p)]} = {self._multiplied(p, left, right, sums[id(p)])}")
            if schedule.few:
                self._lines.outer += [f"{p.reduction.name} = tl.sum({sums[id(p)]}, axis=2)" for p in group]

    def _terms(self) -> tuple[str, ...]:
        """The lines that say which terms a chunk has."""
        chunk = "(start + tl.arange(0, DEPTH).to(INDEX))"
        if self._schedule.few:
            return f"{scalar.COLUMN} = {chunk}[None, None, :]", f"{_DEPTH} = {scalar.COLUMN}"
        return f"{scalar.COLUMN} = {chunk}[None, :]", f"{_DEPTH} = {chunk}[:, None]"

    def _multiplied(self, product: Factors, left: str, right: str, total: str) -> str:
        """A chunk of products, added to those before it."""
        halves = operand_type(product) is not torch.float32
        if self._schedule.few:
            factors = (f"{left}.to(tl.float32)", f"{right}.to(tl.float32)") if halves else (left, right)
            return f"tl.fma({', '.join(factors)}, {total})"
        precision = "" if halves else ', input_precision="ieee"'
        return f"tl.dot({left}, {right}, {total}{precision})"

    def _stores(self) -> None:
        form, schedule = self._form, self._schedule
        plane = Plane("[1, 1]", "row", row_places(form), schedule.rows, "column", schedule.columns)
        roots = tuple(s.value for s in self._nest.stores)
        guards = guards_of(roots)
        across = Side("column", frozenset(axis.name for axis in (*form.outer, form.lane)))
        variance = Variance((axis.name for axis in form.rows), guards, columns=across, reduced=_BOTH)
        expressions = Expressions(roots, plane, self._lines, guards, variance)
        extent = column_places(form)
        masks = " & ".join(filter(None, (plane.row_mask(), plane.column_mask(extent))))
        with self._lines.over(extent):
            for store in self._nest.stores:
                value = expressions.operand(store.value, typed=True)
                offset = variance.offset(store.offset, _BOTH)
                self._lines.add(
                    _BOTH, f"tl.store({store.output} + {offset}, {value}{', mask=' + masks if masks else ''})"
                )


def _places(axes: Sequence[Axis], number: str) -> list[str]:
    """The lines that tell axes' indices from the number of their combination, innermost first."""
    lines: list[str] = []
    rest = number
    for k, axis in reversed(list(enumerate(axes))):
        extent = symbols.print_python(axis.extent)
        lines.append(f"{axis.name} = {rest}" if k == 0 else f"{axis.name} = {rest} % {extent}")
        rest = f"({rest} // {extent})"
    return lines


def _mask(variable: str, extent: Dim, block: int) -> str:
    if isinstance(extent, int) and extent % block == 0 and extent:
        return ""
    return f"({variable} < {symbols.print_python(extent)})"
