"""Made data for trying a kernel: inputs of a graph's structure that hold what users' data seldom does.

Each `Draw` is one kind of values in all floating inputs; integers and masks come in kinds that go with them. What an
operator leaves undefined is not made: a division by zero or past the range of integers, a float no integer can hold.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import math
from collections.abc import Mapping, Sequence

import sympy
import torch
from torch import Tensor

from . import symbols
from .graph import SubGraph
from .leaves import Ref, leaves
from .nodes import OpNode
from .ops import Kind, kind_of
from .specs import TensorSpec


class Draw(enum.Enum):
    """What values made inputs hold."""

    PLAIN = "plain"  # as users' data is; masks at random
    LARGE = "large"  # beyond the range of exp; integers up to the ends of their range
    SHIFTED = "shifted"  # far from zero against their spread
    SMALL = "small"  # small against 1
    EPSILON = "epsilon"  # whose squares are as small as the graph's least constant
    TIES = "ties"  # few different values, zeros of both signs among them
    EDGES = "edges"  # the graph's constants and their neighbours; masks all True
    SPECIAL = "special"  # NaN, infinities, zeros of both signs and subnormals among plain ones; masks all False
    ROWS = "rows"  # whole rows of one value: -inf, zero, one; masks all True in some rows and False in others


_FACTORS = {Draw.PLAIN: 1.0, Draw.LARGE: 300.0, Draw.SHIFTED: 1.0, Draw.SMALL: 1e-3, Draw.SPECIAL: 1.0, Draw.ROWS: 1.0}
_SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40)
_LANDMARKS = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-40, 88.5, -88.5)
_SEVENTH = 7  # one element of so many is special
_TINY = 1e-2  # below it a constant counts as an epsilon
_DIVIDES = ("div", "floor_divide", "remainder", "fmod", "pow", "shift")
_BOUNDED = (Draw.PLAIN, Draw.TIES)


def draws(graph: SubGraph) -> tuple[Draw, ...]:
    """The kinds of values that make a difference to `graph`, PLAIN first."""
    if makes_integers(graph):
        return _BOUNDED
    dtypes = [graph.spec[name].dtype for name in graph.inputs]
    unneeded: set[Draw] = {Draw.SMALL if epsilon(graph) else Draw.EPSILON}
    if not any(d.is_floating_point for d in dtypes):
        unneeded |= {Draw.SHIFTED, Draw.SMALL, Draw.EPSILON}
    if not reduces(graph):
        unneeded |= {Draw.SHIFTED} if torch.bool in dtypes else {Draw.SHIFTED, Draw.ROWS}
    return tuple(d for d in Draw if d not in unneeded)


def reduces(graph: SubGraph) -> bool:
    """Whether elements are put together along rows: by a reduction, a scan or a softmax."""
    return any(kind_of(node.op) is Kind.REDUCTION for node in graph.nodes)


def made_inputs(graph: SubGraph, sizes: Mapping[str, int], draw: Draw) -> list[Tensor]:
    """A tensor for every input of `graph`, of its spec's dtype, shape and strides; the same in every process.

    Args:
        graph: whose inputs are made.
        sizes: the value of every size symbol.
        draw: what values they hold.
    """
    generator = torch.Generator("cpu").manual_seed(len(graph.inputs))
    default = torch.get_default_device().type  # whatever the user's is, these are made on the CPU
    with contextlib.nullcontext() if default == "cpu" else torch.device("cpu"):
        return [_tensor(graph, graph.spec[name], k, sizes, draw, generator) for k, name in enumerate(graph.inputs)]


@functools.lru_cache(maxsize=512)
def constants(graph: SubGraph) -> tuple[float, ...]:
    """The finite numbers in the calls of `graph`, each once."""
    found = (x for node in graph.nodes for x in leaves((node.args, *(v for _, v in node.kwargs))))
    numbers = [float(x) for x in found if isinstance(x, (int, float)) and not isinstance(x, bool)]
    return tuple(dict.fromkeys(x for x in numbers if math.isfinite(x) and abs(x) < 1e9))


def epsilon(graph: SubGraph) -> float:
    """The least constant of `graph` that is small against 1; 0 where none is."""
    return min((c for c in constants(graph) if 0 < c < _TINY), default=0.0)


def makes_integers(graph: SubGraph) -> bool:
    """Whether floats are converted to integers, which has no meaning for NaN, infinities and what is too large."""

    def converts(node: OpNode) -> bool:
        made = graph.spec[node.outputs[0]].dtype
        read = any(graph.spec[name].dtype.is_floating_point for name in node.refs)
        return read and kind_of(node.op) is Kind.POINTWISE and not made.is_floating_point and made is not torch.bool

    return any(converts(node) for node in graph.nodes)


def _tensor(
    graph: SubGraph, spec: TensorSpec, number: int, sizes: Mapping[str, int], draw: Draw, generator: torch.Generator
) -> Tensor:
    shape, strides = ([symbols.evaluate(d, sizes) for d in dims] for dims in (spec.shape, spec.strides))
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 0
    dense = math.prod(shape) <= reach
    values = _values(graph, spec.dtype, shape if dense else [reach], number, draw, generator)
    if not dense:  # elements share memory, as those of an expanded tensor do
        return values.as_strided(shape, strides)
    memory = values.flatten()[:1].repeat(reach) if reach else values.flatten()
    return memory.as_strided(shape, strides).copy_(values)


def _values(
    graph: SubGraph, dtype: torch.dtype, shape: Sequence[int], number: int, draw: Draw, generator: torch.Generator
) -> Tensor:
    """Dense values; `number` is which input they are for, so that two inputs are special in different places."""
    if dtype is torch.bool:
        return _mask(shape, draw, generator)
    if not dtype.is_floating_point:
        return _integers(graph, dtype, shape, number, draw, generator)
    if draw is Draw.TIES:
        ties = torch.randint(-2, 3, tuple(shape), generator=generator).to(dtype)
        return ties if makes_integers(graph) else ties * torch.where(_some(ties, 2, number), -1.0, 1.0).to(dtype)
    if draw is Draw.EDGES:
        return _tiled(_edges(graph, dtype), shape, number)
    factor = math.sqrt(epsilon(graph)) if draw is Draw.EPSILON else _FACTORS[draw]
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float32) * factor
    if draw is Draw.SHIFTED:
        values += 100.0
    if draw is Draw.SPECIAL:
        values = torch.where(_some(values, _SEVENTH, number), _by_row(values, number), values)
    if draw is Draw.ROWS and values.dim():
        for row, value in enumerate((-math.inf, 0.0, 1.0)[: values.shape[0]]):
            values[row] = value
    if makes_integers(graph):
        values = values.abs().clamp_max(100.0)
    return values.to(dtype)


def _some(values: Tensor, every: int, number: int) -> Tensor:
    """True at one element of `every`, at other ones for other numbers."""
    places = torch.arange(values.numel()).reshape(values.shape)
    return (places + number) % every == 0


def _by_row(values: Tensor, number: int) -> Tensor:
    """A special value for each row, so that a reduction meets one kind of them; by element where there are no rows."""
    if values.dim() < 2:
        return _tiled(torch.tensor(_SPECIAL), values.shape, number)
    column = _tiled(torch.tensor(_SPECIAL), values.shape[:1], number)
    return column.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)


def _tiled(values: Tensor, shape: Sequence[int], turn: int) -> Tensor:
    length = math.prod(shape)
    return values.roll(turn).repeat(length // len(values) + 1)[:length].reshape(tuple(shape))


def _edges(graph: SubGraph, dtype: torch.dtype) -> Tensor:
    """The graph's constants, their negatives and the values next to them."""
    middle = torch.tensor([sign * c for c in constants(graph) for sign in (1, -1)] or [0.0], dtype=torch.float64)
    near = middle.to(dtype)
    step = torch.finfo(dtype).eps
    landmarks = torch.tensor(_LANDMARKS, dtype=dtype)
    return torch.cat((near, near * (1 + step), near * (1 - step), landmarks))


