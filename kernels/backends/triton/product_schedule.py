"""How a nest of matrix products is spread over Triton programs: tiles for tensor cores, or few rows in registers.

Tiles are chosen by rule from the sizes that are known; those in the tables were not measured on a GPU. What the tables
hold to: operands of a tile fit a program's shared memory, in all stages where GPUs of data centres have 163 KiB (sm_80,
sm_90), in all but one where others have 99 KiB (sm_86, sm_89), as Triton needs there; and the sums fit the registers
(`python -m bench triton_products` reads both from the binaries).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusion.kernels.bundle import Nest
from fusion.kernels.half_values import HalfValues
from fusion.kernels.loops import LoopNest
from fusion.kernels.products import Factors, ProductNest, as_products, step
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import COLUMN, HALF_TYPES, Apply, Load, Reduced
from fusion.patterns.symbols import Dim

FEW_ROWS = 4  # up to here a product takes as long as reading its weights
LEAST = 16  # rows and terms of the smallest tile that tensor cores multiply
MOST_PRODUCTS = 4  # whose sums share the registers
PROGRAMS = 128  # that a device is to have at least: an A100 has 108 multiprocessors, an H100 132
UNKNOWN_ROWS, UNKNOWN_COLUMNS = 512, 2048  # what sizes count as that only a call knows
LOADED = 4096  # elements of the right factors that a program of few rows reads at a time: 64 bytes a thread in halves
NEIGHBOURS = 64  # of one term's right factors that are read together where they lie side by side: 128 bytes in halves
SHARED, SHARED_ELSEWHERE = 163 * 1024, 99 * 1024  # bytes of shared memory: data centres' GPUs, and others
GROUP = 8  # blocks of rows that use a block of columns while it is in the L2 cache


@dataclass(frozen=True, slots=True)
class ProductSchedule:
    """A kernel's launch data. A program computes `rows` x `columns` sums of each product, over `depth` terms at a time.

    Attributes:
        few: whether terms are multiplied one by one and added up at the end, so that a register holds `depth` partial
            sums of each; otherwise `tl.dot` multiplies.
        rows: places on the axes of the left factors (`ROWS`).
        columns: places on the axes of the right factors (`COLS`).
        depth: terms of a chunk (`DEPTH`).
        group: blocks of rows whose programs follow each other, column by column (`GROUP`).
        num_warps: warps of 32 threads per program.
        num_stages: chunks that are on their way from memory at a time.
    """

    few: bool
    rows: int
    columns: int
    depth: int
    group: int
    num_warps: int
    num_stages: int

    @property
    def parts(self) -> tuple[ProductSchedule, ...]:
        """Of each loop nest: of the only one."""
        return (self,)

    @property
    def constants(self) -> dict[str, int]:
        """Block sizes by the name of the kernel's parameter."""
        return {"ROWS": self.rows, "COLS": self.columns, "DEPTH": self.depth, "GROUP": self.group}

    def grid(self, nest: LoopNest) -> tuple[tuple[Dim, str], ...]:
        """Sizes, and the constant that says how many of each a program covers, "" for one."""
        form = products_of(nest)
        return (batches(form), ""), (row_places(form), "ROWS"), (column_places(form), "COLS")

    def options(self, nest: Nest, warp_size: int = 32) -> dict[str, int | bool]:
        """Compiler options. AMD's GPUs have 64 KiB of shared memory: two stages."""
        amd = warp_size == 64 or torch.version.hip is not None
        return {
            "num_warps": max(1, self.num_warps * 32 // warp_size),
            "num_stages": min(2, self.num_stages) if amd else self.num_stages,
            "enable_fp_fusion": nest.numerics != "eager",  # sums of products are fused anyway, as the library's are
        }


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile of one product's sums. Where a kernel holds several products, each has a part of the columns."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


# From the largest, which reads least for each multiplication, to the smallest, of which there are most programs.
_HALVES = (
    _Tile(128, 256, 64, 8, 3), _Tile(128, 128, 64, 8, 3), _Tile(128, 64, 64, 4, 4), _Tile(64, 64, 64, 4, 4),
    _Tile(64, 32, 64, 4, 4), _Tile(32, 64, 128, 4, 3), _Tile(32, 32, 128, 4, 4), _Tile(16, 64, 128, 4, 4),
    _Tile(16, 32, 128, 4, 4), _Tile(16, 16, 128, 2, 4),
)  # fmt: skip
_WIDEST_COMPUTED = 128  # where something is computed of the sums, which needs registers beside them: wider ones spilled
# Of float32, which no tensor core multiplies without cutting it: threads do, with sums of 4x4 to 4x8 each.
_FLOATS = (_Tile(64, 64, 32, 4, 3), _Tile(64, 32, 32, 4, 3), _Tile(32, 32, 32, 2, 3), _Tile(16, 32, 32, 2, 3))


def product_schedule(nest: LoopNest) -> ProductSchedule | None:
    """The schedule for a nest of products, by rule; None for other nests, and for products that are no float32 sums."""
    form = as_products(nest)
    if form is None or len(form.products) > MOST_PRODUCTS:
        return None
    if any(p.reduction.body.dtype is not torch.float32 for p in form.products):
        return None
    rows = row_places(form)
    if isinstance(rows, int) and rows <= FEW_ROWS:
        return _few(form, max(1, rows))
    return _tiled(nest, form)


def products_of(nest: LoopNest) -> ProductNest:
    """A nest that has a `ProductSchedule`, as products."""
    form = as_products(nest)
    assert form is not None
    return form


def batches(form: ProductNest) -> Dim:
    """How many products of other operands there are."""
    return symbols.product(axis.extent for axis in form.batch)


def row_places(form: ProductNest) -> Dim:
    """How many left factors there are to each term."""
    return symbols.product(axis.extent for axis in form.rows)


def column_places(form: ProductNest) -> Dim:
    """How many right factors there are to each term."""
    return symbols.product(axis.extent for axis in (*form.outer, form.lane))


def operand_type(product: Factors) -> torch.dtype:
    """The type in which `tl.dot` takes the factors: the half-precision type that holds both exactly, or float32."""
    halves = HalfValues()
    for dtype in HALF_TYPES:
        if halves.holds(product.left, dtype) and halves.holds(product.right, dtype):
            return dtype
    return torch.float32


def _few(form: ProductNest, rows: int) -> ProductSchedule:
    """Weights are read once, as far as possible in whole lines, and each serves all rows from a register."""
    rows, shared = _power_above(rows), _power_above(len(form.products))
    loaded = LOADED // (rows * shared)
    columns = 4
    if any(_lies_along_lanes(form, p) for p in form.products):
        columns = min(NEIGHBOURS, max(columns, _power_above(_known(form.lane.extent, NEIGHBOURS))))
    terms = max(_known(p.reduction.extent, LOADED) for p in form.products)
    depth = min(loaded // columns, max(LEAST, _power_above(terms)))
    warps = min(4, max(1, rows * columns * depth // 256))
    return ProductSchedule(True, rows, columns, depth, 1, warps, 1)


def _tiled(nest: LoopNest, form: ProductNest) -> ProductSchedule:
    """The first tile of which there are enough programs, or the one that makes the most."""
    rows = _known(row_places(form), UNKNOWN_ROWS)
    columns = _known(column_places(form), UNKNOWN_COLUMNS)
    shared = _power_above(len(form.products))
    halves = all(operand_type(p) in HALF_TYPES for p in form.products)
    height = max(LEAST, _power_above(rows))
    tiles = [t for t in (_HALVES if halves else _FLOATS) if min(64, height) <= t.rows <= height]
    if shared > 1 or not _stores_sums(nest):
        tiles = [t for t in tiles if t.columns <= _WIDEST_COMPUTED]
    tile = tiles[-1]
    for tried in tiles:
        width = max(LEAST, tried.columns // shared)
        if _known(batches(form), 1) * -(-rows // tried.rows) * -(-columns // width) >= PROGRAMS:
            tile = tried
            break
    terms = max(_known(p.reduction.extent, tile.depth) for p in form.products)
    depth = min(tile.depth, max(LEAST, _power_above(terms)))
    width = max(LEAST, min(tile.columns // shared, _power_above(columns)))
    size = 2 if halves else 4
    chunk = (tile.rows * len(form.lefts) + width * len(form.products)) * depth * size
    stages = min(tile.num_stages, SHARED // chunk, SHARED_ELSEWHERE // chunk + 1)
    return ProductSchedule(False, tile.rows, width, depth, GROUP, tile.num_warps, max(1, stages))


def _stores_sums(nest: LoopNest) -> bool:
    """Whether sums are stored as they are, but for their rounding."""
    return all(
        isinstance(node, Reduced) or (isinstance(node, Apply) and node.fn.startswith(("cast", "round_")))
        for node in scalar.walk(*(s.value for s in nest.stores))
    )


def _lies_along_lanes(form: ProductNest, product: Factors) -> bool:
    """Whether the right factors of neighbouring lanes are neighbours in memory, and those of one lane are not."""
    loads = [node for node in scalar.walk(product.right) if isinstance(node, Load)]
    along = any(step(load.offset, form.lane.name) == 1 for load in loads)
    return along and not any(step(load.offset, COLUMN) == 1 for load in loads)


def _known(size: Dim, otherwise: int) -> int:
    return size if isinstance(size, int) else otherwise


def _power_above(count: int) -> int:
    """The smallest power of two that is at least `count`, at least 1."""
    return 1 << max(0, count - 1).bit_length()
