"""Symbolic shapes: a fake tensor beside every real one, so that shapes come out of a recording as expressions."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import CeilToInt, FloorDiv, FloorToInt, IntTrueDiv, TruncToInt
from torch.utils._sympy.printers import PythonPrinter

from fusion.capture.user_frame import user_line
from fusion.patterns import symbols
from fusion.patterns.recorded import SymbolSource
from fusion.patterns.symbols import Dim
from fusion.patterns.wellformed import strange_words


class _QuietLog:
    """Keeps torch from logging that a shape function failed: whoever asks knows another way."""

    def __enter__(self) -> None:
        self.disabled = _FAKE_LOG.disabled
        _FAKE_LOG.disabled = True  # a level would do too, but changing one empties the caches of every logger

    def __exit__(self, *error: Any) -> None:
        _FAKE_LOG.disabled = self.disabled


_FAKE_LOG = logging.getLogger(fake_tensor.__name__)
quiet_log = _QuietLog()


def is_symbolic(value: Any) -> bool:
    """Whether `value` is one of torch's symbolic numbers."""
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def hint(value: Any) -> Any:
    """The real number behind a symbolic one; anything else as it is."""
    if not is_symbolic(value):
        return value
    known = value.node.hint
    return known if known is not None else value.node.shape_env.size_hint(value.node.expr)


def real_nest(nest: Any) -> Any:
    """A nest of arguments with real numbers for symbolic ones. torch's pytrees would make plain tuples of shapes."""

    def leaf(x: Any) -> Any:
        return torch.Size(map(hint, x)) if type(x) is torch.Size else hint(x)

    return pytree.tree_map(leaf, nest, is_leaf=lambda x: type(x) is torch.Size)


def has_unknown_size(fake: Any) -> bool:
    """Whether torch knows no real number for a size of a fake tensor: it depends on data."""
    sizes = fake.shape if isinstance(fake, torch.Tensor) else ()
    return any(isinstance(s, torch.SymInt) and s.node.hint is None and s.node.expr.free_symbols for s in sizes)


class FixesSize(Exception):
    """A shape function needs a size as a number that may be another one in another call."""