def _mask(shape: Sequence[int], draw: Draw, generator: torch.Generator) -> Tensor:
    mask = torch.rand(tuple(shape), generator=generator) < 0.5
    if draw in (Draw.EDGES, Draw.SPECIAL):
        return mask.fill_(draw is Draw.EDGES)
    if draw is Draw.ROWS and mask.dim():
        mask[0] = True
        mask[1:2] = False
    return mask


def _integers(
    graph: SubGraph, dtype: torch.dtype, shape: Sequence[int], number: int, draw: Draw, generator: torch.Generator
) -> Tensor:
    by_minus_one, by_tensors = _divisions(graph)
    bounds = torch.iinfo(dtype)
    if by_tensors:
        return torch.randint(1, 8, tuple(shape), generator=generator).to(dtype)
    if draw is Draw.LARGE and not by_minus_one:
        ends = [bounds.min, bounds.max, bounds.min + 1, bounds.max - 1, 0, 1, 3]
        return _tiled(torch.tensor(ends, dtype=torch.int64), shape, number).to(dtype)
    reach = 3 if draw is Draw.TIES else 50
    values = torch.randint(-reach, reach + 1, tuple(shape), generator=generator)
    return (values.abs() if bounds.min == 0 else values).to(dtype)


@functools.lru_cache(maxsize=512)
def _divisions(graph: SubGraph) -> tuple[bool, bool]:
    """Whether integers are divided by -1, which the least one does not survive; whether by a tensor, or shifted so."""

    def of_integers(node: OpNode) -> bool:
        named = any(part in node.op for part in _DIVIDES)
        return named and any(not graph.spec[name].dtype.is_floating_point for name in (*node.refs, *node.outputs))

    by = [x for node in graph.nodes if of_integers(node) for x in leaves(node.args[1:])]
    return any(isinstance(x, (int, float)) and x == -1 for x in by), any(isinstance(x, (Ref, sympy.Expr)) for x in by)
