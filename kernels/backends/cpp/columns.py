"""Column loops in C++: cut where a Select changes its case, free of branches, ready to vectorise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy
import torch

from fusion.kernels.backends.cpp.dependence import mentions_column, split_column
from fusion.kernels.backends.cpp.expressions import (
    COMPUTE,
    Block,
    Interner,
    Values,
    branches,
    literal,
)
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import COLUMN, Scalar, Scanned, Select
from fusion.patterns.symbols import Dim

_BLOCK = 512  # elements that are computed to a buffer and then reduced; 2 KiB of floats, far inside the first cache
_ROW_BRANCHES = 2  # Selects on the row that become branches around the loop; each doubles the code

# Reduction -> the function that reduces a buffer, and how a buffer's result is taken in. Scan -> what makes a buffer
# running.
_REDUCTIONS = {"sum": "sum_of", "prod": "product_of", "max": "highest_of", "min": "lowest_of"}
COMBINE = {
    "sum": "{total} += {part};",
    "prod": "{total} *= {part};",
    "max": "{total} = max_of({total}, {part});",
    "min": "{total} = min_of({total}, {part});",
}
_SCANS = {"sum": "run_sum", "prod": "run_product"}

Finish = Callable[[Block, list[str]], None]


@dataclass(frozen=True, slots=True)
class Sink:
    """A value to be written to `output` at `offset`, as elements of `storage`."""

    value: Scalar
    output: str
    offset: Dim
    storage: torch.dtype


@dataclass(frozen=True, slots=True)
class _Choice:
    """What Selects with the same index and bounds decide; `cuts` are the columns where the case changes."""

    select: Select
    cuts: tuple[Dim, ...]

    def matches(self, node: Scalar) -> bool:
        return isinstance(node, Select) and node.index == self.select.index and node.bounds == self.select.bounds


@dataclass(frozen=True, slots=True)
class Running:
    """A scan: `name` at each column is `fn` over `body` up to it."""

    name: str
    fn: str
    body: Scalar
    halves: bool = False


def wide(kind: str, fn: str, halves: bool = False) -> str:
    """The type that partial results of a reduction are put together in: their number must not add to the error."""
    return "double" if kind == "float" and fn in ("sum", "prod") and not halves else kind


class Column:
    """Writes loops over the column from 0 to `extent`, or over a stretch of it.

    Args:
        scans: those the kernel has, in order. A loop that reads one computes it on the way, block by block.
        bounds: the variables that hold where the stretch starts and ends.
    """

    def __init__(
        self,
        values: Values,
        interned: Interner,
        extent: Dim,
        scans: Sequence[Running] = (),
        bounds: tuple[str, str] | None = None,
    ) -> None:
        self.values = values
        self.interned = interned
        self.extent = extent
        self.scans = scans
        self.start, self.stop = bounds or ("0", symbols.print_c(extent))
        self.whole = bounds is None

    def store(self, sinks: Sequence[Sink], block: Block) -> None:
        """Writes every sink for every column."""

        def finish(inner: Block, texts: list[str]) -> None:
            for sink, text in zip(sinks, texts, strict=True):
                target = f"{sink.output}[{self.values.index(sink.offset, inner)}]"
                inner.lines.append(f"{target} = {self.values.stored(sink.storage, text)};")

        carried = self._carried([s.value for s in sinks], block)

        def loop(roots: list[Scalar], at: Block, low: str, high: str) -> None:
            if not carried:
                self._loop(roots, at, low, high, finish)
                return

            def part(inside: Block, begin: str, end: str) -> None:
                values = self._run(carried, roots, inside, begin, end)
                self._loop(values, inside, begin, end, finish)

            self._blocks(at, low, high, part)

        self._decide([*(scan.body for scan, _ in carried), *(s.value for s in sinks)], loop, block)

    def each(self, roots: list[Scalar], finish: Finish, block: Block) -> None:
        """Writes `finish` of the values of `roots`, which read no scan of this kernel, for every column."""
        self._decide(roots, lambda chosen, at, low, high: self._loop(chosen, at, low, high, finish), block)

    def reduce(
        self, fn: str, name: str, body: Scalar, block: Block, keep: int = 0, partials: str | None = None
    ) -> None:
        """Computes the variable `name`, `fn` over `body`; NaN in any element makes a maximum or minimum NaN.

        Args:
            keep: 0, or how many elements the row has at most: they all stay in a buffer that later loops read.
            partials: where the threads that share the row leave their results, if they do.
        """
        kind = COMPUTE[body.dtype]
        helper, combine = _REDUCTIONS[fn], COMBINE[fn]
        total, kept = self.values.fresh("total"), self.values.fresh("part") if keep else ""
        block.lines += [f"{kind} {kept}[{keep} + 32];"] if keep else []
        start = literal(scalar.identity(fn, body.dtype), body.dtype)
        block.lines.append(f"{wide(kind, fn)} {total} = {start};")
        carried = self._carried([body], block)

        def loop(roots: list[Scalar], at: Block, low: str, high: str) -> None:
            def part(inside: Block, begin: str, end: str) -> None:
                values = self._run(carried, roots, inside, begin, end)
                known = begin.isdigit() and end.isdigit()
                length = str(int(end) - int(begin)) if known else f"{end} - {begin}"
                room = int(length) if known else _BLOCK
                buffer = self._buffered(values, inside, begin, end, kind, room, kept)
                inside.lines.append(combine.format(total=total, part=f"{helper}({buffer}, {length})"))

            self._blocks(at, low, high, part)

        self._decide([*(scan.body for scan, _ in carried), body], loop, block)
        if partials is not None:
            self._gather(fn, total, wide(kind, fn), partials, block)
        same = wide(kind, fn) == kind
        block.lines.append(f"const {kind} {name} = {total if same else f'({kind}){total}'};")
        if keep:
            block.names[id(body)] = f"{kept}[{COLUMN}]"

    def _gather(self, fn: str, total: str, kind: str, partials: str, block: Block) -> None:
        """Makes the partial result `total` of this thread that of all threads."""
        mine, member = self.values.fresh("part"), f"as_{kind.removesuffix('_t')}"
        block.lines += [
            f"Partial* const {mine} = {partials};",
            f"{mine}[thread].{member} = {total};",
            "#pragma omp barrier",
            f"{total} = {mine}[0].{member};",
            f"for (int64_t at = 1; at < threads; ++at) {COMBINE[fn].format(total=total, part=f'{mine}[at].{member}')}",
        ]

    def _blocks(self, at: Block, low: str, high: str, part: Callable[[Block, str, str], None]) -> None:
        """Writes `part` for every stretch of at most `_BLOCK` columns from `low` to `high`."""
        if low.isdigit() and high.isdigit() and int(high) - int(low) <= _BLOCK:
            part(at, low, high)
            return
        inside = Block("row", at)
        begin, end = self.values.fresh("cut"), self.values.fresh("cut")
        inside.lines.append(f"const int64_t {end} = {begin} + {_BLOCK} < {high} ? {begin} + {_BLOCK} : {high};")
        part(inside, begin, end)
        at.lines.append(f"for (int64_t {begin} = {low}; {begin} < {high}; {begin} += {_BLOCK}) {{")
        at.nest(inside)
        at.lines.append("}")

    def _carried(self, roots: Sequence[Scalar], block: Block) -> list[tuple[Running, str]]:
        """The scans that `roots` read, in order, each with the variable, made here, that carries its value on."""
        wanted = {n.name for n in scalar.walk(*roots) if isinstance(n, Scanned)}
        needed: list[Running] = []
        for scan in reversed(self.scans):
            if scan.name in wanted:
                needed.insert(0, scan)
                wanted |= {n.name for n in scalar.walk(scan.body) if isinstance(n, Scanned)}
        carried = []
        for scan in needed:
            total, kind = self.values.fresh("total"), COMPUTE[scan.body.dtype]
            start = literal(scalar.identity(scan.fn, scan.body.dtype), scan.body.dtype)
            block.lines.append(f"{wide(kind, scan.fn, scan.halves)} {total} = {start};")
            carried.append((scan, total))
        return carried

    def _run(
        self, carried: Sequence[tuple[Running, str]], roots: list[Scalar], block: Block, low: str, high: str
    ) -> list[Scalar]:
        """Computes the scans, whose bodies come first among `roots`, over a stretch; returns the other roots."""
        for (scan, total), body in zip(carried, roots, strict=False):
            buffer = self._buffered([body], block, low, high, COMPUTE[body.dtype], _BLOCK, "")
            block.lines.append(f"{total} = {_SCANS[scan.fn]}({buffer}, {high} - {low}, {total});")
            block.names[f"{scan.name} at the column"] = f"{buffer}[{COLUMN}{'' if low == '0' else f' - {low}'}]"
        return roots[len(carried) :]

    def _buffered(self, roots: list[Scalar], block: Block, low: str, high: str, kind: str, room: int, kept: str) -> str:
        """Writes a stretch of the column to the row's buffer, or a fresh one; returns where the stretch begins."""
        buffer = kept or self.values.fresh("part")
        block.lines += [] if kept else [f"{kind} {buffer}[{room} + 32];"]
        shift = "" if kept or low == "0" else f" - {low}"

        def finish(inner: Block, texts: list[str]) -> None:
            inner.lines.append(f"{buffer}[{COLUMN}{shift}] = {texts[0]};")

        self._loop(roots, block, low, high, finish)
        return f"{kept} + {low}" if kept else buffer

    def _decide(
        self, roots: list[Scalar], loop: Callable[[list[Scalar], Block, str, str], None], block: Block, depth: int = 0
    ) -> None:
        """Turns Selects on the row into branches, Selects on the column into pieces of the loop."""
        selects = [n for n in scalar.walk(*roots) if isinstance(n, Select)]
        on_row = [s for s in selects if not mentions_column((s.index, *s.bounds)) and self.values.runs_with_column(s)]
        if on_row and depth < _ROW_BRANCHES:
            choice = _Choice(on_row[-1], ())
            inners = [Block("row", block) for _ in choice.select.cases]
            for k, inner in enumerate(inners):
                self._decide(self._chosen(roots, {choice: k}), loop, inner, depth + 1)
            for opening, inner in zip(branches(choice.select), inners, strict=True):
                block.lines.append(opening)
                block.nest(inner)
            block.lines.append("}")
            return
        choices, cuts = _cuts(selects)
        if not cuts:
            loop(roots, block, self.start, self.stop)
            return
        edges = [self.start, *self._edges(cuts, block), self.stop]
        for k in range(len(cuts) + 1):
            taken = {c: next((n for n, cut in enumerate(c.cuts) if cuts.index(cut) >= k), len(c.cuts)) for c in choices}
            piece = self._chosen(roots, taken)
            if edges[k] == edges[k + 1]:
                continue
            inner = Block("row", block)
            loop(piece, inner, edges[k], edges[k + 1])
            certain = edges[k].isdigit() and edges[k + 1].isdigit()
            block.lines.append("{" if certain else f"if ({edges[k]} < {edges[k + 1]}) {{")
            block.nest(inner)
            block.lines.append("}")

    def _chosen(self, roots: list[Scalar], taken: dict[_Choice, int]) -> list[Scalar]:
        """`roots` with decided Selects replaced by the case they decide for."""

        def change(node: Scalar) -> Scalar | None:
            for choice, case in taken.items():
                if choice.matches(node):
                    assert isinstance(node, Select)
                    return scalar.rebuild(node.cases[case], change, memo)
            return None

        memo: dict[int, Scalar] = {}
        return [self.interned(scalar.rebuild(root, change, memo)) for root in roots]

    def _edges(self, cuts: Sequence[Dim], block: Block) -> list[str]:
        """The cuts as C++, kept within the loop; numbers where the extent is one."""
        edges: list[str] = []
        for cut in cuts:
            if isinstance(cut, int) and isinstance(self.extent, int) and self.whole:
                edges.append(str(min(max(cut, 0), self.extent)))
                continue
            name = self.values.fresh("cut")
            block.lines.append(
                f"const int64_t {name} = clamp_index({symbols.print_c(cut)}, {self.start}, {self.stop});"
            )
            edges.append(name)
        return edges

    def _loop(self, roots: list[Scalar], block: Block, low: str, high: str, finish: Finish, clause: str = "") -> None:
        """One loop without branches; what does not run with the column is written to `block` before it."""
        self.values.count(roots)
        body = Block("loop", block)
        finish(body, [self.values.write(root, body) for root in roots])
        block.lines.append("#pragma omp simd")
        block.lines.append(f"for (int64_t {COLUMN} = {low}; {COLUMN} < {high}; ++{COLUMN}) {{")
        block.nest(body)
        block.lines.append("}")


def _cuts(selects: Sequence[Select]) -> tuple[list[_Choice], list[Dim]]:
    """The Selects that change their case at known columns, and all those columns in ascending order."""
    choices: list[_Choice] = []
    cuts: list[Dim] = []
    for select in selects:
        parts = split_column(select.index)
        if parts is None or parts[0] != 1 or mentions_column(select.bounds):
            continue
        mine = tuple(symbols.as_dim(sympy.expand(sympy.sympify(b) - sympy.sympify(parts[1]))) for b in select.bounds)
        merged = _ascending([*cuts, *(c for c in dict.fromkeys(mine) if c not in cuts)])
        if merged is not None and not any(c.matches(select) for c in choices):
            choices.append(_Choice(select, mine))
            cuts = merged
    return choices, cuts


def _ascending(cuts: Sequence[Dim]) -> list[Dim] | None:
    """`cuts` in an order that holds for all sizes, or None."""
    ordered: list[Dim] = []
    for cut in cuts:
        place = len(ordered)
        while place and bool(sympy.sympify(ordered[place - 1] - cut).is_nonnegative):
            place -= 1
        if place and not bool(sympy.sympify(cut - ordered[place - 1]).is_nonnegative):
            return None
        ordered.insert(place, cut)
    return ordered
