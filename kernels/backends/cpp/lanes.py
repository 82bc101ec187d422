"""Reductions across neighbouring rows in C++, for tensors that lie with the rows, not the column, innermost in memory.

Walking along a column would then step over a whole row for each element. Here a block of `LANES` neighbouring rows is
taken together: the inner loop runs over them, with one partial result for each, and the outer loop over the column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusion.kernels.backends.cpp.columns import COMBINE, Column, Sink, wide
from fusion.kernels.backends.cpp.expressions import COMPUTE, Block, Interner, Values, literal
from fusion.kernels.loops import Axis, LoopNest, Reduction
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import COLUMN, Load, Reduced, Scalar, Scanned, Select, Size
from fusion.patterns.symbols import Dim

LANES = 256  # rows in a block: 1 KiB of floats of each column, which a prefetcher follows
_STEP = "step"  # the column index here, as "j" is the row in the block that the inner loop is at


class Lanes:
    """Writes what happens in a block of rows from `begin` to `end` along `axis`.

    Args:
        nest: the kernel.
        axis: as `row_neighbours` gives it.
        sinks: its stores, each with whether it is once per row; over the nest's own indices.
    """

    def __init__(
        self, nest: LoopNest, axis: Axis, values: Values, interned: Interner, sinks: Sequence[tuple[Sink, bool]]
    ) -> None:
        self.nest = nest
        self.axis = axis
        self.values = values
        self.interned = interned
        self._memo: dict[int, Scalar] = {}
        self.reductions = [(r, self._turned(r.body)) for r in nest.reductions]
        self.sinks = [
            (replace(sink, value=self._turned(sink.value), offset=self._dim(sink.offset)), per_row)
            for sink, per_row in sinks
        ]

    def write(self, block: Block) -> None:
        """Appends the block's statements."""
        for reduction, body in self.reductions:
            if not reduction.running:
                self._reduce(reduction, body, block)
        per_row = [sink for sink, once in self.sinks if once]
        if per_row:
            self._column().store(per_row, block)
        per_column = [sink for sink, once in self.sinks if not once]
        if per_column and self.nest.column is not None:
            scans = self._started([sink.value for sink in per_column], block)
            inside = Block("row", block)
            self._advance(scans, inside)
            self._column().store(per_column, inside)
            self._for(self.nest.column.extent, inside, block)

    def _reduce(self, reduction: Reduction, body: Scalar, block: Block) -> None:
        scans = self._started([body], block)
        total = self._started_at(reduction, block)
        inside = Block("row", block)
        self._advance(scans, inside)
        self._step(reduction, body, total, inside)
        self._for(reduction.extent, inside, block)
        self._results(reduction, total, block)

    def _started(self, roots: Sequence[Scalar], block: Block) -> list[tuple[Reduction, Scalar, str]]:
        """The scans that a loop over the column has to compute for `roots`, each with its partial results."""
        wanted = {n.name for n in scalar.walk(*roots) if isinstance(n, Scanned)}
        needed: list[tuple[Reduction, Scalar]] = []
        for reduction, body in reversed(self.reductions):
            if reduction.running and reduction.name in wanted:
                needed.insert(0, (reduction, body))
                wanted |= {n.name for n in scalar.walk(body) if isinstance(n, Scanned)}
        return [(reduction, body, self._started_at(reduction, block)) for reduction, body in needed]

    def _started_at(self, reduction: Reduction, block: Block) -> str:
        """Declares a partial result for each row, and what it comes to; returns the former's name."""
        kind, total = COMPUTE[reduction.body.dtype], self.values.fresh("total")
        result = self.values.fresh("part")
        start = literal(scalar.identity(reduction.fn, reduction.body.dtype), reduction.body.dtype)
        block.lines += [
            f"{wide(kind, reduction.fn, reduction.halves)} {total}[{LANES}];",
            f"{kind} {result}[{LANES}];",
            f"for (int64_t at = 0; at < {LANES}; ++at) {total}[at] = {start};",
        ]
        block.names[f"{reduction.name} at the column"] = f"{result}[{COLUMN} - begin]"
        return total

    def _advance(self, scans: Sequence[tuple[Reduction, Scalar, str]], inside: Block) -> None:
        for reduction, body, total in scans:
            self._step(reduction, body, total, inside)
            self._results(reduction, total, inside)

    def _step(self, reduction: Reduction, body: Scalar, total: str, block: Block) -> None:
        """Takes one column of each row in."""

        def finish(inner: Block, texts: list[str]) -> None:
            inner.lines.append(COMBINE[reduction.fn].format(total=f"{total}[{COLUMN} - begin]", part=texts[0]))

        self._column().each([body], finish, block)

    def _results(self, reduction: Reduction, total: str, block: Block) -> None:
        result = block.find(f"{reduction.name} at the column")
        block.lines += [
            "#pragma omp simd",
            f"for (int64_t {COLUMN} = begin; {COLUMN} < end; ++{COLUMN}) "
            f"{result} = ({COMPUTE[reduction.body.dtype]}){total}[{COLUMN} - begin];",
        ]

    def _for(self, extent: Dim, inside: Block, block: Block) -> None:
        block.lines.append(f"for (int64_t {_STEP} = 0; {_STEP} < {symbols.print_c(extent)}; ++{_STEP}) {{")
        block.nest(inside)
        block.lines.append("}")

    def _column(self) -> Column:
        return Column(self.values, self.interned, self.axis.extent, bounds=("begin", "end"))

    # The column becomes the outer index, the axis the inner one, and a reduction's result has a value in each row.

    def _dim(self, dim: Dim) -> Dim:
        return symbols.substitute(
            dim,
            {
                symbols.index_symbol(COLUMN): symbols.index_symbol(_STEP),
                symbols.index_symbol(self.axis.name): symbols.index_symbol(COLUMN),
            },
        )

    def _turned(self, root: Scalar) -> Scalar:
        def change(node: Scalar) -> Scalar | None:
            match node:
                case Load(offset=offset):
                    return replace(node, offset=self._dim(offset))
                case Size(dim=dim):
                    return replace(node, dim=self._dim(dim))
                case Select(index=index, bounds=bounds, cases=cases):
                    parts = tuple(scalar.rebuild(c, change, self._memo) for c in cases)
                    return Select(node.dtype, self._dim(index), tuple(map(self._dim, bounds)), parts)
                case Reduced(name=name):
                    return Scanned(node.dtype, name)
                case _:
                    return None

        return self.interned(scalar.rebuild(root, change, self._memo))
