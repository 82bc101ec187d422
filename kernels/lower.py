"""From a SubGraph to the one kernel that computes it."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fusion.kernels.inline import Elements, check_calls
from fusion.kernels.iteration_space import (
    Body,
    ReducedSizes,
    Space,
    column_candidates,
    column_space,
    memory_order,
    merged,
    space_of,
)
from fusion.patterns import indexing, ops, scalar, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import Kind
from fusion.patterns.scalar import (
    COLUMN,
    INNER,
    Apply,
    Constant,
    Dot,
    Load,
    Reduce,
    Reduced,
    Scalar,
    Scan,
    Scanned,
    Select,
    Size,
)
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim

from .bundle import Bundle, Nest
from .loops import Argument, LoopNest, Output, Reduction, SizeParameter, Store

_NAME_LENGTH = 48


def lower(graph: SubGraph, *, numerics: str = "eager") -> LoopNest:
    """The kernel that computes `graph`.

    Inputs are named a0.. and outputs o0.. in the graph's order, size symbols s0.. as in `graph.canonical`.

    Args:
        graph: pointwise operators, views, joins, reductions and scans.
        numerics: "eager" rounds every operator's result to its dtype; "fp32" keeps floating intermediates in float32
            and rounds what is stored.

    Raises:
        LoweringError: the graph is not one kernel. Codes: "not_fusable" (an operator without an element-wise
            definition), "operator_use" (a use the operator table does not cover), "dtype", "device", "output_layout"
            (an output that is dense in no order), "domain" (outputs over different iteration spaces),
            "reduction_in_column" (a reduction that would run again for many elements), "reduction_in_join" (a reduction
            over rows that only some rows of the kernel have), "scan_index" (a scan that is not read along the kernel's
            column), "index" (an index too involved to simplify safely), "too_large".
    """
    if graph.bundle:
        raise ValueError("`lower_kernel` lowers bundles.")
    (nest,), _ = _nests(graph, numerics)
    return nest


def lower_kernel(graph: SubGraph, *, numerics: str = "eager") -> Nest:
    """The kernel that computes `graph`: a LoopNest, or a Bundle of those of its parts.

    Args, Raises: as `lower`.
    """
    if not graph.bundle:
        return lower(graph, numerics=numerics)
    nests, (inputs, outputs, sizes) = _nests(graph, numerics)
    return Bundle(_name(graph), graph.digest, inputs, outputs, nests, sizes, numerics, _origins(graph))


def check(graph: SubGraph) -> None:
    """Whether `graph` is one kernel, at a fraction of what lowering it takes; whichever the numerics.

    It builds the elements of the outputs, where all refusals arise, and leaves out what is made of them.

    Args, Raises: as `lower`.
    """
    canonical = graph.canonical
    check_calls(canonical)
    for part, outputs in _parts(canonical, _outputs(canonical)):
        with _limited_depth(graph):
            _suited(part, outputs, eager=True)


_Head = tuple[tuple[Argument, ...], tuple[Output, ...], tuple[SizeParameter, ...]]


def _nests(graph: SubGraph, numerics: str) -> tuple[tuple[LoopNest, ...], _Head]:
    """A loop nest per part of `graph`, with what all of them together read, write and are told."""
    if numerics not in ("eager", "fp32"):
        raise ValueError(f"numerics is 'eager' or 'fp32', not {numerics!r}.")
    canonical = graph.canonical
    check_calls(canonical)
    inputs, outputs = _inputs(canonical), _outputs(canonical)
    made: list[tuple[SubGraph, tuple[Output, ...], Body]] = []
    for part, own in _parts(canonical, outputs):
        with _limited_depth(graph):
            made.append((part, own, _body(part, own, eager=numerics == "eager")))
    sizes = _sizes([body for _, _, body in made], inputs, outputs)
    nests = tuple(
        LoopNest(
            name=_name(graph),
            subgraph=graph.digest,
            inputs=tuple(a for a in inputs if a.name in part.inputs),
            outputs=own,
            rows=body.rows,
            column=body.column,
            reductions=body.reductions,
            stores=body.stores,
            sizes=sizes,
            numerics=numerics,
            origin=_origins(graph),
        )
        for part, own, body in made
    )
    return nests, (inputs, outputs, sizes)


def _parts(canonical: SubGraph, outputs: tuple[Output, ...]) -> Iterator[tuple[SubGraph, tuple[Output, ...]]]:
    """The parts of a bundle, or the graph alone, each with its outputs."""
    left = iter(outputs)
    for part in canonical.parts:
        yield part, tuple(itertools.islice(left, len(part.outputs)))


@contextlib.contextmanager
def _limited_depth(graph: SubGraph) -> Iterator[None]:
    """Turns the interpreter's limit on nested calls into a refusal."""
    try:
        yield
    except RecursionError as error:
        raise LoweringError(
            "too_large", f"A chain of {len(graph.nodes)} operators is too deep for one kernel.", remedy=_CUT
        ) from error


