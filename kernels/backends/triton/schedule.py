"""How a LoopNest is spread over Triton programs: block sizes, warps, and the number of programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from fusion.kernels.backends.triton.product_schedule import ProductSchedule, product_schedule
from fusion.kernels.bundle import Bundle, Nest, parts_of
from fusion.kernels.loops import Argument, LoopNest, Output
from fusion.kernels.memory_order import row_neighbours
from fusion.kernels.split_reduction import can_split, extents, phases
from fusion.patterns import symbols
from fusion.patterns.symbols import Dim

LONGEST_ROW = 16384  # elements a program keeps in registers: 32 per thread of 16 warps
TILE = 1024  # elements of a program otherwise: 8 per thread of 4 warps, 16 bytes of half precision each
LOOP_TILE = 1024
LONG = 32  # chunks of a row that is worth several launches, as one program waits for memory that often; not measured
SHORT = 2  # chunks, at least, in a piece of it
MOST = 256  # pieces: every program that reads what they come to puts all of them together
ACROSS = 64  # rows side by side: 128 bytes of half precision, a memory transaction
SYMBOLIC_COLUMNS = 256  # a column of unknown length is as likely short as long
INT32_LIMIT = 2**31 - 2**20  # offsets up to here fit 32 bits, and so do those of masked lanes beyond the end


class Kind(Enum):
    """The shapes a kernel can take."""

    FLAT = "flat"  # no rows, no reductions: a one-dimensional block per program
    TILE = "tile"  # a block of rows by a block of columns per program, which loops over reductions, if any, for itself
    ROWS = "rows"  # whole rows in registers, one or several per program
    LOOPED = "looped"  # a row per program, or several neighbours, in chunks: once per reduction, once for the stores


@dataclass(frozen=True, slots=True)
class Schedule:
    """A kernel's launch data.

    Attributes:
        kind: the shape of the kernel; the emitted source depends on it.
        rows: rows per program (`ROWS`), a power of two; 1 when flat.
        columns: columns per block (`COLS`), a power of two.
        num_warps: warps of 32 threads per program.
    """

    kind: Kind
    rows: int
    columns: int
    num_warps: int

    @property
    def parts(self) -> tuple[Schedule, ...]:
        """Of each loop nest: of the only one."""
        return (self,)

    @property
    def constants(self) -> dict[str, int]:
        """Block sizes by the name of the kernel's parameter."""
        return {"ROWS": self.rows, "COLS": self.columns}

    def programs(self, rows: int, columns: int) -> int:
        """The grid: how many programs cover `rows` rows of `columns` columns."""
        down = -(-rows // self.rows)
        return down * -(-columns // self.columns) if self.kind in (Kind.FLAT, Kind.TILE) else down

    def grid(self, nest: LoopNest) -> tuple[tuple[Dim, str], ...]:
        """Sizes, and the constant that says how many of each a program covers."""
        down = ((row_count(nest), "ROWS"),)
        return (*down, (column_count(nest), "COLS")) if self.kind in (Kind.FLAT, Kind.TILE) else down

    def options(self, nest: Nest, warp_size: int = 32) -> dict[str, int | bool]:
        """Compiler options: warps of `warp_size` threads, and no fused multiply-add where eager rounds twice."""
        return {
            "num_warps": max(1, self.num_warps * 32 // warp_size),
            "enable_fp_fusion": nest.numerics != "eager",
        }


@dataclass(frozen=True, slots=True)
class BundleSchedule:
    """A bundle's launch data: each part has a range of the programs, in order, and blocks of its own.

    Attributes:
        parts: of each part.
    """

    parts: tuple[PartSchedule, ...]

    @property
    def constants(self) -> dict[str, int]:
        """Block sizes by the name of the kernel's parameter: ROWS0, COLS0, ROWS1, ..."""
        return {f"{name}{k}": size for k, part in enumerate(self.parts) for name, size in part.constants.items()}

    def options(self, nest: Nest, warp_size: int = 32) -> dict[str, int | bool]:
        """Compiler options that are right for all parts: the most warps, the fewest stages."""
        every = [part.options(own, warp_size) for own, part in zip(parts_of(nest), self.parts, strict=True)]
        stages = [options["num_stages"] for options in every if "num_stages" in options]
        return {
            "num_warps": max(options["num_warps"] for options in every),
            "enable_fp_fusion": all(options["enable_fp_fusion"] for options in every),
            **({"num_stages": min(stages)} if stages else {}),
        }


PartSchedule = Schedule | ProductSchedule  # of one loop nest
AnySchedule = PartSchedule | BundleSchedule


def schedule_for(nest: Nest) -> AnySchedule:
    """The launch data of a kernel, by rule; the same kernel always gets the same."""
    if isinstance(nest, Bundle):
        return BundleSchedule(tuple(map(launch_options, nest.parts)))
    return launch_options(nest)


def programs(nest: Nest, schedule: AnySchedule, values: Mapping[str, int]) -> int:
    """How many programs cover a kernel at the given sizes: those of its parts together."""
    return sum(
        math.prod(-(-symbols.evaluate(size, values) // part.constants.get(name, 1)) for size, name in part.grid(loops))
        for loops, part in zip(parts_of(nest), schedule.parts, strict=True)
    )


def launch_options(nest: LoopNest) -> PartSchedule:
    """The schedule for `nest`, by rule; the same nest always gets the same one."""
    return product_schedule(nest) or row_options(nest)


def row_options(nest: LoopNest) -> Schedule:
    """The schedule for a nest that is taken row by row, whatever it computes."""
    columns = _width(nest)
    if not nest.reductions:
        return _pointwise(nest, columns)
    if row_neighbours(nest) is not None:
        return _across(nest, columns)
    if columns is None or _power_above(columns) > LONGEST_ROW:
        return Schedule(Kind.LOOPED, 1, LOOP_TILE, 4)
    block = _power_above(columns)
    rows = _few(max(1, TILE // block), nest)
    return Schedule(Kind.ROWS, rows, block, _warps(rows * block))


def pieces(nest: Nest, schedule: AnySchedule, values: Mapping[str, int], processors: int) -> tuple[int, ...]:
    """How the rows of a kernel are cut where they are too few to keep a device busy, and long.

    Args:
        nest: the kernel.
        schedule: its launch data.
        values: its sizes.
        processors: multiprocessors of the device, each of which runs a program at a time or more; 1 cuts nothing.

    Returns:
        The number of pieces of a row, then the columns in a piece of each of `extents(nest)`: what the nests of
        `in_phases` are given. () where each row is one program's.
    """
    if isinstance(nest, Bundle) or not isinstance(schedule, Schedule) or not _may_cut(nest, schedule):
        return ()
    chunks = [-(-symbols.evaluate(extent, values) // schedule.columns) for extent in extents(nest)]
    longest, rows = max(chunks), symbols.evaluate(row_count(nest), values)
    splits = min(processors * schedule.rows // max(1, rows), longest // SHORT, MOST)
    if processors < 2 or not rows or longest < LONG or splits < 2:
        return ()
    splits = -(-longest // -(-longest // splits))  # as many as whole chunks make
    return (splits, *(-(-count // splits) * schedule.columns for count in chunks))


def in_phases(nest: LoopNest, schedule: Schedule) -> tuple[tuple[LoopNest, Schedule], ...]:
    """The nests that take the place of one whose rows are cut, in order, with their launch data.

    Args:
        nest: a kernel that reduces its rows and scans none.
        schedule: its launch data, of chunks of rows.
    """
    *levels, last = phases(nest)
    stored = schedule if last.column is None else replace(schedule, kind=Kind.TILE)
    return (*((level, schedule) for level in levels), (last, stored))


def forms(nest: Nest, schedule: AnySchedule) -> tuple[tuple[Nest, AnySchedule], ...]:
    """Everything a launcher may run for a kernel: itself, then the nests of `in_phases` where its rows may be cut."""
    if isinstance(nest, LoopNest) and isinstance(schedule, Schedule) and _may_cut(nest, schedule):
        return ((nest, schedule), *in_phases(nest, schedule))
    return ((nest, schedule),)


def tensors(nest: Nest) -> tuple[Argument | Output, ...]:
    """The inputs, then the outputs: the order of the kernel's pointers."""
    return (*nest.inputs, *nest.outputs)


def parameters(nest: Nest) -> tuple[str, ...]:
    """Names of the kernel's run-time parameters, in order: inputs, outputs, sizes."""
    return (*(a.name for a in nest.inputs), *(o.name for o in nest.outputs), *(s.symbol for s in nest.sizes))


def row_count(nest: LoopNest) -> Dim:
    """How many rows the nest has."""
    return symbols.product(axis.extent for axis in nest.rows)


def column_count(nest: LoopNest) -> Dim:
    """How many columns its stores cover; 1 when every store is per row."""
    return nest.column.extent if nest.column is not None else 1


def needs_int64(nest: Nest, schedule: AnySchedule, values: Mapping[str, int]) -> bool:
    """Whether an element offset or a loop index may exceed 32 bits at the given sizes."""

    def span(shape: tuple[Dim, ...], strides: tuple[Dim, ...]) -> int:
        sizes = [symbols.evaluate(s, values) for s in shape]
        return sum(max(size - 1, 0) * symbols.evaluate(s, values) for size, s in zip(sizes, strides, strict=True))

    spans: list[int] = []
    for part, own in zip(parts_of(nest), schedule.parts, strict=True):
        rows = symbols.evaluate(row_count(part), values)
        widths = [symbols.evaluate(size, values) for size in (column_count(part), *(r.extent for r in part.reductions))]
        # A product's terms are counted by themselves.
        spans += [rows, *widths] if isinstance(own, ProductSchedule) else [rows * width for width in widths]
    spans += [span(tensor.shape, tensor.strides) for tensor in tensors(nest)]
    return max(spans) >= INT32_LIMIT


def _may_cut(nest: LoopNest, schedule: Schedule) -> bool:
    return schedule.kind is Kind.LOOPED and can_split(nest)


def _pointwise(nest: LoopNest, columns: int | None) -> Schedule:
    if not nest.rows and nest.column is not None:
        block = TILE if columns is None else min(TILE, max(128, _power_above(columns)))
        return Schedule(Kind.FLAT, 1, block, _warps(block))
    block = SYMBOLIC_COLUMNS if columns is None else min(TILE, _power_above(columns))
    rows = _few(TILE // block, nest)
    return Schedule(Kind.TILE, rows, block, _warps(rows * block))


def _across(nest: LoopNest, columns: int | None) -> Schedule:
    """Rows that are neighbours in memory: as many of them as make whole memory transactions, few columns at a time."""
    rows = _few(ACROSS, nest)
    if columns is not None and _power_above(columns) * rows <= LONGEST_ROW // 4:
        return Schedule(Kind.ROWS, rows, _power_above(columns), _warps(rows * _power_above(columns)))
    return Schedule(Kind.LOOPED, rows, LOOP_TILE // rows, 4)


def _width(nest: LoopNest) -> int | None:
    """The longest column of the stores and reductions, or None where one is symbolic."""
    longest = 1
    for extent in (column_count(nest), *(r.extent for r in nest.reductions)):
        if not isinstance(extent, int):
            return None
        longest = max(longest, extent)
    return longest


def _few(rows: int, nest: LoopNest) -> int:
    count = row_count(nest)
    return min(rows, _power_above(count)) if isinstance(count, int) else rows


def _warps(elements: int) -> int:
    """8 elements a thread up to 8 warps, then 16, then 32: registers per thread are what runs out."""
    return 1 << max(0, min(16, elements // 256 if elements <= 2048 else max(8, elements // 512)).bit_length() - 1)


def _power_above(count: int) -> int:
    """The smallest power of two that is at least `count`, at least 1."""
    return 1 << max(0, count - 1).bit_length()
