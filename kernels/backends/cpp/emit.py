"""C++ for CPUs from a LoopNest: per kernel a `prepare` that checks the inputs and a `run` that computes.

A column loop is cut where a Select on the column changes its case, so that no piece of it branches; what does not
run with the column is computed before the loop. Rows (or, for one long row, pieces of the column) are shared among
OpenMP threads when there is enough work to pay for waking them.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence

import torch

from fusion.kernels.attention import as_attention
from fusion.kernels.backends.cpp.attention_loops import AttentionLoops
from fusion.kernels.backends.cpp.expressions import STORAGE, Block, cost
from fusion.kernels.backends.cpp.lanes import LANES
from fusion.kernels.backends.cpp.prelude import prelude
from fusion.kernels.backends.cpp.product_loops import ProductLoops
from fusion.kernels.backends.cpp.rows import Row
from fusion.kernels.bundle import Bundle, Nest
from fusion.kernels.loops import Argument, Axis, LoopNest, Output
from fusion.kernels.memory_order import row_neighbours
from fusion.kernels.products import as_products
from fusion.patterns import scalar, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.scalar import COLUMN, Dot, Scalar
from fusion.patterns.symbols import Dim

# DLPack type codes; bits are the element size.
_CODES = {torch.bool: 6, torch.bfloat16: 4, torch.uint8: 1}

# Elements times instructions (`cost`) below which waking threads costs more than it saves. Measured on 2 cores: a
# parallel region costs 0.9 us while its threads spin, and one core does 100 of these units per nanosecond.
PARALLEL_WORK = 300_000
_MANY_ROWS = 64  # rows from which on each is one thread's; threads that share a row at most
_PLACEHOLDER = "KERNEL"
_RESERVED = re.compile(
    r"(x|at|cut|part|total|sum|row|outer|batch)\d*|blocks|begin|end|step|first|last|rows|thread|threads|partials|wanted|in|out"
    r"|sizes|given|out_shape|batches|apart|together|places|units?|pieces?|parts|found|job|many|best|queries|scores|head|member|scale|weights|highest|added|safe|outers|lanes?|height|length|panel|few|across|width|right|from|to|top|bottom|[A-Z_]+"
)


def emit(nest: Nest) -> str:
    """The C++ functions of one kernel: `<symbol>_prepare` and `<symbol>_run`, with a comment that says what it is.

    Raises:
        LoweringError: a dtype that C++ kernels do not handle, or a name that is no identifier.
    """
    return _comment(nest) + code(nest)


def code(nest: Nest) -> str:
    """`emit` without the comment: what the compiler sees, the same wherever the operators came from."""
    return _body(nest).replace(_PLACEHOLDER, symbol(nest))


def translation_unit(nests: Sequence[Nest], declared: Callable[[str], Sequence[str]] | None = None) -> str:
    """A complete source file with the kernels of `nests`, each once; the same text in every process.

    Args:
        nests: the kernels.
        declared: of the kernels' text, lines between the prelude and them: what of the prelude is compiled elsewhere.
    """
    kernels = "\n\n".join({symbol(nest): emit(nest) for nest in nests}.values())
    lines = "".join(f"{line}\n" for line in declared(kernels)) if declared is not None else ""
    return prelude(kernels) + "\n" + lines + kernels + "\n"


def symbol(nest: Nest) -> str:
    """The kernel's C name: its LoopNest's name and a digest of its code; comments and origins do not count."""
    digest = hashlib.sha256(_body(nest).encode()).hexdigest()[:12]
    return f"{_identifier(nest.name)}_{digest}"


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII)[:80]
    return cleaned if cleaned[:1].isalpha() else f"k{cleaned}"


def _comment(nest: Nest) -> str:
    lines = [f"{nest.name}, {nest.numerics} numerics", *nest.origin]
    return "".join(f"// {re.sub(r'[^A-Za-z0-9_./:@+, -]', '?', line)}\n" for line in lines)


@functools.lru_cache(maxsize=512)
def _body(nest: Nest) -> str:
    if isinstance(nest, Bundle):
        return "\n".join([*_part_functions(nest), *_prepare_function(nest), "", *_run_all_function(nest)])
    _check(nest)
    loops = _functions(nest, nest, _PLACEHOLDER)
    return "\n".join([*loops, "", *_prepare_function(nest), "", *_run_function(nest, _PLACEHOLDER, nest)])


def _part_functions(bundle: Bundle) -> list[str]:
    """The functions of each part of a bundle; each runs its own loops, on threads of its own where that pays."""
    lines: list[str] = []
    for k, part in enumerate(bundle.parts):
        _check(part)
        name = _part_name(k)
        lines += [*_functions(part, bundle, name), ""]
        lines += [*_run_function(part, name, bundle), ""]
    return lines


def _functions(nest: LoopNest, kernel: Nest, name: str) -> list[str]:
    """The functions that `_run_function` calls."""
    special = _special(nest, kernel, name)
    if special is not None:
        return special.functions()
    return [*_rows_function(nest, name), *_shared_function(nest, name)]


def _special(nest: LoopNest, kernel: Nest, name: str) -> ProductLoops | AttentionLoops | None:
    """The loops of a matrix product or of attention; None for any other nest. `kernel` is what it is a part of."""
    products, attention = as_products(nest), as_attention(nest)
    if products is not None:
        return ProductLoops(nest, products, name, _tensors(nest, kernel), _sizes(nest))
    if attention is not None:
        return AttentionLoops(nest, attention, name, _parameters(nest), _sizes(nest))
    if any(isinstance(node, Dot) for node in scalar.walk(*nest.roots)):
        raise LoweringError("primitive", f"{nest.name} is attention of a form that C++ kernels have no loops for.")
    return None


def _part_name(k: int) -> str:
    return f"{_PLACEHOLDER}_part{k}"


def _run_all_function(bundle: Bundle) -> list[str]:
    """Runs the parts one after the other; none reads what another writes."""
    calls = " || ".join(f"{_part_name(k)}_run(in, out, sizes)" for k in range(len(bundle.parts)))
    head = f"EXPORT int32_t {_PLACEHOLDER}_run(void* const* in, void* const* out, const int64_t* sizes) {{"
    return [head, f"    return {calls};", "}"]


def _check(nest: LoopNest) -> None:
    tensors: tuple[Argument | Output, ...] = (*nest.inputs, *nest.outputs)
    for tensor in tensors:
        if tensor.dtype not in STORAGE:
            raise LoweringError("dtype", f"C++ kernels have no element type for {tensor.dtype} ({tensor.name}).")
    names = [t.name for t in tensors] + [a.name for a in nest.rows]
    for name in names + [s.symbol for s in nest.sizes] + [r.name for r in nest.reductions]:
        if not name.isidentifier() or not name.isascii() or _RESERVED.fullmatch(name) or name == COLUMN:
            raise LoweringError("name", f"{name!r} cannot name a variable of the C++ kernel {nest.name}.")


def parallel_rows(nest: LoopNest) -> tuple[Axis, ...]:
    """The axes that threads share, but for the one whose rows are taken in blocks."""
    lanes = row_neighbours(nest)
    return tuple(a for a in nest.rows if a is not lanes and not (isinstance(a.extent, int) and a.extent == 1))


def splits_column(nest: LoopNest) -> bool:
    """Whether threads share the column: there is one row only, and nothing in it needs all of the column."""
    return not parallel_rows(nest) and not nest.reductions and all(not s.per_row for s in nest.stores)


def _sizes(nest: LoopNest) -> list[str]:
    return [f"    const int64_t {s.symbol} = sizes[{k}];" for k, s in enumerate(nest.sizes)]


def _parameters(nest: LoopNest) -> str:
    parameters = [f"const {STORAGE[a.dtype]}* RESTRICT {a.name}" for a in nest.inputs]
    parameters += [f"{STORAGE[o.dtype]}* RESTRICT {o.name}" for o in nest.outputs]
    return ", ".join([*parameters, "const int64_t* sizes"])


def _rows_function(nest: LoopNest, name: str) -> list[str]:
    """The serial kernel: rows first..last, or columns first..last of the one row."""
    block = Block()
    Row(nest, ("first", "last") if splits_column(nest) else None).write(block)
    lines = [f"static __attribute__((noinline)) void {name}_rows("]
    lines += [f"    {_parameters(nest)}, int64_t first, int64_t last) {{", *_sizes(nest)]
    if splits_column(nest):
        lines += [f"    const int64_t {a.name} = 0;" for a in nest.rows]
        lines += ["    " + line for line in block.lines]
    else:
        lines.append("    for (int64_t row = first; row < last; ++row) {")
        lines += ["        " + line for line in (*_row_indices(nest), *block.lines)]
        lines.append("    }")
    return [*lines, "}"]


def shares_rows(nest: LoopNest) -> bool:
    """Whether there may be fewer rows than threads, each long enough for the threads to share it."""
    if not nest.reductions or any(r.running for r in nest.reductions) or row_neighbours(nest) is not None:
        return False
    if as_products(nest) is not None or as_attention(nest) is not None:
        return False
    rows = symbols.product(a.extent for a in nest.rows)
    few = not isinstance(rows, int) or rows < _MANY_ROWS
    return few and any(not isinstance(n, int) or n * of > PARALLEL_WORK for n, of in column_passes(nest))


def _shared_function(nest: LoopNest, name: str) -> list[str]:
    """The kernel on one of several threads, each of which takes a stretch of the column of every row."""
    if not shares_rows(nest):
        return []
    block = Block()
    Row(nest, None).write_shared(block)
    return [
        "",
        "#if defined(_OPENMP)",
        f"static __attribute__((noinline)) void {name}_shared(",
        f"    {_parameters(nest)}, int64_t rows, Partial* partials, int64_t thread, int64_t threads) {{",
        *_sizes(nest),
        "    for (int64_t row = 0; row < rows; ++row) {",
        *("        " + line for line in (*_row_indices(nest), *block.lines)),
        "    }",
        "}",
        "#endif",
    ]


def _row_indices(nest: LoopNest) -> list[str]:
    """Row axes from the linear row number, innermost first; of neighbouring rows, where their block begins and ends."""
    parallel, lanes = parallel_rows(nest), row_neighbours(nest)
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


def _prepare_function(nest: Nest) -> list[str]:
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
            f"has_other_stride(in[{k}], {d}, {symbols.print_c(stride)})"
            for d, stride in enumerate(a.strides)
            if a.shape[d] != 1 and read.get(("stride", k, d)) != symbols.render(stride)
        ]
        lines += [f"    if ({' || '.join(shapes)}) return {k + 1};"] if shapes else []
        lines += [f"    if (({' || '.join(strides)}) && !is_empty(in[{k}])) return {k + 1};"] if strides else []
    dims = [dim for o in nest.outputs for dim in (*(o.shape[d] for d in o.order), *(stride for _, stride in o.loose))]
    lines += [f"    out_shape[{n}] = {symbols.print_c(dim)};" for n, dim in enumerate(dims)]
    return [*lines, "    return 0;", "}"]


def _tensors(nest: LoopNest, kernel: Nest) -> list[str]:
    """Statements that find the tensors of a kernel or a part of it."""
    found = [(f"const {STORAGE[a.dtype]}*", a.name, f"in[{kernel.inputs.index(a)}]") for a in nest.inputs]
    found += [(f"{STORAGE[o.dtype]}*", o.name, f"out[{kernel.outputs.index(o)}]") for o in nest.outputs]
    return [f"    {kind} RESTRICT {name} = ({kind}){place};" for kind, name, place in found]


def _run_function(nest: LoopNest, name: str, kernel: Nest) -> list[str]:
    """Calls the loops of a kernel or a part of it, on every thread's share where that pays.

    It returns 0, or 1 where there is no memory for what it keeps while it runs.
    """
    arguments = [f"(const {STORAGE[a.dtype]}*)in[{kernel.inputs.index(a)}]" for a in nest.inputs]
    arguments += [f"({STORAGE[o.dtype]}*)out[{kernel.outputs.index(o)}]" for o in nest.outputs]
    total, each = _work(nest)
    special = _special(nest, kernel, name)
    if isinstance(special, ProductLoops):
        lines = special.call()
    else:
        lines = special.call(arguments) if special is not None else _plain_run(nest, name, arguments, each)
    return [
        f"{'EXPORT' if kernel is nest else 'static'} int32_t {name}_run(",
        "    void* const* in, void* const* out, const int64_t* sizes) {",
        *_sizes(nest),
        f"    const int64_t total = {total};",
        "    if (total < 1) return 0;  // what is computed before a loop may read elements that an empty tensor lacks",
        *("    " + line for line in lines),
        "}",
    ]


def _plain_run(nest: LoopNest, name: str, arguments: Sequence[str], each: str) -> list[str]:
    """Calls the loops over rows, each of which does `each` work."""
    call = f"{name}_rows({', '.join(arguments)}, sizes, "
    shared = f"{name}_shared({', '.join(arguments)}, sizes, "
    return [
        "#if defined(_OPENMP)",
        *(_share(nest, shared, each) if shares_rows(nest) else []),
        f"if (total > 1 && total * ({each}) > {PARALLEL_WORK} && omp_get_max_threads() > 1) {{",
        "    #pragma omp parallel",
        "    {",
        "        const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();",
        "        const int64_t first = total * thread / threads, last = total * (thread + 1) / threads;",
        f"        {call}first, last);",
        "    }",
        "    return 0;",
        "}",
        "#endif",
        f"{call}0, total);",
        "return 0;",
    ]


def _share(nest: LoopNest, call: str, each: str) -> list[str]:
    """Runs few long rows, one after the other, on all threads together."""
    return [
        f"const int64_t wanted = omp_get_max_threads() < {_MANY_ROWS} ? omp_get_max_threads() : {_MANY_ROWS};",
        f"if (total > 0 && total < wanted && {each} > {PARALLEL_WORK}) {{",
        f"    Partial partials[{2 * len(nest.reductions) * _MANY_ROWS}];",
        "    #pragma omp parallel num_threads((int)wanted)",
        f"    {call}total, partials, omp_get_thread_num(), omp_get_num_threads());",
        "    return 0;",
        "}",
    ]


def _work(nest: LoopNest) -> tuple[str, str]:
    """What threads share (rows, blocks of them, or columns), and the elements times instructions of each, as C++."""
    lanes = row_neighbours(nest)
    rows = symbols.print_c(symbols.product(a.extent for a in nest.rows if a is not lanes))
    if lanes is not None:
        rows = f"{rows} * (({symbols.print_c(lanes.extent)} + {LANES - 1}) / {LANES})"
    if splits_column(nest):
        column: Dim = nest.column.extent if nest.column else 1
        return symbols.print_c(column), str(cost([s.value for s in nest.stores]) + 2 * len(nest.stores))
    passes = " + ".join(f"{symbols.print_c(extent)} * {of}" for extent, of in column_passes(nest)) or "8"
    return rows, passes if lanes is None else f"({passes}) * {LANES}"


def column_passes(nest: LoopNest) -> list[tuple[Dim, int]]:
    """For each loop over the column, how long it is and the instructions of an element."""
    passes = [(r.extent, cost([r.body]) + 1) for r in nest.reductions]
    stored: list[Scalar] = [s.value for s in nest.stores if not s.per_row]
    if stored and nest.column is not None:
        passes.append((nest.column.extent, cost(stored) + 2 * len(stored)))
    return passes
