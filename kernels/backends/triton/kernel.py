"""One LoopNest as a Triton function: the sizes and indices, the reductions, then the stores."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.kernels.backends.triton.blocks import Blocks
from fusion.kernels.backends.triton.expressions import Expressions
from fusion.kernels.backends.triton.lines import Lines
from fusion.kernels.backends.triton.load_masks import guards_of
from fusion.kernels.backends.triton.reductions import Reductions
from fusion.kernels.backends.triton.schedule import Kind, Schedule, column_count, parameters
from fusion.kernels.backends.triton.variance import COLUMN, ROW, Variance
from fusion.kernels.loops import LoopNest, Store

_CONSTANTS = ("ROWS: tl.constexpr", "COLS: tl.constexpr", "INDEX: tl.constexpr")


class Kernel:
    """Writes one kernel. `name` is another than the nest's where it is a part of a bundle."""

    def __init__(self, nest: LoopNest, schedule: Schedule, name: str) -> None:
        guards = guards_of(nest.roots)
        self._nest = nest
        self._kind = schedule.kind
        self._name = name
        self._blocks = Blocks(nest, schedule)
        self._lines = Lines()
        self._variance = Variance(nest, guards)
        self._expressions = Expressions(self._blocks, self._lines, guards, self._variance)
        self._reductions = Reductions(self._blocks, self._lines, self._expressions, self._variance)

    def text(self) -> str:
        """The kernel's source."""
        is_part = self._name != self._nest.name  # then it is handed its program's number, among those of the part
        outer = self._lines.outer
        outer += [f"{s.symbol} = tl.cast({s.symbol}, INDEX)" for s in self._nest.sizes]
        if not is_part:
            outer.append("program = tl.program_id(0).to(INDEX)")
        outer += self._blocks.indices()
        self._reductions.write()
        if self._kind is Kind.TILE and self._nest.reductions:
            outer.append(self._blocks.columns())
        self._stores()
        arguments = ", ".join((*(["program"] if is_part else []), *parameters(self._nest), *_CONSTANTS))
        lines = "\n".join(f"    {line}" for line in outer)
        return f"@triton.jit\ndef {self._name}({arguments}):\n{lines}\n"

    def _stores(self) -> None:
        per_row = [s for s in self._nest.stores if s.per_row]
        per_column = [s for s in self._nest.stores if not s.per_row]
        columns = column_count(self._nest)
        self._store(per_row)
        if self._kind is Kind.LOOPED and per_column:
            with self._reductions.loop(columns, [s.value for s in per_column]):
                self._store(per_column)
        else:
            with self._lines.over(columns):
                self._store(per_column)

    def _store(self, stores: Sequence[Store]) -> None:
        for store in stores:
            needed = ROW if store.per_row else ROW | COLUMN
            needed = COLUMN if self._kind is Kind.FLAT else needed
            value = self._expressions.operand(store.value, typed=True)
            masks = [self._blocks.row_mask()] if needed & ROW else []
            if needed & COLUMN:
                masks.append(self._blocks.column_mask(column_count(self._nest)))
            offset = self._variance.offset(store.offset, needed)
            mask = " & ".join(filter(None, masks))
            self._lines.add(needed, f"tl.store({store.output} + {offset}, {value}{', mask=' + mask if mask else ''})")
