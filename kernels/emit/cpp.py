"""C++ for CPUs from a LoopNest: per kernel a `prepare` that checks the inputs and a `run` that computes.

A column loop is cut where a Select on the column changes its case, so that no piece of it branches; what does not
run with the column is computed before the loop. Rows (or, for one long row, pieces of the column) are shared among
OpenMP threads when there is enough work to pay for waking them.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence

import torch

from fusion.kernels.loops import Argument, Axis, LoopNest, Output
from fusion.patterns import scalar, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.scalar import COLUMN, Scalar, Select
from fusion.patterns.symbols import Dim

from .cpp_columns import Column, Running, Sink
from .cpp_expressions import STORAGE, Block, Interner, Values, cost, stored_value
from .cpp_lanes import LANES, Lanes, lane_axis
from .cpp_prelude import prelude

# DLPack type codes; bits are the element size.
_CODES = {torch.bool: 6, torch.bfloat16: 4, torch.uint8: 1}

# Elements times instructions (`cost`) below which waking threads costs more than it saves. Measured on 2 cores: a
# parallel region costs 0.9 us while its threads spin, and one core does 100 of these units per nanosecond.
PARALLEL_WORK = 300_000
# Elements a row may have for its costly values to be kept between passes: 16 KiB of floats each, on the stack.
ROW_BUFFER = 4096
_WORTH_KEEPING = 15  # vector instructions an element (`cost`); a store and a load cost about 2
_PLACEHOLDER = "KERNEL"
_RESERVED = re.compile(
    r"(x|at|cut|part|total)\d*|row|outer|blocks|begin|end|k|first|last|in|out|sizes|given|out_shape|[A-Z_]+"
)


def emit(nest: LoopNest) -> str:
    """The C++ functions of one kernel: `<symbol>_prepare` and `<symbol>_run`, with a comment that says what it is.

    Raises:
        LoweringError: a dtype that C++ kernels do not handle, or a name that is no identifier.
    """
    return _comment(nest) + code(nest)


def code(nest: LoopNest) -> str:
    """`emit` without the comment: what the compiler sees, the same wherever the operators came from."""
    return _body(nest).replace(_PLACEHOLDER, symbol(nest))


def translation_unit(nests: Sequence[LoopNest]) -> str:
    """A complete source file with the kernels of `nests`, each once; the same text in every process."""
    kernels = "\n\n".join({symbol(nest): emit(nest) for nest in nests}.values())
    return prelude(kernels) + "\n" + kernels + "\n"


def symbol(nest: LoopNest) -> str:
    """The kernel's C name: its LoopNest's name and a digest of its code; comments and origins do not count."""
    digest = hashlib.sha256(_body(nest).encode()).hexdigest()[:12]
    return f"{_identifier(nest.name)}_{digest}"


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII)[:80]
    return cleaned if cleaned[:1].isalpha() else f"k{cleaned}"


def _comment(nest: LoopNest) -> str:
    lines = [f"{nest.name}, {nest.numerics} numerics", *nest.origin]
    return "".join(f"// {re.sub(r'[^A-Za-z0-9_./:@+, -]', '?', line)}\n" for line in lines)


@functools.lru_cache(maxsize=512)
def _body(nest: LoopNest) -> str:
    _check(nest)
    return "\n".join([*_rows_function(nest), "", *_prepare_function(nest), "", *_run_function(nest)])


def _check(nest: LoopNest) -> None:
    tensors: tuple[Argument | Output, ...] = (*nest.inputs, *nest.outputs)
    for tensor in tensors:
        if tensor.dtype not in STORAGE:
            raise LoweringError("dtype", f"C++ kernels have no element type for {tensor.dtype} ({tensor.name}).")
    names = [t.name for t in tensors] + [a.name for a in nest.rows]
    for name in names + [s.symbol for s in nest.sizes] + [r.name for r in nest.reductions]:
        if not name.isidentifier() or not name.isascii() or _RESERVED.fullmatch(name) or name == COLUMN:
            raise LoweringError("name", f"{name!r} cannot name a variable of the C++ kernel {nest.name}.")


def _parallel_rows(nest: LoopNest) -> tuple[Axis, ...]:
    """The axes that threads share, but for the one whose rows are taken in blocks."""
    lanes = lane_axis(nest)
    return tuple(a for a in nest.rows if a is not lanes and not (isinstance(a.extent, int) and a.extent == 1))


def _splits_column(nest: LoopNest) -> bool:
    """Whether threads share the column: there is one row only, and nothing in it needs all of the column."""
    return not _parallel_rows(nest) and not nest.reductions and all(not s.per_row for s in nest.stores)


def _sizes(nest: LoopNest) -> list[str]:
    return [f"    const int64_t {s.symbol} = sizes[{k}];" for k, s in enumerate(nest.sizes)]


def _rows_function(nest: LoopNest) -> list[str]:
    """The serial kernel: rows first..last, or columns first..last of the one row."""
    parameters = [f"const {STORAGE[a.dtype]}* RESTRICT {a.name}" for a in nest.inputs]
    parameters += [f"{STORAGE[o.dtype]}* RESTRICT {o.name}" for o in nest.outputs]
    parameters += ["const int64_t* sizes", "int64_t first", "int64_t last"]
    block = Block()
    _Row(nest).write(block)
    lines = [f"static __attribute__((noinline)) void {_PLACEHOLDER}_rows("]
    lines += ["    " + ", ".join(parameters) + ") {", *_sizes(nest)]
    if _splits_column(nest):
        lines += [f"    const int64_t {a.name} = 0;" for a in nest.rows]
        lines += ["    " + line for line in block.lines]
    else:
        lines.append("    for (int64_t row = first; row < last; ++row) {")
        lines += ["        " + line for line in (*_row_indices(nest), *block.lines)]
        lines.append("    }")
    return [*lines, "}"]


def _row_indices(nest: LoopNest) -> list[str]:
    """Row axes from the linear row number, innermost first; of neighbouring rows, where their block begins and ends."""
    parallel, lanes = _parallel_rows(nest), lane_axis(nest)
    lines = [f"const int64_t {a.name} = 0;" for a in nest.rows if a not in parallel and a is not lanes]
    rest = "row"
    if lanes is not None:
        extent = symbols.print_c(lanes.extent)
        lines += [
            f"const int64_t blocks = ({extent} + {LANES - 1}) / {LANES}, outer = row / blocks;",
            f"const int64_t begin = row % blocks * {LANES};",
            f"const int64_t end = begin + {LANES} < {extent} ? begin + {LANES} : {extent};",
        ]
        rest = "outer"
    for k, axis in reversed(list(enumerate(parallel))):
        extent = symbols.print_c(axis.extent)
        lines.append(f"const int64_t {axis.name} = {rest}{f' % {extent}' if k else ''};")
        if k:
            lines.append(f"const int64_t row{k} = {rest} / {extent};")
            rest = f"row{k}"
    return lines


class _Row:
    """Writes what happens in one row: reductions, stores per row, stores per column."""

    def __init__(self, nest: LoopNest) -> None:
        self.nest = nest
        kinds = {a.dtype for a in nest.inputs if a.dtype.is_floating_point}
        self.values = Values(plain_bfloat16=kinds <= {torch.bfloat16})
        self.interned = Interner()
        self.reductions = [(r, self.interned(r.body)) for r in nest.reductions]
        self.scans = [Running(r.name, r.fn, body) for r, body in self.reductions if r.running]
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
        axis = lane_axis(self.nest)
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
        per_row = [sink for store, sink in self.sinks if store.per_row]
        self.values.count([sink.value for sink in per_row])
        for sink in per_row:
            text = self.values.stored(sink.storage, self.values.write(sink.value, block))
            block.lines.append(f"{sink.output}[{self.values.index(sink.offset, block)}] = {text};")
        per_column = [sink for store, sink in self.sinks if not store.per_row]
        if per_column and self.nest.column is not None:
            split = _splits_column(self.nest)
            bounds = ("first", "last") if split else None
            Column(self.values, self.interned, self.nest.column.extent, self.scans, bounds).store(per_column, block)


def _prepare_function(nest: LoopNest) -> list[str]:
    """Checks kinds, reads the sizes, then checks shapes and strides."""
    lines = [
        f"EXPORT int32_t {_PLACEHOLDER}_prepare(",
        "    const DLTensor* in, const int64_t* given, int64_t* sizes, int64_t* out_shape) {",
    ]
    for k, a in enumerate(nest.inputs):
        code = _CODES.get(a.dtype, 2 if a.dtype.is_floating_point else 0)
        lines.append(f"    if (!is_kind(in[{k}], {len(a.shape)}, {code}, {8 * a.dtype.itemsize})) return {k + 1};")
    for n, s in enumerate(nest.sizes):
        source = {
            "shape": f"in[{s.argument}].shape[{s.dim}]",
            "stride": f"stride_of(in[{s.argument}], {s.dim})",
            "given": f"given[{s.argument}]",
        }[s.source]
        lines.append(f"    const int64_t {s.symbol} = sizes[{n}] = {source};")
    read = {(s.source, s.argument, s.dim): s.symbol for s in nest.sizes}
    for k, a in enumerate(nest.inputs):
        shapes = [
            f"in[{k}].shape[{d}] != {symbols.print_c(size)}"
            for d, size in enumerate(a.shape)
            if read.get(("shape", k, d)) != symbols.render(size)
        ]
        strides = [
            f"(in[{k}].shape[{d}] != 1 && stride_of(in[{k}], {d}) != {symbols.print_c(stride)})"
            for d, stride in enumerate(a.strides)
            if a.shape[d] != 1 and read.get(("stride", k, d)) != symbols.render(stride)
        ]
        lines += [f"    if ({' || '.join(shapes)}) return {k + 1};"] if shapes else []
        lines += [f"    if (({' || '.join(strides)}) && !is_empty(in[{k}])) return {k + 1};"] if strides else []
    dims = [o.shape[d] for o in nest.outputs for d in o.order]
    lines += [f"    out_shape[{n}] = {symbols.print_c(dim)};" for n, dim in enumerate(dims)]
    return [*lines, "    return 0;", "}"]


def _run_function(nest: LoopNest) -> list[str]:
    """Calls the serial kernel, on every thread's share where that pays."""
    arguments = [f"(const {STORAGE[a.dtype]}*)in[{k}]" for k, a in enumerate(nest.inputs)]
    arguments += [f"({STORAGE[o.dtype]}*)out[{k}]" for k, o in enumerate(nest.outputs)]
    call = f"{_PLACEHOLDER}_rows({', '.join(arguments)}, sizes, "
    total, work = _work(nest)
    return [
        f"EXPORT void {_PLACEHOLDER}_run(void* const* in, void* const* out, const int64_t* sizes) {{",
        *_sizes(nest),
        f"    const int64_t total = {total};",
        "    if (total < 1) return;  // what is computed before a loop may read elements that an empty tensor lacks",
        "#if defined(_OPENMP)",
        f"    if (total > 1 && {work} > {PARALLEL_WORK} && omp_get_max_threads() > 1) {{",
        "        #pragma omp parallel",
        "        {",
        "            const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();",
        "            const int64_t first = total * thread / threads, last = total * (thread + 1) / threads;",
        f"            {call}first, last);",
        "        }",
        "        return;",
        "    }",
        "#endif",
        f"    {call}0, total);",
        "}",
    ]


def _work(nest: LoopNest) -> tuple[str, str]:
    """What threads share (rows, or columns), and the whole kernel's elements times instructions, as C++."""
    lanes = lane_axis(nest)
    rows = symbols.print_c(symbols.product(a.extent for a in nest.rows if a is not lanes))
    if lanes is not None:
        rows = f"{rows} * (({symbols.print_c(lanes.extent)} + {LANES - 1}) / {LANES})"
    column: Dim = nest.column.extent if nest.column else 1
    if _splits_column(nest):
        stores = cost([s.value for s in nest.stores]) + 2 * len(nest.stores)
        return symbols.print_c(column), f"total * {stores}"
    passes = [f"{symbols.print_c(r.extent)} * {cost([r.body]) + 1}" for r in nest.reductions]
    stored: list[Scalar] = [s.value for s in nest.stores if not s.per_row]
    if stored:
        passes.append(f"{symbols.print_c(column)} * {cost(stored) + 2 * len(stored)}")
    each = f" * {LANES}" if lanes is not None else ""
    return rows, f"total{each} * ({' + '.join(passes or ['8'])})"
