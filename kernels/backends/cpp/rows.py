"""What happens in one row of a C++ kernel: the loops over its column, one after the other."""

from __future__ import annotations

import torch

from fusion.kernels.backends.cpp.columns import Column, Running, Sink
from fusion.kernels.backends.cpp.expressions import Block, Interner, Values, cost, stored_value
from fusion.kernels.backends.cpp.lanes import Lanes
from fusion.kernels.loops import LoopNest
from fusion.kernels.memory_order import row_neighbours
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Select
from fusion.patterns.symbols import Dim

# Elements a row may have for its costly values to be kept between passes: 16 KiB of floats each, on the stack.
ROW_BUFFER = 4096
_WORTH_KEEPING = 15  # vector instructions an element (`cost`); a store and a load cost about 2


class Row:
    """Writes what happens in one row: reductions, stores per row, stores per column.

    Args:
        nest: the kernel.
        bounds: the variables between which its columns are stored; None for all of them.
    """

    def __init__(self, nest: LoopNest, bounds: tuple[str, str] | None) -> None:
        self.nest = nest
        self.bounds = bounds
        kinds = {a.dtype for a in nest.inputs if a.dtype.is_floating_point}
        self.values = Values(plain_bfloat16=kinds <= {torch.bfloat16})
        self.interned = Interner()
        self.reductions = [(r, self.interned(r.body)) for r in nest.reductions]
        self.scans = [Running(r.name, r.fn, body, r.halves) for r, body in self.reductions if r.running]
        kinds_out = {o.name: o.dtype for o in nest.outputs}
        self.sinks = [
            (
                s,
                Sink(
                    stored_value(self.interned(s.value), kinds_out[s.output]), s.output, s.offset, kinds_out[s.output]
                ),
            )
            for s in nest.stores
        ]

    def write(self, block: Block) -> None:
        """Appends the row's statements; twice where rows may or may not fit the buffers of `_expensive` values."""
        axis = row_neighbours(self.nest)
        if axis is not None:
            sinks = [(sink, store.per_row) for store, sink in self.sinks]
            Lanes(self.nest, axis, self.values, self.interned, sinks).write(block)
            return
        expensive = self._expensive()
        extents = [self.nest.reductions[k].extent for k in expensive]
        sure = all(isinstance(extent, int) for extent in extents)
        if sure:
            self._passes(block, expensive if all(int(e) <= ROW_BUFFER for e in extents) else set())
            return
        fits = " && ".join(dict.fromkeys(f"{symbols.print_c(extent)} <= {ROW_BUFFER}" for extent in extents))
        for opening, kept in ((f"if ({fits}) {{", expensive), ("} else {", set[int]())):
            inner = Block("row", block)
            self._passes(inner, kept)
            block.lines.append(opening)
            block.nest(inner)
        block.lines.append("}")

    def _expensive(self) -> set[int]:
        """Numbers of the reductions whose elements are costly and needed again: softmax's exponentials."""
        found: set[int] = set()
        for k, (reduction, body) in enumerate(self.reductions):
            later = [b for _, b in self.reductions[k + 1 :]] + [sink.value for _, sink in self.sinks]
            runs = not reduction.running and self.values.runs_with_column(body)
            again = runs and any(node is body for node in scalar.walk(*later))
            if again and cost([body]) >= _WORTH_KEEPING and not any(isinstance(n, Select) for n in scalar.walk(body)):
                found.add(k)
        return found

    def _passes(self, block: Block, kept: set[int]) -> None:
        for k, (reduction, body) in enumerate(self.reductions):
            if reduction.running:
                continue  # part of each loop that reads it
            room = reduction.extent if isinstance(reduction.extent, int) else ROW_BUFFER
            column = Column(self.values, self.interned, reduction.extent, self.scans)
            column.reduce(reduction.fn, reduction.name, body, block, room if k in kept else 0)
        self._stores_per_row(block)
        if self.nest.column is not None:
            column = Column(self.values, self.interned, self.nest.column.extent, self.scans, self.bounds)
            self._stores_per_column(column, block)

    def _stores_per_row(self, block: Block) -> None:
        per_row = [sink for store, sink in self.sinks if store.per_row]
        self.values.count([sink.value for sink in per_row])
        for sink in per_row:
            text = self.values.stored(sink.storage, self.values.write(sink.value, block))
            block.lines.append(f"{sink.output}[{self.values.index(sink.offset, block)}] = {text};")

    def _stores_per_column(self, column: Column, block: Block) -> None:
        per_column = [sink for store, sink in self.sinks if not store.per_row]
        if per_column:
            column.store(per_column, block)

    def write_shared(self, block: Block) -> None:
        """Appends the statements of `thread` of `threads` that share the row.

        Each reduces its stretch of the column, waits for the others, and puts the partial results together in the same
        order as they do. Rows take turns with the partial results, so that one wait between two uses is enough.
        """
        count = len(self.reductions)
        for k, (reduction, body) in enumerate(self.reductions):
            mine = f"partials + (row % 2 * {count} + {k}) * threads"
            column = self._stretch(reduction.extent, block)
            column.reduce(reduction.fn, reduction.name, body, block, partials=mine)
        once = Block("row", block)
        self._stores_per_row(once)
        if once.lines:
            block.lines.append("if (thread == 0) {")
            block.nest(once)
            block.lines.append("}")
        if self.nest.column is not None:
            self._stores_per_column(self._stretch(self.nest.column.extent, block), block)

    def _stretch(self, extent: Dim, block: Block) -> Column:
        """The part of a column that is this thread's."""
        begin, end, whole = self.values.fresh("cut"), self.values.fresh("cut"), symbols.print_c(extent)
        block.lines.append(f"const int64_t {begin} = {whole} * thread / threads;")
        block.lines.append(f"const int64_t {end} = {whole} * (thread + 1) / threads;")
        return Column(self.values, self.interned, extent, bounds=(begin, end))
