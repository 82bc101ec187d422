"""A kernel's results against eager's and double precision, in as little memory as the sizes allow.

Double precision of a large activation takes many times what eager takes. Where a region computes each slice of its
outputs from the same slice of its inputs, its results are compared slice by slice: all of them, by the rule for the
whole. Where it does not, and the whole is too large, the kernel is proved on the first elements of each dimension, and
its results for the whole are compared with eager's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusion.patterns import symbols
from fusion.patterns.errors import FusionError
from fusion.patterns.extents import divided, sample
from fusion.patterns.graph import SubGraph
from fusion.patterns.ops import Kind, kind_of
from fusion.patterns.reference import run, run_as_told, run_fp64
from fusion.patterns.shortage import is_shortage
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim
from fusion.patterns.verify import Verdict, accept_all, accept_parts, closest, layout_differs, pieces

SLICE_BYTES = 64 << 20  # that the values of a slice take in double precision
_WHOLE_BYTES = 256 << 20  # the same of what is proved as a whole
_SAMPLED = 64  # rows, and columns, of a matrix product that are compared with double precision
_LOOSE = 1e-2  # of eager's greatest value: half precision's rounding, many times over
_KEEPS = 256  # a size that is made smaller keeps its remainder by this: kernels have loops of such steps

Sizes = Mapping[str, int]


def prove(
    graph: SubGraph,
    tensors: Sequence[torch.Tensor],
    values: Sizes,
    fused: Any,
    again: Callable[[Sequence[torch.Tensor], Sizes], Any] | None = None,
) -> Verdict:
    """The acceptance rule (error(fused) <= 1.5 error(eager) + 1 ulp) on real inputs.

    Of matrix products it holds for a sample of rows and columns, as double precision of all of them would take many
    times what eager takes; every other element must be eager's but for rounding. What this can miss is an element that
    is less exact than others for its place alone: a kernel computes all of them by the same sums, whose length is whole
    in the sample, and places at tiles' rests are in it.

    Args:
        graph: the region.
        tensors: its inputs, in order.
        values: of its size symbols.
        fused: what the kernel made of the inputs: a tensor, or a tuple of them.
        again: runs the kernel on other tensors, of the sizes that the given values tell.
    """
    named = dict(zip(graph.inputs, tensors, strict=True))
    results = dict(zip(graph.outputs, fused if isinstance(fused, tuple) else (fused,), strict=True))
    verdict = _of_a_sample(graph, named, values, results)
    if verdict is not None:
        return verdict
    if _bytes(graph, values) > _WHOLE_BYTES:
        for symbol in sorted(graph.symbols, key=lambda s: -values[s]):
            axes = _axes(graph, symbol, values)
            verdict = None if axes is None else _in_slices(graph, named, values, results, axes)
            if verdict is not None and verdict.ok:
                return verdict  # any other may mean that a slice needs more than its own part of the inputs
        if again is not None:
            tried = (_of_the_first(graph, named, sizes, again) for sizes in _smaller(graph, values))
            verdict = next((verdict for verdict in tried if verdict is not None), None)
            if verdict is not None:
                return verdict if not verdict.ok else _alike(graph, named, values, results) or verdict
    eager = run(graph, named, values)
    exact = run_fp64(graph, named, values)
    return accept_all({o: (results[o], eager[o], exact[o]) for o in graph.outputs})


# ---- a sample of a matrix product


def _of_a_sample(
    graph: SubGraph, inputs: Mapping[str, torch.Tensor], values: Sizes, results: Mapping[str, torch.Tensor]
) -> Verdict | None:
    """The verdict on the rows and columns of a sample, if all others are eager's but for rounding; None without one.

    The parts of a bundle are judged one by one, those without a sample as a whole.
    """
    if not any(kind_of(node.op) is Kind.PRODUCT for node in graph.nodes):
        return None
    if graph.bundle:
        return closest(
            prove(part, [inputs[n] for n in part.inputs], values, tuple(results[n] for n in part.outputs))
            for part in graph.parts
        )
    views, rest = divided(graph)
    whole = {**inputs, **(run(views, inputs, values) if views.nodes else {})}
    given = {name: whole[name] for name in rest.inputs}
    part = sample(rest, given, _SAMPLED)
    if part is None:
        return None
    eager = run(rest, given, values)
    for name, result in results.items():
        if differs := layout_differs(result, eager[name]):
            return Verdict(False, reason=f"Output {name!r}: {differs}")
    exact = run_fp64(part.graph, {name: part.of(name, tensor) for name, tensor in given.items()})
    some = {o: (part.of(o, results[o]), part.of(o, eager[o]), exact[o]) for o in graph.outputs}
    verdict = accept_all(some)
    return verdict if not verdict.ok else _far_from(eager, results) or verdict


# ---- slices


@dataclass(frozen=True, slots=True)
class _Axes:
    """How a size symbol cuts a region: by value, the dimension it is in, and how many of its steps are one of the
    symbol's."""

    symbol: str
    at: Mapping[str, tuple[int, int]]


