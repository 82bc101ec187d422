"""Matrix products in C++: left factors in a panel, right factors packed block by block, stores on what was summed.

The left factors of some rows are computed once, into a panel that all threads read. A block is some lanes of those
rows: its right factors are packed and multiplied tile by tile, and its sums are stored through whatever the kernel
computes of them, without a trip through memory. Where there are few rows, nothing is packed: right factors are read
once and meet every row on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusion.kernels.backends.cpp.columns import Column, Sink
from fusion.kernels.backends.cpp.expressions import COMPUTE, Block, Interner, Values, stored_value
from fusion.kernels.half_values import HalfValues
from fusion.kernels.iteration_space import moved
from fusion.kernels.loops import Axis, LoopNest
from fusion.kernels.products import Factors, ProductNest, step
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import COLUMN, Apply, Load, Reduced, Scalar, Scanned
from fusion.patterns.symbols import Dim

FEW_ROWS = 8  # as in the C++ text
FORMATS = {torch.bfloat16: "Bfloat16", torch.float16: "Float16"}


class ProductLoops:
    """Writes the functions of one nest of products.

    Args:
        nest: the kernel.
        form: its products.
        name: what its functions are called.
        tensors: statements that find its tensors in `in` and `out`.
        sizes: statements that read its size symbols.
    """

    def __init__(
        self, nest: LoopNest, form: ProductNest, name: str, tensors: Sequence[str], sizes: Sequence[str]
    ) -> None:
        self.nest = nest
        self.form = form
        self.name = name
        self.begin = [*tensors, *sizes]
        self.kind = COMPUTE[form.products[0].reduction.body.dtype]
        kinds = {a.dtype for a in nest.inputs if a.dtype.is_floating_point}
        self.plain_bfloat16 = kinds <= {torch.bfloat16}
        halves = HalfValues()
        factors = [factor for p in form.products for factor in (p.left, p.right)]
        self.narrow = self.kind == "float" and all(halves.holds(f, torch.bfloat16) for f in factors)
        self.packed = "Narrow" if self.narrow else self.kind  # what tiles take factors as

    def functions(self) -> list[str]:
        """The two functions that `products_of` calls, which goes through all panels and blocks."""
        return [*self._left(), "", *self._block()]

    def call(self) -> list[str]:
        """Statements that run the kernel."""
        extents = {
            "batches": count(self.form.batch), "rows": count(self.form.rows), "outers": count(self.form.outer),
            "lanes": symbols.print_c(self.form.lane.extent),
        }  # fmt: skip
        few = f"rows <= {FEW_ROWS}" if self.takes_few() else "false"
        few = "true" if self.always_few() else few
        depth = " + ".join(self._pitch(extent) for _, extent in self.form.lefts)
        passes = " + ".join(symbols.print_c(p.reduction.extent) for p in self.form.products)
        handed = f"{', '.join(extents)}, {depth}, few, width, batches * rows * outers * lanes * ({passes})"
        return [
            *(f"const int64_t {name} = {text};" for name, text in extents.items()),
            f"const bool few = {few};",
            self._width(),
            f"return products_of<{self.kind}>({self.name}_left, {self.name}_block, in, out, sizes, {handed});",
        ]

    def _width(self) -> str:
        """The statement that says how many lanes a block has."""
        return f"const int64_t width = few ? {self._few_lanes()} : (int64_t)Tile<{self.kind}>::width;"

    # ---- left factors

    def _left(self) -> list[str]:
        """The function that computes left factors: rows `first` to `last` of a panel that starts at row `top`."""
        given = "void* const* in, void* const* out, const int64_t* sizes"
        places_of = "int64_t batch, int64_t top, int64_t height, int64_t first, int64_t last"
        head = f"static void {self.name}_left({given}, {places_of}, bool few, {self.kind}* RESTRICT panel) {{"
        if self.always_few() or not self.narrow:
            return [head, *self._left_rows(self.kind), "}"]
        panel, passed = f"{places_of}, P* RESTRICT panel", "in, out, sizes, batch, top, height, first, last"
        lines = [f"template <typename P> static void {self.name}_left_as({given}, {panel}) {{"]
        lines += [*self._left_rows("P"), "}", head]
        if self.takes_few():
            lines += [f"    if (few) return {self.name}_left_as<{self.kind}>({passed}, panel);"]
        return [*lines, f"    {self.name}_left_as<Narrow>({passed}, (Narrow*)panel);", "}"]

    def _left_rows(self, element: str) -> list[str]:
        """Statements that compute left factors as elements of a panel."""
        lines = [*self.begin, *indented(places(self.form.batch, "batch"))]
        lines += ["    for (int64_t row = first; row < last; ++row) {", *indented(places(self.form.rows, "row"), 2)]
        values, interned = Values(plain_bfloat16=self.plain_bfloat16), Interner()
        for number, (left, extent) in enumerate(self.form.lefts):
            block, root = Block("row"), interned(left)
            line = values.fresh("part")
            block.lines.append(
                f"{element}* RESTRICT {line} = panel + {self._base(number)} + (row - top) * ({self._pitch(extent)});"
            )

            def finish(inner: Block, texts: list[str], line: str = line) -> None:
                inner.lines.append(f"{line}[{COLUMN}] = Terms<{element}>::factor({texts[0]});")

            Column(values, interned, extent).each([root], finish, block)
            if self._pitch(extent) != symbols.print_c(extent):
                end = factor(extent)
                block.lines.append(f"if ({end} % 2) {line}[{end}] = Terms<{element}>::factor(0);")
            lines += ["        {", *indented(block.lines, 3), "        }"]
        return [*lines, "    }"]

    def _pitch(self, extent: Dim) -> str:
        """How far rows of left factors are apart: an even number where two factors may be one step."""
        if self.narrow and not (isinstance(extent, int) and extent % 2 == 0):
            return f"({factor(extent)} + 1) / 2 * 2"
        return symbols.print_c(extent)

    def _base(self, number: int) -> str:
        """Where the rows of a left factor begin in the panel."""
        before = " + ".join(self._pitch(extent) for _, extent in self.form.lefts[:number])
        return f"height * ({before})" if before else "0"

    # ---- a block

    def _block(self) -> list[str]:
        """The function that computes lanes `begin` to `end` of the rows in the panel."""
        lines = [f"static void {self.name}_block(", "    void* const* in, void* const* out, const int64_t* sizes,"]
        lines += ["    int64_t batch, int64_t outer, int64_t begin, int64_t end, int64_t top,"]
        lines += [f"    int64_t height, int64_t bottom, bool few, const {self.kind}* RESTRICT panel) {{", *self.begin]
        lines += indented([*places(self.form.batch, "batch"), *places(self.form.outer, "outer")])
        lines += [
            "    const int64_t rows = bottom - top, lanes = end - begin;",
            "    " + self._width(),
        ]
        numbers = {id(left): k for k, (left, _) in enumerate(self.form.lefts)}
        for number, product in enumerate(self.form.products):
            lines += indented(self._product(number, numbers[id(product.left)], product))
        return [*lines, *indented(self._stores()), "}"]

    def _product(self, number: int, left: int, product: Factors) -> list[str]:
        """Computes `sum<number>[row][lane]`."""
        extent, packed = product.reduction.extent, self.packed
        sums, base = f"sum{number}", self._base(left)
        step = f"Tile<{self.kind}>::depth * Terms<{packed}>::places"
        panel = f"(const Narrow*)panel + {base}" if self.narrow else f"panel + {base}"
        lines = [f"{self.kind} {sums}[Tile<{self.kind}>::sums];"]
        tiles = [
            f"__builtin_memset({sums}, 0, sizeof({self.kind}) * rows * width);",
            f"{packed} right[{step} * Tile<{self.kind}>::width];",
            f"for (int64_t from = 0; from < {symbols.print_c(extent)}; from += {step}) {{",
            f"    const int64_t to = from + {step} < {symbols.print_c(extent)} "
            f"? from + {step} : {symbols.print_c(extent)};",
            *indented(self._packed(product)),
            f"    tile<{packed}>({panel} + from, {self._pitch(extent)}, rows, right, to - from, {sums});",
            "}",
        ]
        few = self._few(product, f"panel + {base}", sums)
        if not few:
            return [*lines, "{", *indented(tiles), "}"]
        if self.always_few():
            return [*lines, *few]
        return [*lines, "if (few) {", *indented(few), "} else {", *indented(tiles), "}"]

    def _few(self, product: Factors, panel: str, sums: str) -> list[str]:
        """The statement that computes sums of few rows; none where right factors are no plain elements of memory."""
        plain = self._plain(product)
        if plain is None:
            return []
        load, by_lane, by_place = plain
        form, extent = self._format(load), symbols.print_c(product.reduction.extent)
        name, stride = ("dots", by_lane) if by_place == 1 else ("sum_rows", by_place)
        name = "dots_of_one" if name == "dots" and not self.form.rows else name
        start = self._element(load, "begin", "0")
        factors = f"{panel}, {self._pitch(product.reduction.extent)}, rows, {start}, {symbols.print_c(stride)}"
        return [f"{name}<{form}, {self.kind}>({factors}, lanes, {extent}, {sums}, width);"]

    def _few_lanes(self) -> str:
        """How many lanes a block has where rows are few."""
        plain = [self._plain(p) for p in self.form.products]
        return "SOME_LANES" if all(p is not None and p[2] == 1 for p in plain) else "MANY_LANES"

    def always_few(self) -> bool:
        """Whether there are few rows at any size, so that tiles are never needed."""
        rows = symbols.product(axis.extent for axis in self.form.rows)
        return isinstance(rows, int) and rows <= FEW_ROWS and self.takes_few()

    def takes_few(self) -> bool:
        """Whether all right factors are plain elements of memory, so that few rows need no packing."""
        return all(self._plain(p) is not None for p in self.form.products)

    def _plain(self, product: Factors) -> tuple[Load, Dim, Dim] | None:
        """The right factor as a load, with its steps along the lanes and along the sum, one of which is 1."""
        load = product.right
        while isinstance(load, Apply) and load.fn == "cast" and load.dtype is load.args[0].dtype:
            load = load.args[0]
        if not isinstance(load, Load) or COMPUTE[load.dtype] != self.kind:
            return None
        if load.storage not in FORMATS and load.storage is not load.dtype:
            return None
        by_lane, by_place = step(load.offset, self.form.lane.name), step(load.offset, COLUMN)
        if by_lane is None or by_place is None or not (by_lane == 1 or by_place == 1):
            return None
        return load, by_lane, by_place

    def _format(self, load: Load) -> str:
        return FORMATS.get(load.storage, f"Whole<{self.kind}>")

    def _element(self, load: Load, lane: str, place: str) -> str:
        """The address of a right factor."""
        names = {self.form.lane.name: lane, COLUMN: place}
        by = {symbols.index_symbol(old): symbols.index_symbol(new) if new != "0" else 0 for old, new in names.items()}
        return f"{load.argument} + {factor(symbols.substitute(load.offset, by))}"

    def _packed(self, product: Factors) -> list[str]:
        """Statements that put the right factors of places `from` to `to` into `right`, lanes that are missing as 0."""
        plain = self._plain(product)
        if plain is not None:
            load, by_lane, by_place = plain
            name, stride = ("pack_lanes", by_lane) if by_place == 1 else ("pack_rows", by_place)
            start = self._element(load, "begin", "from")
            form = f"{self._format(load)}, {self.packed}"
            return [f"{name}<{form}>({start}, {symbols.print_c(stride)}, lanes, to - from, right);"]
        values, interned, block = Values(plain_bfloat16=self.plain_bfloat16), Interner(), Block("row")

        def finish(inner: Block, texts: list[str]) -> None:
            place = f"place_of<{self.packed}>({COLUMN} - from, lane - begin)"
            inner.lines.append(f"right[{place}] = Terms<{self.packed}>::factor({texts[0]});")

        by = {symbols.index_symbol(self.form.lane.name): symbols.index_symbol("lane")}
        root = interned(moved(product.right, by, {}))
        Column(values, interned, product.reduction.extent, bounds=("from", "to")).each([root], finish, block)
        return [
            f"if (lanes < Tile<{self.kind}>::width || (to - from) % Terms<{self.packed}>::places)",
            "    __builtin_memset(right, 0, sizeof(right));",
            "for (int64_t lane = begin; lane < end; ++lane) {",
            *indented(block.lines),
            "}",
        ]

    def _stores(self) -> list[str]:
        """Statements that store what the sums of a block come to, lane after lane of each row."""
        values, interned, block = Values(plain_bfloat16=self.plain_bfloat16), Interner(), Block("row")
        names = [p.reduction.name for p in self.form.products]
        for number, name in enumerate(names):
            block.names[f"{name} at the column"] = f"sum{number}[(row - top) * width + {COLUMN} - begin]"
        sinks = lane_sinks(self.nest, self.form.lane, interned)
        Column(values, interned, self.form.lane.extent, bounds=("begin", "end")).store(sinks, block)
        return [
            "for (int64_t row = top; row < bottom; ++row) {",
            *indented([*places(self.form.rows, "row"), *block.lines]),
            "}",
        ]


def lane_sinks(nest: LoopNest, lane: Axis, interned: Interner) -> list[Sink]:
    """A nest's stores in a loop over its lanes, where each reduction has a value at every lane."""
    storage = {o.name: o.dtype for o in nest.outputs}
    by = {symbols.index_symbol(lane.name): symbols.index_symbol(COLUMN)}
    memo: dict[int, Scalar] = {}
    rebuilt: dict[int, Scalar] = {}

    def summed(node: Scalar) -> Scalar | None:
        return Scanned(node.dtype, node.name) if isinstance(node, Reduced) else None

    return [
        Sink(
            stored_value(interned(scalar.rebuild(moved(s.value, by, memo), summed, rebuilt)), storage[s.output]),
            s.output, symbols.substitute(s.offset, by), storage[s.output],
        )
        for s in nest.stores
    ]  # fmt: skip


def count(axes: Sequence[Axis]) -> str:
    """How many combinations of indices axes have, as C++."""
    return symbols.print_c(symbols.product(axis.extent for axis in axes))


def factor(dim: Dim) -> str:
    """A size as C++ that may stand beside any operator."""
    text = symbols.print_c(dim)
    return text if isinstance(dim, int) or text.isidentifier() else f"({text})"


def places(axes: Sequence[Axis], number: str) -> list[str]:
    """Statements that tell the axes' indices from the number of their combination, innermost first."""
    lines: list[str] = []
    rest = number
    for k, axis in reversed(list(enumerate(axes))):
        extent = factor(axis.extent)
        lines.append(f"const int64_t {axis.name} = {rest}{f' % {extent}' if k else ''};")
        if k:
            lines.append(f"const int64_t {number}{k} = {rest} / {extent};")
            rest = f"{number}{k}"
    return lines


def indented(lines: Sequence[str], by: int = 1) -> list[str]:
    """Lines of an inner block."""
    return ["    " * by + line for line in lines]
