"""One LoopNest as a Triton function: the sizes and indices, the reductions, then the stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusion.kernels.backends.triton.blocks import Blocks
from fusion.kernels.backends.triton.expressions import Expressions
from fusion.kernels.backends.triton.lines import Lines
from fusion.kernels.backends.triton.load_masks import guards_of
from fusion.kernels.backends.triton.reductions import Reductions
from fusion.kernels.backends.triton.schedule import Kind, Schedule, column_count, parameters
from fusion.kernels.backends.triton.variance import COLUMN, ROW, Variance
from fusion.kernels.loops import LoopNest, Store


class Kernel:
    """Writes one kernel. `name` is another than the nest's where it is a part of a bundle."""

    def __init__(self, nest: LoopNest, schedule: Schedule, name: str) -> None:
        guards = guards_of(nest.roots)
        self._nest = nest
        self._kind = schedule.kind
        self._constants = (*schedule.constants, "INDEX")
        self._name = name
        self._blocks = Blocks(nest, schedule)
        self._lines = Lines()
        self._variance = Variance((axis.name for axis in nest.rows), guards)
        self._expressions = Expressions(nest.roots, self._blocks, self._lines, guards, self._variance)
        self._reductions = Reductions(self._blocks, self._lines, self._expressions, self._variance)

    def text(self) -> str:
        """The kernel's source."""
        outer = self._lines.outer
        outer += opening(self._nest, self._name)
        outer += self._blocks.indices()
        self._reductions.write()
        if self._kind is Kind.TILE and self._nest.reductions:
            outer.append(self._blocks.columns())
        self._stores()
        return function(self._nest, self._name, self._constants, outer)

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


def opening(nest: LoopNest, name: str) -> list[str]:
    """The first lines of a kernel's function: sizes and the number of the program in the type of indices.

    Args:
        nest: the kernel.
        name: of the function; a part of a bundle, which has another name than its nest, is handed its program's number.
    """
    lines = [f"{s.symbol} = tl.cast({s.symbol}, INDEX)" for s in nest.sizes]
    return lines if name != nest.name else [*lines, "program = tl.program_id(0).to(INDEX)"]


def function(nest: LoopNest, name: str, constants: Iterable[str], lines: Iterable[str]) -> str:
    """The text of a kernel's function.

    Args:
        nest, name: as of `opening`.
        constants: names of its compile-time parameters.
        lines: its body.
    """
    arguments = [*(["program"] if name != nest.name else []), *parameters(nest)]
    arguments += [f"{constant}: tl.constexpr" for constant in constants]
    body = "\n".join(f"    {line}" for line in lines)
    return f"@triton.jit\ndef {name}({', '.join(arguments)}):\n{body}\n"
