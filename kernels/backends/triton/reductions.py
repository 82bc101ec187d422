"""The reductions and scans of a Triton kernel: of whole rows in registers, or in a loop over chunks of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fusion.kernels.backends.triton import online, primitives
from fusion.kernels.backends.triton.blocks import Blocks
from fusion.kernels.backends.triton.expressions import Expressions
from fusion.kernels.backends.triton.lines import Lines
from fusion.kernels.backends.triton.primitives import TYPES
from fusion.kernels.backends.triton.schedule import Kind
from fusion.kernels.backends.triton.variance import COLUMN, ROW, Variance
from fusion.kernels.loops import Reduction
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Scalar, Scanned
from fusion.patterns.symbols import Dim


class Reductions:
    """Writes the reductions of one kernel."""

    def __init__(self, blocks: Blocks, lines: Lines, expressions: Expressions, variance: Variance) -> None:
        self._blocks = blocks
        self._lines = lines
        self._expressions = expressions
        self._variance = variance

    def write(self) -> None:
        """All of them in order, each into the variable of its name. Scans in chunks are left to `loop`."""
        nest = self._blocks.nest
        pairs = online.pairs(nest) if self._blocks.schedule.kind is Kind.LOOPED else {}
        done: set[str] = set()
        for reduction in nest.reductions:
            if reduction.name in pairs:
                self._together(reduction, pairs[reduction.name])
                done.add(pairs[reduction.name].second.name)
            elif reduction.name not in done:
                self._alone(reduction)

    @contextmanager
    def loop(self, extent: Dim, roots: Sequence[Scalar]) -> Iterator[None]:
        """A loop over chunks of columns for expressions `roots`, written inside; it computes the scans they read."""
        with self._lines.loop(extent):
            for scan in self._carried(roots):
                self._chunk(scan)
            yield

    def _alone(self, reduction: Reduction) -> None:
        identity, combine, reduce = primitives.reduction(reduction.fn, reduction.body.dtype)
        outer = self._lines.outer
        if not self._blocks.loops:
            with self._lines.over(reduction.extent):
                value = self._masked(reduction, identity)
            scan = primitives.SCANS[reduction.fn] if reduction.running else f"{reduce}[:, None]"
            outer.append(f"{reduction.name} = {scan.format(value)}")
            return
        if reduction.running:
            return  # computed in each loop that reads it
        block = f"{reduction.name}_block"
        outer.append(f"{block} = tl.full([ROWS, COLS], {identity}, {TYPES[reduction.body.dtype]})")
        with self.loop(reduction.extent, [reduction.body]):
            value = self._masked(reduction, identity)
            self._lines.add(COLUMN, f"{block} = {combine.format(block, value)}")
        outer.append(f"{reduction.name} = {reduce.format(block)}[:, None]")

    def _together(self, first: Reduction, pair: online.Pair) -> None:
        """Two reductions of one operand, the second over what the first makes of it, in one loop."""
        self._lines.outer += pair.start()
        with self.loop(first.extent, [first.body]):
            identity = primitives.reduction(first.fn, first.body.dtype)[0]
            value = self._lines.name(ROW | COLUMN, self._masked(first, identity))
            for line in pair.step(value, self._blocks.column_mask(first.extent)):
                self._lines.add(COLUMN, line)
        self._lines.outer += pair.finish(symbols.print_python(first.extent))

    def _carried(self, roots: Sequence[Scalar]) -> list[Reduction]:
        """The scans that a loop over `roots` has to compute on the way, in order."""
        wanted = {n.name for n in scalar.walk(*roots) if isinstance(n, Scanned)}
        needed: list[Reduction] = []
        for reduction in reversed(self._blocks.nest.reductions):
            if reduction.name in wanted:
                needed.insert(0, reduction)
                wanted |= {n.name for n in scalar.walk(reduction.body) if isinstance(n, Scanned)}
        return needed

    def _chunk(self, scan: Reduction) -> None:
        """A chunk of a scan, inside a loop, from what the chunks before it came to."""
        identity, combine, reduce = primitives.reduction(scan.fn, scan.body.dtype)
        carry = f"{scan.name}_carry"
        self._lines.outer.append(f"{carry} = tl.full([ROWS, 1], {identity}, {TYPES[scan.body.dtype]})")
        value = self._lines.name(COLUMN, self._masked(scan, identity))
        part = primitives.SCANS[scan.fn].format(value)
        self._lines.add(COLUMN, f"{scan.name} = {combine.format(carry, part)}")
        self._lines.add(COLUMN, f"{carry} = {combine.format(carry, reduce.format(value) + '[:, None]')}")

    def _masked(self, reduction: Reduction, identity: str) -> str:
        """The reduction's body, as a block of columns, with the identity beyond the row's end."""
        body = self._expressions.operand(reduction.body)
        mask = self._blocks.column_mask(reduction.extent)
        if not mask and not self._variance.of(reduction.body) & COLUMN:
            mask = f"j < {symbols.print_python(reduction.extent)}"  # makes a block of it
        return f"tl.where({mask}, {body}, {identity})" if mask else body