def _axes(graph: SubGraph, symbol: str, values: Sizes) -> _Axes | None:
    """The cut along a symbol; None where it does not cut every output, or is in two dimensions of one value."""
    at: dict[str, tuple[int, int]] = {}
    for name in (*graph.inputs, *graph.outputs):
        found = [d for d, dim in enumerate(graph.spec[name].shape) if symbol in _names(dim)]
        if len(found) > 1 or (not found and name in graph.outputs):
            return None
        if found:
            dim = graph.spec[name].shape[found[0]]
            step = symbols.evaluate(dim, {**values, symbol: 1})
            if any(symbols.evaluate(dim, {**values, symbol: n}) != n * step for n in (2, 3, values[symbol])):
                return None
            at[name] = (found[0], step)
    return _Axes(symbol, at) if any(name in at for name in graph.inputs) else None


def _in_slices(
    graph: SubGraph, inputs: Mapping[str, torch.Tensor], values: Sizes, results: Mapping[str, torch.Tensor], axes: _Axes
) -> Verdict | None:
    """The verdict on all slices; None where a slice of the inputs is none that the region takes."""
    for name, result in results.items():
        spec = graph.spec[name]
        wanted = torch.empty_strided(
            [symbols.evaluate(d, values) for d in spec.shape],
            [symbols.evaluate(d, values) for d in spec.strides],
            dtype=spec.dtype, device="meta",
        )  # fmt: skip
        if differs := layout_differs(result, wanted):
            return Verdict(False, reason=f"Output {name!r}: {differs}")
    whole = values[axes.symbol]
    length = max(2, whole * SLICE_BYTES // _bytes(graph, values))
    if whole // length > 4096:
        return None
    try:
        return accept_parts(
            (_cut(axes, name, results[name], start, end), eager[name], exact[name])
            for start, end in _ranges(whole, length)
            for eager, exact in [_references(graph, inputs, values, axes, start, end)]
            for name in graph.outputs
        )
    except (FusionError, RuntimeError, IndexError) as error:
        if is_shortage(error):
            raise
        return None


def _ranges(whole: int, length: int) -> Iterator[tuple[int, int]]:
    """Ranges of `length`; the last is never of one, which operators take otherwise than more."""
    start = 0
    while start < whole:
        end = whole if whole - start - length < 2 else start + length
        yield start, end
        start = end


def _references(
    graph: SubGraph, inputs: Mapping[str, torch.Tensor], values: Sizes, axes: _Axes, start: int, end: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    part = {name: _cut(axes, name, tensor, start, end) for name, tensor in inputs.items()}
    sizes = {**values, axes.symbol: end - start}
    return run(graph, part, sizes), run_fp64(graph, part, sizes)


def _cut(axes: _Axes, name: str, tensor: torch.Tensor, start: int, end: int) -> torch.Tensor:
    if name not in axes.at:
        return tensor
    dim, step = axes.at[name]
    return tensor.narrow(dim, start * step, (end - start) * step)


# ---- a smaller size


def _smaller(graph: SubGraph, values: Sizes) -> Iterator[Sizes]:
    """Sizes at which the region's values are small: of all its symbols, or of one, as others may have to stay."""
    for some in (sorted(graph.symbols), *([symbol] for symbol in sorted(graph.symbols, key=lambda s: -values[s]))):
        sizes = _made_smaller(graph, values, some)
        if sizes is not None:
            yield sizes


def _made_smaller(graph: SubGraph, values: Sizes, some: Sequence[str]) -> dict[str, int] | None:
    """Sizes with smaller values of some symbols; None where these cannot make the region's values small."""
    sizes = dict(values)
    while _bytes(graph, sizes) > SLICE_BYTES:
        symbol = max(some, key=lambda s: sizes[s], default=None)
        if symbol is None or sizes[symbol] < 2 * _KEEPS + values[symbol] % _KEEPS:
            return None
        sizes[symbol] = sizes[symbol] // 2 // _KEEPS * _KEEPS + values[symbol] % _KEEPS
    return sizes


def _of_the_first(
    graph: SubGraph,
    inputs: Mapping[str, torch.Tensor],
    sizes: Sizes,
    again: Callable[[Sequence[torch.Tensor], Sizes], Any],
) -> Verdict | None:
    """The verdict on the first elements of each dimension; None where they are nothing that the kernel takes."""
    try:
        few = {name: _first(tensor, graph.spec[name], sizes) for name, tensor in inputs.items()}
        eager = run_as_told(graph, few, sizes)  # first: at other sizes than it is for, a kernel reads what is not there
        if eager is None:
            return None
        made = again([few[name] for name in graph.inputs], sizes)
        exact = run_fp64(graph, few, sizes)
    except (FusionError, RuntimeError, IndexError) as error:
        if is_shortage(error):
            raise
        return None
    fused = dict(zip(graph.outputs, made if isinstance(made, tuple) else (made,), strict=True))
    return accept_all({o: (fused[o], eager[o], exact[o]) for o in graph.outputs})


def _first(tensor: torch.Tensor, spec: TensorSpec, sizes: Sizes) -> torch.Tensor:
    """A tensor's first elements, laid out as the spec says for these sizes."""
    shape = [symbols.evaluate(d, sizes) for d in spec.shape]
    strides = [symbols.evaluate(d, sizes) for d in spec.strides]
    own = [1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True)]
    few = torch.empty_strided(own, strides, dtype=tensor.dtype, device=tensor.device)
    for dim, size in enumerate(own):
        tensor = tensor.narrow(dim, 0, size)
    return few.copy_(tensor).expand(shape)


def _alike(
    graph: SubGraph, inputs: Mapping[str, torch.Tensor], values: Sizes, results: Mapping[str, torch.Tensor]
) -> Verdict | None:
    """A verdict if the results for the whole are others than eager's, by more than rounding."""
    eager = run(graph, inputs, values)
    for name, result in results.items():
        if differs := layout_differs(result, eager[name]):
            return Verdict(False, reason=f"Output {name!r}: {differs}")
    return _far_from(eager, results)


def _far_from(eager: dict[str, torch.Tensor], results: Mapping[str, torch.Tensor]) -> Verdict | None:
    """A verdict if results are others than eager's, which goes as it is compared, by more than rounding."""
    for name, result in results.items():
        wanted = eager.pop(name)
        bound = _LOOSE * _greatest(wanted) if wanted.is_floating_point() else 0.0
        if not all(_within(made, eagers, bound) for (made, eagers), _ in pieces(result, wanted)):
            return Verdict(False, reason=f"Output {name!r} differs from eager's, by more than rounding.")
    return None


def _greatest(tensor: torch.Tensor) -> float:
    return max((float(part.abs().nan_to_num(0, 0, 0).max()) for (part,), _ in pieces(tensor)), default=0.0)


def _within(result: torch.Tensor, wanted: torch.Tensor, bound: float) -> bool:
    """`torch.allclose` with equal NaNs; where no element is NaN or infinite, in fewer passes."""
    if result.is_floating_point() and result.numel() and bool((result - wanted).abs_().max() <= bound):
        return True
    return torch.allclose(result, wanted, rtol=0, atol=bound, equal_nan=True)


def _bytes(graph: SubGraph, values: Sizes) -> int:
    """What all of a region's values take in double precision."""
    return sum(8 * math.prod(symbols.evaluate(d, values) for d in spec.shape) for _, spec in graph.specs)


def _names(dim: Dim) -> set[str]:
    return {s.name for s in symbols.free_symbols([dim])}