class _Symbols(ShapeEnv):
    """torch's symbols, and what becomes of them.

    Attributes:
        varying: symbols of sizes that are known to vary between calls.
        fixed: the first of them that can only be the number it is in this recording, and where that was asked for.
        careful: whether to raise `FixesSize` rather than turn a size into a number.
        lines: of the guards so far, where each was asked for: "file:line" of the user's code, or "".
    """

    def __init__(self) -> None:
        super().__init__(specialize_zero_one=True, duck_shape=False)
        self.varying: list[sympy.Expr] = []
        self.fixed: tuple[int, str] | None = None
        self.careful = False
        self.lines: list[str] = []
        self._looking = False

    def evaluate_sym_node(self, sym_node: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.careful and sym_node.pytype is int and self.simplify(sym_node.expr).free_symbols:
            raise FixesSize
        answer = super().evaluate_sym_node(sym_node, *arguments, **keywords)
        new = len(self.guards) - len(self.lines)
        if new > 0:
            self.lines += [""] * (new - 1) + [user_line()]
        return answer

    def _get_user_frame(self) -> None:
        """No line for torch's logs: to tell the user's from its own, torch imports its exporter, for 0.3 s."""

    def _set_replacement(self, *arguments: Any) -> None:
        super()._set_replacement(*arguments)
        if self.fixed is not None or self._looking:
            return
        self._looking = True  # looking a symbol up shortens what it is replaced by, and comes here again
        try:
            numbers = map(self.replace, self.varying)
            self.fixed = next(((int(n), user_line()) for n in numbers if n.is_Integer), None)
        finally:
            self._looking = False


class FakeValues:
    """The symbols, fake tensors and guards of one recording.

    Sizes 0 and 1 are fixed (broadcasting depends on them); every other size of an input is a symbol, at least 2.

    Args:
        varying: (tensor name, dimension) of sizes of inputs that are known to vary between calls.
    """

    def __init__(self, varying: Iterable[tuple[str, int]] = ()) -> None:
        self.varying = frozenset(varying)
        self.env = _Symbols()
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        self.mode.cache_enabled = False  # keys of symbolic sizes take longer to make than the shapes they would save
        self.sources: list[tuple[sympy.Symbol, SymbolSource]] = []
        self._numbers: dict[sympy.Expr, Any] = {}  # of the symbols of `sources`, as torch hands them to the forward

    def new_symbol(self, value: int, source: tuple[str, str, int]) -> Any:
        """A symbol whose real value is `value`; 0, 1 and what is no size, a negative result, stay numbers."""
        if value < 2:
            return value
        origin = ConstantSource(f"size{len(self.sources)}")
        made = self.env.create_symbol(
            value, source=origin, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None, do_not_specialize_zero_one=False
        )
        number: Any = self.env.create_symintnode(made, hint=value, source=origin)
        name, kind, dim = source
        if kind == "shape" and (name, dim) in self.varying:
            self.env.varying.append(number.node.expr)
        self.sources.append((number.node.expr, SymbolSource(f"s{len(self.sources)}", *source)))
        self._numbers[number.node.expr] = number
        return number

    def pin(self, expression: sympy.Expr) -> None:
        """Makes the sizes that an expression depends on numbers, each with a guard."""
        for symbol in sorted(self.env.replace(expression).free_symbols, key=str):
            number = self._numbers.get(symbol)
            if number is None:
                raise GuardError(f"{expression} depends on a number that has no source")
            int(number)

    def settled(self, value: Any) -> Any:
        """What no plan computes, a share of a size or a comparison of sizes, as the number it is; others as they are.

        The number holds by a guard: on the outcome of a comparison, on each size that a share depends on.
        """
        if isinstance(value, torch.SymBool):
            return bool(value)
        if isinstance(value, torch.SymFloat):
            number = hint(value)
            self.pin(value.node.expr)
            return number
        return value

    @contextlib.contextmanager
    def careful(self) -> Iterator[None]:
        """Inside, no size turns into a number.

        Raises:
            FixesSize: one would have.
        """
        self.env.careful = True
        try:
            yield
        finally:
            self.env.careful = False

    def static(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fake tensor of a tensor whose sizes never change."""
        return self.build(tensor, tensor.shape, tensor.stride())

    def build(self, tensor: torch.Tensor, sizes: Sequence[Any], strides: Sequence[Any]) -> torch.Tensor:
        """A fake tensor like `tensor` with the given sizes and strides."""
        with self.mode:
            return torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=tensor.device)

    def of_input(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The fake tensor of a tensor that enters the scope: a symbol for every size above 1."""
        sizes = [self.new_symbol(size, (name, "shape", i)) for i, size in enumerate(tensor.shape)]
        return self.build(tensor, sizes, self._strides(name, tensor, sizes))

    def of_result(self, name: str, tensor: torch.Tensor, like: Sequence[torch.Tensor], grows: tuple[int, ...]) -> Any:
        """An opaque call's result as a fake tensor: sizes follow the inputs' where they agree, unless it may grow."""
        rank = tensor.ndim
        free = {d % rank for d in grows} if rank else set()
        sizes: list[Any] = []
        for i, size in enumerate(tensor.shape):
            followed = [f.shape[i] for f in like if f.ndim == rank and hint(f.shape[i]) == size]
            if followed and i not in free:
                sizes.append(followed[0])
            else:
                sizes.append(self.new_symbol(size, (name, "shape", i)))
        return self.build(tensor, sizes, self._strides(name, tensor, sizes))

    def _strides(self, name: str, tensor: torch.Tensor, sizes: Sequence[Any]) -> list[Any]:
        """Strides as products of sizes where the layout is dense in some order, else as numbers or symbols.

        The stride of a dimension of size 1 decides how torch lays results out, by its place among the others: that it
        is smaller or larger than they are is a guard.
        """
        real = tensor.stride()
        strides = _packed(real, sizes, lambda dim: self.new_symbol(real[dim], (name, "stride", dim)))
        for dim, stride in enumerate(strides):
            if tensor.shape[dim] == 1 and isinstance(stride, torch.SymInt) and stride.node.expr.is_Symbol:
                others = [(s, n) for d, (s, n) in enumerate(zip(strides, sizes, strict=True)) if d != dim]
                for bound in (bound for s, n in others for bound in (s, s * n)):
                    bool(stride < bound), bool(stride > bound)  # what is asked of a symbol becomes a guard
        return strides

    def laid_out(self, fake: torch.Tensor, real: torch.Tensor, operands: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The fake tensor of an operator's result whose strides are others than torch's shape function says.

        A dimension of size 1 has the stride that it has in an operand, or that of another dimension, or what lies
        between two of that one's elements; the check at another shape tells whether it always has.

        Args:
            fake: what the shape function gives.
            real: the result.
            operands: fake tensors of the operator's.

        Returns:
            None where no sizes give such strides.
        """
        sizes, strides = list(fake.shape), real.stride()
        told = fake.stride()
        said = _packed(strides, sizes, lambda dim: told[dim] if hint(told[dim]) == strides[dim] else None)
        known = [(s, n) for s, n in zip(said, sizes, strict=True) if s is not None]
        steps = [s for s, _ in known] + [s * n for s, n in known]
        for dim, size in enumerate(real.shape):
            if said[dim] is None and size == 1:
                given = [o.stride(dim) for o in operands if o.ndim == real.ndim]
                given += [step for o in operands if o.ndim != real.ndim for step in o.stride()]
                said[dim] = next((step for step in given + steps if hint(step) == strides[dim]), None)
        return None if None in said else self.build(real, sizes, said)

    def finish(self, sizes: Iterable[Any] = ()) -> Translation:
        """The recording's symbols and guards, once no more can come.

        Args:
            sizes: all that a plan has to compute. Where one of them, or a guard, is of a kind that it cannot, the sizes
                that this one depends on become numbers.

        Raises:
            GuardError: a condition is on a number that a plan cannot know.
        """
        said = list(
            dict.fromkeys(s.node.expr for s in sizes if isinstance(s, torch.SymInt) and not s.node.expr.is_Symbol)
        )
        fixed = self.env.fixed
        translation = Translation(self)
        while (strange := translation.strange(said)) is not None:
            self.pin(strange)
            translation = Translation(self)
        if fixed is None and self.env.fixed is not None:
            self.env.fixed = (self.env.fixed[0], "")  # the forward is over: no line of it is at work
        return translation


def _packed(real: Sequence[int], sizes: Sequence[Any], otherwise: Callable[[int], Any]) -> list[Any]:
    """Strides as products of sizes, from the innermost dimension on.

    Args:
        real: the strides.
        sizes: with symbols.
        otherwise: the stride of a dimension that is no such product; None leaves it out.
    """
    strides: list[Any] = [None] * len(real)
    running: Any = 1
    for dim in sorted(range(len(real)), key=lambda d: (real[d], -d)):
        if real[dim] == hint(running):
            strides[dim] = running
            running = running * sizes[dim]
        elif real[dim] in (0, 1):
            strides[dim] = real[dim]
        else:
            strides[dim] = otherwise(dim)
            is_one = isinstance(sizes[dim], int) and sizes[dim] == 1  # a symbol is above 1, and asking would fix it
            if strides[dim] is not None and not is_one:
                running = strides[dim] * sizes[dim]
    return strides


class Translation:
    """From torch's symbols to the graph's, after a recording.

    Attributes:
        sources: the graph symbols that are left after torch's own unification.
        guards: conditions as Python text over graph symbols, with what torch calls each.
        lines: the user's line that asked for a condition, by its text, where one is known.
    """

    def __init__(self, values: FakeValues) -> None:
        self.env = values.env
        self.names: dict[sympy.Symbol, sympy.Symbol] = {}
        self.sources: list[SymbolSource] = []
        settled: list[tuple[str, Any]] = []  # numbers that a call returned and the run tied to something else
        for torch_symbol, source in values.sources:
            final = self.env.replace(torch_symbol)
            first = final.is_Symbol and final not in self.names  # of equal sizes: the one a plan knows first
            if not first and source.kind != "result":
                continue  # the guard on the tensor it is a size of checks it
            renamed = SymbolSource(f"s{len(self.sources)}", source.value, source.kind, source.dim)
            self.sources.append(renamed)
            if first:
                self.names[final] = symbols.symbol(renamed.symbol)
            else:
                settled.append((renamed.symbol, final))
        self.lines: dict[str, str] = {}
        self.guards = self._guards(settled)  # of numbers without a source raise GuardError
        self.numbers = self._numbers()

    def dim(self, value: Any) -> Dim:
        """A torch size as a graph Dim; a number where a guard says so, as a size of 1 is not a size that may be 1."""
        return self._dim(value.node.expr) if is_symbolic(value) else int(value)

    def _dim(self, said: Any) -> Dim:
        expression = self.env.replace(said)
        if not expression.is_Symbol and not expression.is_number:
            bounds = self.env.bound_sympy(expression)
            expression = bounds.lower if bounds.is_singleton() else expression.xreplace(self.numbers)
        return symbols.as_dim(self._whole(expression).xreplace(self.names))

    def strange(self, sizes: Iterable[Any]) -> Any:
        """The first of torch's expressions, or of the guards, that no plan can compute, or None."""
        for size in sizes:
            if not symbols.printable(self._dim(size)):
                return size
        return next((said for text, said in self.guards.items() if strange_words(text)), None)

    def _numbers(self) -> dict[Any, Any]:
        """What the guards say expressions of sizes come to."""
        equal = [self.env.replace(g.expr) for g in self.env.guards]
        return {e.lhs: e.rhs for e in equal if isinstance(e, sympy.Eq) and e.rhs.is_Integer}

    def _renamed(self, expression: Any) -> Any:
        return self._whole(self.env.replace(expression)).xreplace(self.names)

    def _whole(self, expression: Any) -> Any:
        """Quotients of sizes that Python rounds (`math.ceil(n / 2)`, `int(n / 2)`), as divisions of whole numbers."""

        def rounded(x: Any) -> bool:
            return isinstance(x, (CeilToInt, FloorToInt, TruncToInt)) and isinstance(x.args[0], IntTrueDiv)

        def divided(x: Any) -> Any:
            size, by = x.args[0].args
            if not (by.is_Integer and by > 0 and self.env.bound_sympy(size).lower >= 0):
                return x
            return FloorDiv(size + by - 1 if isinstance(x, CeilToInt) else size, by)

        return expression.replace(rounded, divided) if expression.has(IntTrueDiv) else expression

    def _guards(self, settled: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        printer = PythonPrinter()
        found: dict[str, Any] = {}
        for symbol, final in settled:
            found[printer.doprint(sympy.Eq(symbols.symbol(symbol), self._renamed(final)))] = final
        lines = itertools.chain(self.env.lines, itertools.repeat(""))
        for guard, line in zip(self.env.guards, lines, strict=False):
            expression = self._renamed(guard.expr)
            if expression in (sympy.true, True):
                continue
            unknown = expression.free_symbols - set(self.names.values())
            if unknown:
                raise GuardError(f"a condition on sizes that have no source: {guard.expr}")
            text = printer.doprint(expression).replace("torch.sym_float(", "float(")  # of plain numbers
            found.setdefault(text, guard.expr)
            self.lines.setdefault(text, line)
        return found


class GuardError(Exception):
    """A guard of the recording that a plan could not check."""
