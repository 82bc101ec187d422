"""Few long rows, spread over many programs: a nest as several nests that run one after the other.

Each row is cut into `splits` pieces. A nest for each level of reductions computes what every piece comes to, into a
tensor of its own; the next level, and the last nest, put those together for the row and read the result. A level
holds reductions that need nothing of each other. All of them are LoopNests as any other: an emitter, the verifier
and a launcher need to know nothing about pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusion.kernels.iteration_space import moved
from fusion.kernels.loops import Argument, Axis, LoopNest, Output, Reduction, SizeParameter, Store
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Load, Reduced, Select
from fusion.patterns.symbols import Dim

_SPLITS = symbols.symbol("splits")
_SPLIT = symbols.index_symbol("split")
_COLUMN = symbols.index_symbol(scalar.COLUMN)


@dataclass(frozen=True, slots=True)
class Partials:
    """What the pieces of every row come to: the tensor of a reduction's results, [splits, rows...], dense.

    Attributes:
        reduction: whose they are.
        name: of the tensor.
        rows: the nest's row axes.
    """

    reduction: Reduction
    name: str
    rows: tuple[Axis, ...]

    @property
    def output(self) -> Output:
        """The tensor where it is made."""
        shape = (_SPLITS, *(axis.extent for axis in self.rows))
        return Output(self.name, self.reduction.body.dtype, shape, tuple(range(len(shape))))

    @property
    def argument(self) -> Argument:
        """The tensor where it is read."""
        made = self.output
        return Argument(made.name, made.dtype, made.shape, made.strides)

    @property
    def store(self) -> Store:
        """The piece's result, written."""
        value = Reduced(self.reduction.body.dtype, self.reduction.name)
        return Store(self.name, self._offset(_SPLIT), value, per_row=True)

    @property
    def combined(self) -> Reduction:
        """The whole row's result, from those of its pieces."""
        dtype = self.reduction.body.dtype
        return replace(self.reduction, body=Load(dtype, self.name, self._offset(_COLUMN), dtype), extent=_SPLITS)

    def _offset(self, piece: Dim) -> Dim:
        indices = (piece, *(symbols.index_symbol(axis.name) for axis in self.rows))
        return symbols.as_dim(sum(i * step for i, step in zip(indices, self.output.strides, strict=True)))


def can_split(nest: LoopNest) -> bool:
    """Whether the rows of a nest can be cut: it reduces them, and no scan needs the columns in their order."""
    return bool(nest.reductions) and not any(r.running for r in nest.reductions)


def extents(nest: LoopNest) -> tuple[Dim, ...]:
    """How far its reductions run, each once: a piece of a row is a chunk of each of them."""
    return tuple(dict.fromkeys(r.extent for r in nest.reductions))


def phases(nest: LoopNest) -> tuple[LoopNest, ...]:
    """What `nest` does, as nests to be run in order.

    Each takes the tensors of `nest`, then what the nests before it made, in order; and the integers that `nest` is
    given, then the number of pieces and the columns in a piece of each of `extents(nest)`. Pieces may reach beyond the
    row's end. The last nest makes the outputs of `nest`.

    Args:
        nest: the kernel; `can_split` says yes to it.
    """
    given = sum(s.source == "given" for s in nest.sizes)
    chunks = {extent: symbols.symbol(f"chunk{k}") for k, extent in enumerate(extents(nest))}
    names = (str(_SPLITS), *map(str, chunks.values()))
    sizes = (*nest.sizes, *(SizeParameter(name, "given", given + k) for k, name in enumerate(names)))
    whole = replace(nest, sizes=sizes)
    known: dict[str, Partials] = {}
    made: list[LoopNest] = []
    for k, level in enumerate(_levels(nest.reductions)):
        fresh = [Partials(r, f"p{len(known) + i}", nest.rows) for i, r in enumerate(level)]
        made.append(_pieces(whole, f"{nest.name}_level{k}", fresh, known, chunks))
        known |= {p.reduction.name: p for p in fresh}
    read = _read(known, [s.value for s in nest.stores])
    inputs = (*nest.inputs, *(p.argument for p in known.values()))
    last = replace(whole, name=f"{nest.name}_last", inputs=inputs, reductions=tuple(p.combined for p in read))
    return (*made, last)


def _pieces(
    nest: LoopNest, name: str, fresh: Sequence[Partials], known: dict[str, Partials], chunks: dict[Dim, Dim]
) -> LoopNest:
    """The nest that computes the reductions of `fresh` for every piece of every row."""
    reductions = [p.combined for p in _read(known, [p.reduction.body for p in fresh])]
    for reduction in (p.reduction for p in fresh):
        dtype, chunk = reduction.body.dtype, chunks[reduction.extent]
        at = symbols.as_dim(_SPLIT * chunk + _COLUMN)
        beyond = scalar.constant(scalar.identity(reduction.fn, dtype), dtype)
        body = Select(dtype, at, (reduction.extent,), (moved(reduction.body, {_COLUMN: at}, {}), beyond))
        reductions.append(replace(reduction, body=body, extent=chunk))
    return replace(
        nest,
        name=name,
        inputs=(*nest.inputs, *(p.argument for p in known.values())),
        outputs=tuple(p.output for p in fresh),
        rows=(Axis(str(_SPLIT), _SPLITS), *nest.rows),  # outermost, so that rows that are neighbours stay so
        column=None,
        reductions=tuple(reductions),
        stores=tuple(p.store for p in fresh),
    )


def _levels(reductions: Sequence[Reduction]) -> list[list[Reduction]]:
    """The reductions by how many others stand, one upon the other, below them."""
    levels: list[list[Reduction]] = []
    level_of: dict[str, int] = {}
    for reduction in reductions:
        read = [n.name for n in scalar.walk(reduction.body) if isinstance(n, Reduced)]
        level = max((level_of[name] + 1 for name in read), default=0)
        level_of[reduction.name] = level
        if level == len(levels):
            levels.append([])
        levels[level].append(reduction)
    return levels


def _read(known: dict[str, Partials], roots: Sequence[scalar.Scalar]) -> list[Partials]:
    """Those of the reductions that the expressions name."""
    names = {n.name for n in scalar.walk(*roots) if isinstance(n, Reduced)}
    return [p for name, p in known.items() if name in names]
