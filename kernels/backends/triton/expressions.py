"""Expressions as Triton text. One that is used twice, is long, or does not belong into the loop gets a variable."""

from __future__ import annotations

from typing import Protocol

import torch

from fusion.kernels.backends.triton import primitives
from fusion.kernels.backends.triton.lines import Lines
from fusion.kernels.backends.triton.load_masks import Guards, any_path, uses_of
from fusion.kernels.backends.triton.primitives import TYPES
from fusion.kernels.backends.triton.variance import COLUMN, ROW, Variance
from fusion.patterns import symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.scalar import Apply, Constant, Load, Reduced, Scalar, Scanned, Select, Size
from fusion.patterns.symbols import Dim

_LONG = 60  # an expression longer than this gets a name


class Edges(Protocol):
    """The shape of the blocks that expressions are, and where they end."""

    @property
    def ones(self) -> str:
        """The shape of a block of one element, which stands for any number of them."""

    def row_mask(self) -> str:
        """The condition that an element's row exists; "" where all do."""

    def column_mask(self, extent: Dim) -> str:
        """The condition that an element's column is one of `extent`; "" where all are."""


class Expressions:
    """Writes expressions of one kernel, each once for the place it is used in.

    Args:
        roots: the expressions.
        blocks: the blocks that they are.
        lines: where variables are written.
        guards: when the expressions' loads count.
        variance: what the expressions vary with.
    """

    def __init__(
        self, roots: tuple[Scalar, ...], blocks: Edges, lines: Lines, guards: Guards, variance: Variance
    ) -> None:
        self._blocks = blocks
        self._lines = lines
        self._guards = guards
        self._variance = variance
        self._uses = uses_of(roots)

    def operand(self, node: Scalar, typed: bool = False) -> str:
        """The node as text; a constant stands as a literal unless `typed`, where its dtype has to show."""
        if isinstance(node, Constant):
            if typed or primitives.needs_type(node):
                return primitives.typed(node, self._blocks.ones)
            return primitives.literal(node)
        varies = self._variance.of(node)
        known = self._lines.scope(varies).texts
        if id(node) not in known:
            known[id(node)] = self._fresh(node, varies)
        return known[id(node)]

    def _fresh(self, node: Scalar, varies: int) -> str:
        match node:
            case Reduced(name=name) | Scanned(name=name):
                return name
            case Load():
                return self._lines.name(varies, self._load(node, varies))
            case Size():
                return self._size(node)
            case Select():
                return self._lines.name(varies, self._select(node))
            case Apply():
                text = self._apply(node)
                rounded = node.fn.startswith("round_")
                hoisted = self._lines.leaves_loop(varies)
                if self._uses[id(node)] > 1 or hoisted or rounded or len(text) > _LONG:
                    return self._lines.name(varies, text)
                return text
            case _:
                raise LoweringError("primitive", f"Triton kernels have no form for a {type(node).__name__}.")

    def stored(self, load: Load) -> str:
        """An element as it is in memory, and 0 beyond the edges."""
        return self._loaded(load, self._variance.of(load), ", other=0.0")

    def _load(self, load: Load, varies: int) -> str:
        loaded = self._loaded(load, varies)
        return loaded if load.storage == load.dtype else f"{loaded}.to({TYPES[load.dtype]})"

    def _loaded(self, load: Load, varies: int, otherwise: str = "") -> str:
        masks = []
        if varies & ROW:
            masks.append(self._blocks.row_mask())
        if varies & COLUMN:
            masks.append(self._blocks.column_mask(self._lines.extent))
        masks.append(any_path(self._guards[id(load)]))
        mask = " & ".join(filter(None, masks))
        offset = self._variance.offset(load.offset, varies)
        return f"tl.load({load.argument} + {offset}{', mask=' + mask + otherwise if mask else ''})"

    def _size(self, node: Size) -> str:
        text = symbols.print_python(node.dim)
        if isinstance(node.dim, int) or not self._variance.of_size(node.dim):
            return f"tl.full({self._blocks.ones}, {text}, {TYPES[node.dtype]})"
        return f"{text}.to({TYPES[node.dtype]})"

    def _select(self, node: Select) -> str:
        cases = [self.operand(case, typed=True) for case in node.cases]
        text = cases[-1]
        for bound, case in reversed(list(zip(node.bounds, cases[:-1], strict=True))):
            below = f"{symbols.print_python(node.index)} < {symbols.print_python(bound)}"
            text = f"tl.where({below}, {case}, {text})"
        return text

    def _apply(self, node: Apply) -> str:
        if node.fn == "cast" and node.dtype is torch.bool:
            return f"({self.operand(node.args[0], typed=True)} != 0)"
        form = primitives.form(node.fn, node.args[-1].dtype)
        literals = [isinstance(a, Constant) for a in node.args]
        # A literal takes its dtype from the operand beside it, so one operand at least has to have one.
        beside = literals[1:] if node.fn == "where" else literals
        typed = all(beside) or node.fn in ("max", "min", "div", "pow", "fmod", "fma")
        operands = [self.operand(a, typed=typed or (node.fn == "where" and i == 0)) for i, a in enumerate(node.args)]
        if form.count("{0}") > 1 and not operands[0].isidentifier():
            operands[0] = self._lines.name(self._variance.of(node.args[0]), operands[0])
        return form.format(*operands, type=TYPES[node.dtype])
