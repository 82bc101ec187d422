"""Running a SubGraph with torch's own operators: as recorded, and in double precision.

The first is what a fused kernel replaces, the second what both are measured against (see `verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import Tensor

from . import known_products, symbols
from .errors import StructureMismatch, UnsupportedOperator
from .graph import SubGraph
from .leaves import Leaf, Ref, leaves, map_leaves
from .nodes import OpNode
from .ops import Kind, kind_of, lookup, resolve
from .ops.reductions import rms_epsilon
from .specs import TensorSpec
from .symbols import Dim

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # a call's, with real tensors and sizes

_SAME_STRUCTURE = "Pass tensors of the recorded structure, or record again with these inputs."

# Operators that read the bits of a float: double precision of them has no meaning.
_BIT_CASTS = ("aten.view.dtype", "aten.view_as_real.default", "aten.view_as_complex.default")
# Their default epsilon is that of the dtype they compute in.
_EPSILON_OF_DTYPE = ("aten.rms_norm.default", "aten._fused_rms_norm.default")
# Their last argument asks for half -> float32, which torch refuses for a double operand.
_HALF_TO_FLOAT = ("aten._softmax.default", "aten._log_softmax.default")


def run(graph: SubGraph, inputs: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """Runs `graph` op by op with torch's own operators, without gradients.

    Args:
        graph: what to run.
        inputs: a tensor per name in `graph.inputs`, of the dtypes and shapes of their specs; any strides.
        sizes: values of size symbols that no input's shape or stride tells.

    Returns:
        the outputs by name, in the order of `graph.outputs`. An output that is a view of an input aliases it.

    Raises:
        StructureMismatch: the inputs do not have the graph's structure.
        GraphError: a size symbol has no value.
        UnsupportedOperator: this torch lacks an operator of the graph.
    """
    return _run(graph, inputs, bind_symbols(graph, inputs, sizes), lambda node, args, kwargs: (args, kwargs))


def run_as_told(graph: SubGraph, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor] | None:
    """Runs `graph` as `run` does, at sizes that may be none of its own: what recorded it may have guarded others.

    Returns:
        the outputs by name; None where an operator makes another shape than the graph says, or an output other strides.

    Raises:
        as `run`, and what operators say of sizes that they do not take.
    """
    names = tuple(name for node in graph.nodes for name in node.outputs if name in graph.spec)
    made = run(replace(graph, outputs=names, bundle=()), inputs, sizes)
    if not all(_as_told(graph.spec[name], made[name], sizes, name in graph.outputs) for name in names):
        return None
    return {name: made[name] for name in graph.outputs}


def _as_told(spec: TensorSpec, made: Tensor, sizes: Mapping[str, int], strides: bool) -> bool:
    """Whether a tensor has the shape, and where asked for the strides, that its spec says."""
    shape = [symbols.evaluate(d, sizes) for d in spec.shape]
    if list(made.shape) != shape or not strides:
        return list(made.shape) == shape
    pairs = zip(shape, made.stride(), spec.strides, strict=True)
    return all(n < 2 or have == symbols.evaluate(want, sizes) for n, have, want in pairs)


def run_singly(
    graph: SubGraph, inputs: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Runs `graph` as `run` does, but pointwise operators compute one element at a time instead of vectors of them.

    torch has two loops for those, which differ in the sign of a zero and in the results of infinities: which of them
    an element gets depends on the size of its tensor, so that eager's result is either.

    Returns:
        the outputs by name; their strides need not be eager's.

    Raises:
        as `run`.
    """

    def apart(leaf: Any) -> Any:
        return torch.stack((leaf, leaf), -1)[..., 0] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    def change(node: OpNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if kind_of(node.op) is not Kind.POINTWISE:
            return args, kwargs
        return map_leaves(apart, args), {name: map_leaves(apart, value) for name, value in kwargs.items()}

    return _run(graph, inputs, bind_symbols(graph, inputs, sizes), change)


def run_fp64(
    graph: SubGraph, inputs: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Runs `graph` as `run` does, in double precision throughout.

    Floating inputs are upcast (exactly), conversions to a floating dtype go to float64, floating dtype arguments
    become float64, and so does the default dtype of calls that make floats from integers or from nothing. Other
    integers, bools and complex numbers are left alone.

    Returns:
        the outputs by name; floating ones are float64.

    Raises:
        StructureMismatch, GraphError: as `run`.
        UnsupportedOperator: as `run`, or an operator that reinterprets bits.
    """
    sizes = bind_symbols(graph, inputs, sizes)
    spec = graph.spec

    def in_double(node: OpNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        args, kwargs = _in_double(node, spec[node.outputs[0]].dtype.is_floating_point, args, kwargs)
        return _with_epsilon(args, kwargs, spec[node.refs[0]].dtype) if node.op in _EPSILON_OF_DTYPE else (args, kwargs)

    made = _run(graph, {name: _upcast(inputs[name]) for name in graph.inputs}, sizes, in_double)
    return {name: _upcast(made.pop(name)) for name in graph.outputs if name in made}


def bind_symbols(
    graph: SubGraph, inputs: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The value of every size symbol that the inputs tell, by name.

    Shapes must agree with the specs; strides only lend values to symbols that occur nowhere else, because torch's
    operators take any strides.

    Args:
        graph: whose inputs' specs are read.
        inputs: a tensor per name in `graph.inputs`.
        sizes: values known beforehand.

    Raises:
        StructureMismatch: a missing or unknown input, another dtype, rank or size, or two values for one symbol.
    """
    if set(inputs) != set(graph.inputs):
        raise StructureMismatch(
            f"Expected the inputs {sorted(graph.inputs)}, found {sorted(inputs)}.", remedy=_SAME_STRUCTURE
        )
    known = dict(sizes or {})
    pending: list[tuple[str, int, Dim, int]] = []
    for name in graph.inputs:
        spec, tensor = graph.spec[name], inputs[name]
        _check_kind(name, spec, tensor)
        pending += [(name, d, *pair) for d, pair in enumerate(zip(spec.shape, tensor.shape, strict=True))]
    _bind(pending, known)
    for name in graph.inputs:
        for dim, found in zip(graph.spec[name].strides, inputs[name].stride(), strict=True):
            if isinstance(dim, sympy.Symbol):
                known.setdefault(dim.name, found)
    return known


def _check_kind(name: str, spec: TensorSpec, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise StructureMismatch(
            f"Input {name!r}: expected a tensor, found {type(tensor).__name__}.", remedy=_SAME_STRUCTURE
        )
    if tensor.dtype != spec.dtype:
        raise StructureMismatch(
            f"Input {name!r}: expected dtype {spec.dtype}, found {tensor.dtype}.", remedy=_SAME_STRUCTURE
        )
    if tensor.dim() != len(spec.shape):
        raise StructureMismatch(
            f"Input {name!r}: expected rank {len(spec.shape)} ({spec.text()}), found rank {tensor.dim()} "
            f"{list(tensor.shape)}.",
            remedy=_SAME_STRUCTURE,
        )


def _bind(pending: list[tuple[str, int, Dim, int]], known: dict[str, int]) -> None:
    """Solves the sizes of one unknown symbol first, so that `2*s0` may stand before `s0`; then checks all."""
    unsolved = [item for item in pending if not isinstance(item[2], int)]
    while unsolved:
        later = []
        for item in unsolved:
            unknown = [s for s in symbols.free_symbols([item[2]]) if s.name not in known]
            if len(unknown) == 1:
                known[unknown[0].name] = _solve(item, unknown[0], known)
            elif unknown:
                later.append(item)
        if len(later) == len(unsolved):
            break  # what is left has two unknowns that nothing else tells; the run says so where it needs them
        unsolved = later
    for name, d, dim, found in pending:
        if all(s.name in known for s in symbols.free_symbols([dim])):
            expected = symbols.evaluate(dim, known)
            if expected != found:
                why = "" if isinstance(dim, int) else f" ({symbols.render(dim)}, as the other sizes tell)"
                raise StructureMismatch(
                    f"Input {name!r}: expected size {expected}{why} in dimension {d}, found {found}.",
                    remedy=_SAME_STRUCTURE,
                )


def _solve(item: tuple[str, int, Dim, int], unknown: sympy.Symbol, known: Mapping[str, int]) -> int:
    name, d, dim, found = item
    if dim == unknown:
        return found
    values: dict[sympy.Expr, Dim] = {symbols.symbol(k): v for k, v in known.items()}
    free = sympy.Dummy(integer=True)  # a size symbol counts as positive, but an empty tensor makes it 0
    equation = symbols.substitute(dim, {**values, unknown: free}) - sympy.Integer(found)
    solutions = [s for s in sympy.solve(equation, free) if s.is_Integer and s >= 0]
    if len(solutions) != 1:
        raise StructureMismatch(
            f"Input {name!r}: expected size {symbols.render(dim)} in dimension {d}, found {found}, "
            f"which no {unknown} gives.",
            remedy=_SAME_STRUCTURE,
        )
    return int(solutions[0])


def _run(
    graph: SubGraph,
    inputs: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    change: Callable[[OpNode, tuple[Any, ...], dict[str, Any]], Arguments],
) -> dict[str, Tensor]:
    """Runs `graph`; `change` makes other arguments of a node's. A value goes when nothing reads it any more."""
    values: dict[str, Tensor] = dict(inputs)
    del inputs
    last = {name: k for k, node in enumerate(graph.nodes) for name in node.refs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))

    def real(leaf: Leaf) -> Any:
        if isinstance(leaf, Ref):
            return values[leaf.name]
        return symbols.evaluate(leaf, sizes) if isinstance(leaf, sympy.Expr) else leaf

    with torch.no_grad():
        for k, node in enumerate(graph.nodes):
            made = _called(node, real, change)
            values.update(zip(node.outputs, made, strict=True))
            del made
            for name in {*node.refs, *node.outputs}:
                if last.get(name, -1) <= k:
                    del values[name]
    return {name: values[name] for name in graph.outputs}


def _called(
    node: OpNode,
    real: Callable[[Leaf], Any],
    change: Callable[[OpNode, tuple[Any, ...], dict[str, Any]], Arguments],
) -> tuple[Tensor, ...]:
    """The results of one call."""
    given = map_leaves(real, node.args), {name: map_leaves(real, leaf) for name, leaf in node.kwargs}
    args, kwargs = change(node, *given)
    del given
    made = known_products.call(resolve(node.op), args, kwargs)
    return (made,) if isinstance(made, Tensor) else tuple(made)


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _in_double(node: OpNode, floating: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """A call's arguments in double precision; `floating` tells whether its result is a float."""
    if node.op in _BIT_CASTS:
        raise UnsupportedOperator(
            f"{node.op} reinterprets bits and has no result in double precision.",
            remedy="Leave it out of fused regions.",
        )

    def leaf(value: Leaf) -> Leaf:
        return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

    args, kwargs = map_leaves(leaf, args), {name: map_leaves(leaf, value) for name, value in kwargs.items()}
    if node.op in _HALF_TO_FLOAT:
        return (*args[:2], False), kwargs
    tensors = [x for x in leaves((args, tuple(kwargs.values()))) if isinstance(x, Tensor)]
    if not floating or any(x.is_floating_point() or x.is_complex() for x in tensors):
        return args, kwargs
    # torch would take its default dtype, float32, for what it makes of integers, or of nothing.
    if any(a.name == "dtype" and a.kwarg_only for a in resolve(node.op)._schema.arguments):
        return args, {**kwargs, "dtype": torch.float64}
    row = lookup(node.op)
    kept = row.unpromoted if row is not None else ()
    return tuple(x.double() if isinstance(x, Tensor) and k not in kept else x for k, x in enumerate(args)), kwargs


def _with_epsilon(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Arguments:
    """The arguments with the epsilon that is the default for `dtype`, where none is given."""
    if len(args) > 3:
        return (*args[:3], rms_epsilon(dtype) if args[3] is None else args[3]), kwargs
    return args, {**kwargs, "eps": rms_epsilon(dtype)} if kwargs.get("eps") is None else kwargs
