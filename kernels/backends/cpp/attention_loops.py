"""Attention in C++: keys and values are read once for all rows that share them, scores never reach memory.

A unit is some rows of queries that have the same keys: positions, and the heads of a group. It runs along the places
in chunks. Of each it computes the scores, raises the highest one so far, scales what it has summed to that, and adds
the chunk's weights and weighted values. Where rows are few, it widens a chunk to float32 first; many rows are worth
packing it, for the tiles of matrix products. Threads share the units; where there are fewer units than threads, they
share the places too, and what each found is put together by the same scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fusion.kernels.attention import AttentionNest
from fusion.kernels.backends.cpp.columns import Column
from fusion.kernels.backends.cpp.expressions import Block, Interner, Values
from fusion.kernels.backends.cpp.product_loops import FORMATS, count, factor, indented, lane_sinks, places
from fusion.kernels.iteration_space import moved
from fusion.kernels.loops import Axis, LoopNest
from fusion.kernels.products import step
from fusion.patterns import scalar, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.scalar import COLUMN, INNER, Load, Scalar, Scanned
from fusion.patterns.symbols import Dim

FEW, CHUNK = 8, 32  # rows of a unit; places of a chunk
MANY_CHUNK = 128  # the same where rows are many
_MOST_FEW = 16  # rows with the same keys that are few
_MOST_ROWS, _MOST_QUERIES = 252, 1 << 15  # of a unit where rows are many; elements of their queries
_HEAD, _PARALLEL = "head", 1 << 16


class AttentionLoops:
    """Writes the functions of one attention nest.

    Args:
        nest: the kernel.
        form: what it is.
        name: what its functions are called.
        parameters: how functions declare its tensors and sizes.
        sizes: statements that read its size symbols.

    Raises:
        LoweringError: "primitive": keys or values do not lie along an index that vectors can be read along.
    """

    def __init__(self, nest: LoopNest, form: AttentionNest, name: str, parameters: str, sizes: Sequence[str]) -> None:
        self.nest = nest
        self.form = form
        self.name = name
        self.parameters = parameters
        self.sizes = sizes
        kinds = {a.dtype for a in nest.inputs if a.dtype.is_floating_point}
        self.plain_bfloat16 = kinds <= {torch.bfloat16}
        for load, index in ((form.key, INNER), (form.value, form.lane.name)):
            if step(load.offset, index) != 1 or step(load.offset, COLUMN) is None or load.dtype is not torch.float32:
                raise LoweringError("primitive", f"{nest.name}: {load.argument} does not lie along a head's elements.")
        groups = (Axis(_HEAD, symbols.as_dim(form.head.extent // form.group)),) if form.head is not None else ()
        self.many = min(_MOST_ROWS, _MOST_QUERIES // form.inner)  # rows of a unit, where they are many
        self.apart = (*form.batch, *groups)  # axes for each index of which keys and values are others
        self.together = (*form.rows, *((Axis("member", form.group),) if form.head is not None else ()))

    @property
    def always_few(self) -> bool:
        """Whether rows with the same keys are few at any size."""
        rows = symbols.product(axis.extent for axis in self.together)
        return isinstance(rows, int) and rows <= _MOST_FEW

    def functions(self) -> list[str]:
        """The function of a unit, and the one that stores what it found."""
        return [*self._unit(), "", *self._finish()]

    def call(self, arguments: Sequence[str]) -> list[str]:
        """Statements that run the kernel."""
        form = self.form
        handed = ", ".join([*arguments, "sizes"])
        row = 2 + int(form.lane.extent)  # the highest score, the total and the sums
        most = FEW if self.always_few else self.many
        even = "(together + parts - 1) / parts"
        height = str(FEW) if self.always_few else f"together <= {_MOST_FEW} ? {FEW} : {even}"
        return [
            f"const int64_t apart = {count(self.apart)}, together = {count(self.together)};",
            f"const int64_t places = {symbols.print_c(form.places)};",
            *([] if self.always_few else [f"const int64_t parts = (together + {self.many - 1}) / {self.many};"]),
            f"const int64_t height = {height}, record = {row} * height;",
            "const int64_t blocks = (together + height - 1) / height, units = apart * blocks;",
            "int64_t pieces = 1;",
            "#if defined(_OPENMP)",
            f"const bool many = together * apart * places * {form.inner} > {_PARALLEL} && omp_get_max_threads() > 1;",
            f"if (many && units < 2 * omp_get_max_threads() && places > {8 * CHUNK})",
            f"    pieces = clamp_index(2 * omp_get_max_threads() / units, 1, places / {4 * CHUNK});",
            "#endif",
            "float* found = new_panel<float>(units * pieces * record);",
            "if (!found) {  // unit by unit, then",
            f"    float own[{row * most}];",
            "    for (int64_t unit = 0; unit < units; ++unit) {",
            f"        {self.name}_unit({handed}, unit / blocks, unit % blocks * height, height, 0, places, own);",
            f"        {self.name}_finish({handed}, unit / blocks, unit % blocks * height, height, 1, own);",
            "    }",
            "    return 0;",
            "}",
            "#if defined(_OPENMP)",
            "#pragma omp parallel for schedule(dynamic, 1) if (many)",
            "#endif",
            "for (int64_t job = 0; job < units * pieces; ++job) {",
            "    const int64_t unit = job / pieces, piece = job % pieces;",
            f"    {self.name}_unit({handed}, unit / blocks, unit % blocks * height, height, places * piece / pieces,",
            "        places * (piece + 1) / pieces, found + job * record);",
            "}",
            "for (int64_t unit = 0; unit < units; ++unit)",
            f"    {self.name}_finish({handed}, unit / blocks, unit % blocks * height, height, pieces,",
            "        found + unit * pieces * record);",
            "free(found);",
            "return 0;",
        ]

    # ---- a unit

    def _unit(self) -> list[str]:
        form, lanes = self.form, int(self.form.lane.extent)
        most, width = (FEW, CHUNK) if self.always_few else (self.many, MANY_CHUNK)
        lines = [f"static __attribute__((noinline)) void {self.name}_unit("]
        lines += [f"    {self.parameters}, int64_t batch, int64_t top, int64_t height, int64_t start, int64_t stop,"]
        lines += ["    float* RESTRICT found) {", *self.sizes, *indented(self._begin())]
        lines += [
            f"    const int64_t length = {'' if self.always_few else f'height > {FEW} ? {MANY_CHUNK} : '}{CHUNK};",
            "    float* RESTRICT best = found; float* RESTRICT total = found + height;",
            "    float* RESTRICT sums = found + 2 * height;",
            f"    float queries[{most * form.inner}], scores[{most * width}], scale[{most}];",
            "    for (int64_t at = 0; at < height; ++at) best[at] = -__builtin_inff(), total[at] = 0.0f;",
            f"    __builtin_memset(sums, 0, sizeof(float) * height * {lanes});",
            "    for (int64_t row = top; row < bottom; ++row) {",
            *indented([*self._row_places(), *self._queries()], 2),
            "    }",
            *indented(self._ended()),
            f"    {'const ' if form.end is None else ''}int64_t first = top;",
            "    for (int64_t from = start; from < stop; from += length) {",
            "        const int64_t to = from + length < stop ? from + length : stop;",
            *indented(self._first(), 2),
            *indented(self._scores(), 2),
            "        for (int64_t row = first; row < bottom; ++row) {",
            *indented([*self._row_places(), *self._weights()], 3),
            "        }",
            *indented(self._sums(), 2),
            "    }",
        ]
        return [*lines, "}"]

    def _first(self) -> list[str]:
        """Statements that find the first row of the unit which takes places of the chunk; it is none before it."""
        end = self.form.end
        if end is None:
            return []
        return [
            "for (; first < bottom; ++first) {",
            "    const int64_t row = first;",
            *indented(self._row_places()),
            f"    if ({symbols.print_c(end)} > from) break;",
            "}",
        ]

    def _scores(self) -> list[str]:
        """Statements that multiply the queries with a chunk's keys."""
        form = self.form
        keys, stride, kind = self._address(form.key), self._stride(form.key), self._format(form.key)
        own = f"queries + (first - top) * {form.inner}, bottom - first"
        scores = "scores + (first - top) * length"
        few = [
            f"scores_of<{kind}, float>({own}, {keys}, {stride}, to - from, {form.inner}, {scores}, length,",
            f"    {self._next(form.value, 'from', int(form.lane.extent))});",
        ]
        many = [f"scores_of_many<{kind}, float>({own}, {keys}, {stride}, to - from, {form.inner}, {scores}, length);"]
        return self._by_height(few, many)

    def _sums(self) -> list[str]:
        """Statements that add up a chunk's values, weighted."""
        lanes, value = int(self.form.lane.extent), self.form.value
        values, stride, kind = self._address(value), self._stride(value), self._format(value)
        own = "scores + (first - top) * length, length, bottom - first"
        sums = f"scale + (first - top), sums + (first - top) * {lanes}"
        few = [
            f"weighted_of<{kind}, float>({own}, {values}, {stride}, to - from, {sums}, {lanes},",
            f"    {self._next(self.form.key, 'to', self.form.inner)});",
        ]
        many = [f"weighted_of_many<{kind}, float>({own}, {values}, {stride}, to - from, {sums}, {lanes});"]
        return self._by_height(few, many)

    def _by_height(self, few: list[str], many: list[str]) -> list[str]:
        if self.always_few:
            return few
        return [f"if (height <= {FEW}) {{", *indented(few), "} else {", *indented(many), "}"]

    def _begin(self) -> list[str]:
        return [
            *places(self.apart, "batch"),
            f"const int64_t bottom = top + height < {count(self.together)} ? top + height : {count(self.together)};",
        ]

    def _ended(self) -> list[str]:
        """Statements that leave out the places which no row of the unit takes."""
        end = self.form.end
        if end is None:
            return []
        return [
            "int64_t end = start;",
            "for (int64_t row = top; row < bottom; ++row) {",
            *indented(self._row_places()),
            f"    end = {symbols.print_c(end)} > end ? {symbols.print_c(end)} : end;",
            "}",
            "stop = end < stop ? end : stop;",
        ]

    def _row_places(self) -> list[str]:
        """Indices of a row: a head of the group, and a position."""
        lines = places(self.together, "row")
        if self.form.head is not None:
            lines.append(f"const int64_t {self.form.head.name} = {_HEAD} * {self.form.group} + member;")
        return lines

    def _queries(self) -> list[str]:
        values, interned, block = Values(plain_bfloat16=self.plain_bfloat16), Interner(), Block("row")
        by = {symbols.index_symbol(INNER): symbols.index_symbol(COLUMN)}

        def finish(inner: Block, texts: list[str]) -> None:
            inner.lines.append(f"queries[(row - top) * {self.form.inner} + {COLUMN}] = {texts[0]};")

        Column(values, interned, self.form.inner).each([interned(moved(self.form.query, by, {}))], finish, block)
        return block.lines

    def _weights(self) -> list[str]:
        """Turns a row's dots into weights, and tells how much what was summed before has to shrink."""
        values, interned, block = Values(plain_bfloat16=self.plain_bfloat16), Interner(), Block("row")
        at = "(row - top)"
        line = f"scores[{at} * length + {COLUMN} - from]"
        block.names["dot at the column"] = line

        def known(node: Scalar) -> Scalar | None:
            return Scanned(node.dtype, "dot") if node is self.form.dot else None

        def finish(inner: Block, texts: list[str]) -> None:
            inner.lines.append(f"{line} = {texts[0]};")

        score = interned(scalar.rebuild(self.form.score, known, {}))
        Column(values, interned, self.form.places, bounds=("from", "to")).each([score], finish, block)
        return [
            *block.lines,
            f"scale[{at}] = weights_of<float>(scores + {at} * length, to - from, best + {at}, total + {at});",
        ]

    # ---- what units found

    def _finish(self) -> list[str]:
        """The function that puts the pieces of a unit together and stores its rows."""
        lanes = int(self.form.lane.extent)
        lines = [f"static __attribute__((noinline)) void {self.name}_finish("]
        lines += [f"    {self.parameters}, int64_t batch, int64_t top, int64_t height, int64_t pieces,"]
        lines += ["    float* RESTRICT found) {"]
        lines += [*self.sizes, *indented(self._begin())]
        lines += [
            f"    const int64_t record = {2 + lanes} * height;",
            "    for (int64_t row = top; row < bottom; ++row) {",
            "        float highest = -__builtin_inff(), total = 0.0f;",
            "        for (int64_t piece = 0; piece < pieces; ++piece)",
            "            highest = max_of(highest, found[piece * record + row - top]);",
            "        const float safe = highest == -__builtin_inff() ? 0.0f : highest;",
            f"        float sums[{lanes}] = {{}};",
            "        for (int64_t piece = 0; piece < pieces; ++piece) {",
            "            const float* RESTRICT one = found + piece * record;",
            "            const float scale = exp_of(one[row - top] - safe);",
            "            total += one[height + row - top] * scale;",
            f"            for (int64_t k = 0; k < {lanes}; ++k)",
            f"                sums[k] += one[2 * height + (row - top) * {lanes} + k] * scale;",
            "        }",
            *indented([*self._row_places(), *self._stores()], 2),
            "    }",
        ]
        return [*lines, "}"]

    def _stores(self) -> list[str]:
        values, interned, block = Values(plain_bfloat16=self.plain_bfloat16), Interner(), Block("row")
        form = self.form
        for reduction, text in ((form.highest, "highest"), (form.total, "total"), (form.weighted, f"sums[{COLUMN}]")):
            block.names[f"{reduction.name} at the column"] = text
        sinks = lane_sinks(self.nest, form.lane, interned)
        Column(values, interned, form.lane.extent).store(sinks, block)
        return block.lines

    # ---- keys and values

    def _format(self, load: Load) -> str:
        return FORMATS.get(load.storage, "Whole<float>")

    def _stride(self, load: Load) -> str:
        stride = step(self._shared(load).offset, COLUMN)
        assert stride is not None
        return symbols.print_c(stride)

    def _address(self, load: Load, place: str = "from") -> str:
        """Where the key or value of a place is."""
        by: dict[Dim, Dim] = {
            symbols.index_symbol(COLUMN): symbols.index_symbol(place),
            symbols.index_symbol(INNER): 0,
            symbols.index_symbol(self.form.lane.name): 0,
        }
        return f"{load.argument} + {factor(symbols.substitute(self._shared(load).offset, by))}"

    def _next(self, load: Load, place: str, length: int) -> str:
        """Keys or values of `length` elements from a place on, to be fetched."""
        size = load.storage.itemsize
        return f"Next{{{self._address(load, place)}, {self._stride(load)} * {size}, {length * size}}}"

    def _shared(self, load: Load) -> Load:
        """A load with the heads of a group as one."""
        if self.form.head is None:
            return load
        head = symbols.index_symbol(self.form.head.name)
        shared = {symbols.floor_div(head, self.form.group): symbols.index_symbol(_HEAD)}
        return replace(load, offset=symbols.substitute(load.offset, shared))
