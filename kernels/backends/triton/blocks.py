"""The block of rows and columns that a program of a Triton kernel computes: the indices of its elements, its edges."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.kernels.backends.triton.schedule import Kind, Schedule, column_count, row_count
from fusion.kernels.loops import LoopNest
from fusion.patterns import symbols
from fusion.patterns.symbols import Dim


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one kernel.

    Attributes:
        nest: the kernel.
        schedule: its launch data.
    """

    nest: LoopNest
    schedule: Schedule

    @property
    def loops(self) -> bool:
        """Whether reductions are taken in chunks of columns."""
        kind = self.schedule.kind
        return kind is Kind.LOOPED or (kind is Kind.TILE and bool(self.nest.reductions))

    @property
    def ones(self) -> str:
        """The shape of a block of one element, which stands for any number of them."""
        return "[1]" if self.schedule.kind is Kind.FLAT else "[1, 1]"

    def indices(self) -> list[str]:
        """The lines that say which row and column each element of program `program` has."""
        if self.schedule.kind is Kind.FLAT:
            return ["j = program * COLS + tl.arange(0, COLS).to(INDEX)"]
        lines = []
        if self.schedule.kind is Kind.TILE and not self._one_block():
            columns = symbols.print_python(column_count(self.nest))
            lines.append(f"blocks = ({columns} + (COLS - 1)) // COLS")
            lines.append("row = (program // blocks) * ROWS + tl.arange(0, ROWS).to(INDEX)[:, None]")
        else:
            lines.append("row = program * ROWS + tl.arange(0, ROWS).to(INDEX)[:, None]")
        if not self.loops:
            lines.append(self.columns())
        rest = "row"
        for k, axis in reversed(list(enumerate(self.nest.rows))):
            extent = symbols.print_python(axis.extent)
            lines.append(f"{axis.name} = {rest}" if k == 0 else f"{axis.name} = {rest} % {extent}")
            rest = f"({rest} // {extent})"
        return lines

    def columns(self) -> str:
        """The columns of a program that has one block of them."""
        whole = self.schedule.kind is Kind.ROWS or self._one_block()
        before = "" if whole else "(program % blocks) * COLS + "
        return f"j = {before}tl.arange(0, COLS).to(INDEX)[None, :]"

    def row_mask(self) -> str:
        """The condition that an element's row exists; "" where all do."""
        rows = row_count(self.nest)
        if (isinstance(rows, int) and rows % self.schedule.rows == 0) or self.schedule.rows == 1:
            return ""
        return f"(row < {symbols.print_python(rows)})"

    def column_mask(self, extent: Dim) -> str:
        """The condition that an element's column is one of `extent`; "" where all are."""
        flat = self.schedule.kind is Kind.FLAT
        if not flat and isinstance(extent, int) and extent % self.schedule.columns == 0 and extent:
            return ""
        return f"(j < {symbols.print_python(extent)})"

    def _one_block(self) -> bool:
        columns = column_count(self.nest)
        return isinstance(columns, int) and columns <= self.schedule.columns