def _inputs(canonical: SubGraph) -> tuple[Argument, ...]:
    specs = ((name, canonical.spec[name]) for name in canonical.inputs)
    return tuple(Argument(name, spec.dtype, spec.shape, spec.strides) for name, spec in specs)


_CUT = "Make several kernels of it, each of fewer operators."


def given_symbols(nest: Nest) -> tuple[str, ...]:
    """The size symbols a caller passes as integers, in order: those that are no input's size or stride."""
    return tuple(s.symbol for s in nest.sizes if s.source == "given")


def _outputs(canonical: SubGraph) -> tuple[Output, ...]:
    specs = [canonical.spec[name] for name in canonical.outputs]
    return tuple(_output(f"o{k}", spec) for k, spec in enumerate(specs))


def _output(name: str, spec: TensorSpec) -> Output:
    dense = Output(name, spec.dtype, spec.shape, memory_order(name, spec))
    if 0 in spec.shape:  # torch does not say what strides a tensor without elements has
        return dense
    pairs = enumerate(zip(spec.shape, spec.strides, dense.strides, strict=True))
    loose = tuple((dim, now) for dim, (size, now, packed) in pairs if size == 1 and not symbols.same(now, packed))
    return replace(dense, loose=loose)


# What makes a space the wrong one for a graph; another may be right.
_OTHER_SPACE = ("reduction_in_column", "scan_index", "domain")


def _body(canonical: SubGraph, outputs: tuple[Output, ...], *, eager: bool) -> Body:
    """Loops, reductions and stores over the first space that suits the graph."""
    space, stores = _suited(canonical, outputs, eager=eager)
    reductions, values = hoist([s.value for s in stores])
    stores = [replace(s, value=value) for s, value in zip(stores, values, strict=True)]
    return merged(Body(space.rows, space.column, reductions, tuple(stores)))


def _suited(canonical: SubGraph, outputs: tuple[Output, ...], *, eager: bool) -> tuple[Space, list[Store]]:
    """The first space that suits the graph, with what is stored in it."""
    specs = [canonical.spec[name] for name in canonical.outputs]
    orders = [output.order for output in outputs]
    if any(ops.kind_of(node.op) is Kind.PRODUCT for node in canonical.nodes):
        space = space_of(specs, orders, ())  # a product is summed for each of its elements: all dimensions are rows
        return space, _filled(canonical, outputs, space, eager=eager)
    over = [_reduced_sizes(node, canonical) for node in canonical.nodes if ops.kind_of(node.op) is Kind.REDUCTION]
    if not over:
        space = column_space(specs, orders)
        return space, _filled(canonical, outputs, space, eager=eager)
    no: LoweringError | None = None
    for column in column_candidates(specs, orders, over):
        try:
            space = space_of(specs, orders, column)
            return space, _filled(canonical, outputs, space, eager=eager)
        except LoweringError as error:
            if error.code not in _OTHER_SPACE:
                raise
            no = no or error
    assert no is not None  # there is always a candidate
    raise no


def _reduced_sizes(node: OpNode, canonical: SubGraph) -> ReducedSizes:
    """The shape of what a reduction or scan reads, and the dimensions it runs over."""
    row, call = ops.row_of(node.op), ops.call_of(node, canonical.spec)
    assert row.dims is not None
    return call.inputs[0].shape, row.dims(call)


def _filled(canonical: SubGraph, outputs: tuple[Output, ...], space: Space, *, eager: bool) -> list[Store]:
    """What is stored at one point of the loops of `space`, with reductions inside the expressions.

    Raises:
        LoweringError: as `lower`; "reduction_in_column" also where a reduction would run again for every index of a row
            axis that it does not depend on.
    """
    elements = Elements(canonical, space.extents, eager=eager)
    extent = space.column.extent if space.column else 1
    stores = []
    for output, name, (index, per_row) in zip(outputs, canonical.outputs, space.at, strict=True):
        value = elements.at(name, index, extent)
        if not eager and not elements.exact(value, output.dtype):
            value = scalar.round_to(value, output.dtype)
        stores.append(Store(output.name, indexing.offset(index, output.strides), value, per_row))
    rows = set(space.extents)
    if any(rows - {s.name for s in symbols.free_symbols(at)} for at in elements.reduced_at):
        raise LoweringError(
            "reduction_in_column",
            "A reduction does not depend on all rows of the kernel, so it would be computed again for each.",
            remedy="Cut the region at this operator.",
        )
    return stores


def hoist(roots: Sequence[Scalar]) -> tuple[tuple[Reduction, ...], list[Scalar]]:
    """Reductions taken out of expressions: each distinct one once, before those that read it.

    Equal expressions become one object on the way.
    """
    shared: dict[int, Scalar] = {}
    table: dict[tuple[Any, ...], Scalar] = {}
    reductions: list[Reduction] = []
    for node in scalar.walk(*roots):
        made = scalar.with_children(node, tuple(shared[id(c)] for c in scalar.children(node)))
        key = _structure(made)
        if key not in table:
            if isinstance(made, (Reduce, Scan)):
                name, running = f"r{len(reductions)}", isinstance(made, Scan)
                halves = isinstance(made, Scan) and made.halves
                reductions.append(Reduction(name, made.fn, made.body, made.extent, running, halves))
                made = Scanned(made.dtype, name) if running else Reduced(made.dtype, name)
            table[key] = made
        shared[id(node)] = table[key]
    return tuple(reductions), [shared[id(root)] for root in roots]


def _structure(node: Scalar) -> tuple[Any, ...]:
    """What makes two nodes over the same children equal."""
    below = tuple(map(id, scalar.children(node)))
    match node:
        case Constant(value=value):  # by text: 0.0 and -0.0 differ, NaN equals itself
            return "constant", node.dtype, repr(value)
        case Size(dim=dim):
            return "size", node.dtype, dim
        case Load(argument=argument, offset=offset):
            return "load", argument, offset
        case Apply(fn=fn):
            return "apply", node.dtype, fn, below
        case Select(index=index, bounds=bounds):
            return "select", node.dtype, index, bounds, below
        case Dot(extent=extent):
            return "dot", node.dtype, extent, below
        case Reduce(fn=fn, extent=extent):
            return "reduce", node.dtype, fn, extent, below
        case Scan(fn=fn, extent=extent, halves=halves):
            return "scan", node.dtype, fn, extent, halves, below
        case _:
            return "node", id(node)


def _sizes(bodies: Sequence[Body], inputs: Sequence[Argument], outputs: Sequence[Output]) -> tuple[SizeParameter, ...]:
    """Where each size symbol the kernel needs is read at a call."""
    axes = {axis.name for body in bodies for axis in body.rows} | {COLUMN, INNER}
    dims = [size for output in outputs for size in output.shape]
    dims += [dim for a in inputs for dim in (*a.shape, *a.strides)]  # a call's tensors are checked against these
    for body in bodies:
        dims += _dims_of(body)
    needed = sorted({s.name for s in symbols.free_symbols(dims)} - axes, key=lambda name: int(name[1:]))
    sizes: list[SizeParameter] = []
    given = 0
    for name in needed:
        found = _found_in(name, inputs)
        if found is None:
            found = SizeParameter(name, "given", given)
            given += 1
        sizes.append(found)
    return tuple(sizes)


def _dims_of(body: Body) -> list[Dim]:
    dims: list[Dim] = [axis.extent for axis in body.rows]
    dims += [body.column.extent] if body.column else []
    dims += [r.extent for r in body.reductions] + [s.offset for s in body.stores]
    for node in scalar.walk(*body.roots):
        match node:
            case Load(offset=dim) | Size(dim=dim) | Dot(extent=dim):
                dims.append(dim)
            case Select(index=index, bounds=bounds):
                dims += [index, *bounds]
            case _:
                pass
    return dims


def _found_in(name: str, inputs: Sequence[Argument]) -> SizeParameter | None:
    wanted = symbols.symbol(name)
    for source in ("shape", "stride"):
        for k, argument in enumerate(inputs):
            for d, size in enumerate(argument.shape if source == "shape" else argument.strides):
                if size == wanted and not (source == "stride" and argument.shape[d] == 1):
                    return SizeParameter(name, source, k, d)
    return None


def _name(graph: SubGraph) -> str:
    """A readable identifier: the pattern or the operators that compute, and the start of the digest."""
    words = [graph.pattern] if graph.pattern else []
    if not words:
        computing = [n for n in graph.nodes if ops.kind_of(n.op) is not Kind.VIEW] or list(graph.nodes)
        words = [n.op.split(".")[1] for n in computing] or ["copy"]
    text = ""
    for word in words:
        word = re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_") or "kernel"
        if text and len(text) + len(word) > _NAME_LENGTH:
            break
        text = f"{text}_{word}" if text else word[:_NAME_LENGTH]
    return f"{text if text[0].isalpha() else 'k_' + text}_{graph.digest[:8]}"


def _origins(graph: SubGraph) -> tuple[str, ...]:
    return tuple(_origin(node.op, node.origin) for node in graph.nodes)


def _origin(op: str, origin: str) -> str:
    """`op @ file:line`, in characters that end no comment and no string in any source language."""
    return re.sub(r"[^A-Za-z0-9_./:@<> +-]", "_", f"{op} @ {origin}" if origin else op)
