"""What a step may be: for every kind of operator a function that draws the text of one.

Each takes a `Pool` and returns a Step, or None where the pool has nothing to make it from. A step need not be valid:
it is tried on tensors of all sizes of the program, and left out where torch refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from fuzz_program import Step
from fuzz_templates import lines

from fusion.patterns.ops import TABLE, Kind, resolve

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8,
    torch.int16, torch.int8,
)  # fmt: skip
NUMBERS = (2, 1, 0, -1, 3, 0.5, -1.5, 2.0, 0.0, -0.0, 1e-3, 7)

Wanted = Callable[[torch.Tensor], bool]


class Pool(Protocol):
    """The values a step may use, and where its choices come from."""

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""

    def pick(self, options: Sequence[Any]) -> Any:
        """One of `options`; the first is the simplest."""

    def maybe(self, percent: int) -> bool:
        """True in about `percent` of 100 draws."""

    def value(self, wanted: Wanted = ...) -> str | None:
        """The name of a value that is `wanted`."""

    def temporary(self) -> str | None:
        """The name of a value that shares no memory with an input or the module's state."""

    def beside(self, name: str) -> str | None:
        """The name of a value that broadcasts with `name` at all sizes."""

    def like(self, name: str) -> str | None:
        """The name of a value of the shape and dtype of `name` at all sizes."""

    def shapes(self, name: str) -> list[torch.Size]:
        """The shapes of a value at the program's sizes."""

    def fresh(self) -> str:
        """A name for a result."""


def anything(t: torch.Tensor) -> bool:
    """Any value."""
    return True


def dimensioned(t: torch.Tensor) -> bool:
    """A value with dimensions."""
    return t.ndim > 0


def floating(t: torch.Tensor) -> bool:
    """A value of a floating dtype."""
    return t.is_floating_point()


class Missing(Exception):
    """There is nothing to fill a blank with."""


class _Blanks(dict[str, str]):
    """What the blanks of a template (see `fuzz_templates`) are filled with, drawn when it asks for them."""

    def __init__(self, pool: Pool, x: str) -> None:
        super().__init__(x=x)
        self.pool = pool
        self.reads = [x]
        self.rank = len(pool.shapes(x)[0])

    def __missing__(self, key: str) -> str:
        made = getattr(self, f"_{key}")()
        self[key] = made
        return str(made)

    def _read(self, name: str | None) -> str:
        if name is None:
            raise Missing
        self.reads.append(name)
        return name

    def _y(self) -> str:
        return self._read(self.pool.beside(self["x"]))

    def _z(self) -> str:
        return self._read(self.pool.like(self["x"]))

    def _i(self) -> str:
        return self._read(self.pool.value(lambda t: t.dtype is torch.int64))

    def _n(self) -> str:
        return repr(self.pool.pick(NUMBERS))

    def _t(self) -> str:
        return str(self.pool.pick(DTYPES))

    def _d(self) -> str:
        if not self.rank:
            raise Missing
        return str(self.pool.integer(-self.rank, self.rank - 1))

    _e = _d

    def _D(self) -> str:
        return str(self.pool.integer(-self.rank - 1, self.rank))

    def _s(self) -> str:
        chosen = [d - self.rank for d in range(self.rank) if self.pool.maybe(40)]
        return repr(tuple(chosen or [-1]))

    def _c(self) -> str:
        return ":, " * (self.pool.integer(0, self.rank - 1) if self.rank else 0)

    def _o(self) -> str:
        order = list(range(self.rank))
        for k in range(self.rank):
            j = self.pool.integer(k, self.rank - 1)
            order[k], order[j] = order[j], order[k]
        return ", ".join(map(str, order))

    def _a(self) -> str:
        return "n0"

    def _m(self) -> str:
        return str(self.pool.integer(-3, 3))

    def _k(self) -> str:
        return str(self.pool.integer(0, 3))

    def _j(self) -> str:
        return str(self.pool.integer(1, 3))

    def _b(self) -> str:
        return str(bool(self.pool.integer(0, 1)))

    def _h(self) -> str:
        sizes = {shape[int(self["d"])] for shape in self.pool.shapes(self["x"])}
        if len(sizes) > 1 or max(sizes) < 2:
            raise Missing  # a part of a size that differs between calls is no number
        (size,) = sizes
        first = self.pool.integer(1, size - 1)
        self["g"] = str(size - first)
        return str(first)


def template(block: str, wanted: Wanted = anything, *, results: int = 1) -> Callable[[Pool], Step | None]:
    """Draws a line of `block` about a value that is `wanted`; `results` is how many it makes.

    A line with the blank r is a statement by itself, which assigns its only result to r.
    """
    options = lines(block)

    def draw(pool: Pool) -> Step | None:
        x = pool.value(wanted)
        if x is None:
            return None
        if results == 0 and not pool.maybe(30):  # a write, most often to what the program made itself
            x = pool.temporary()
        if x is None:
            return None
        blanks = _Blanks(pool, x)
        makes = tuple(pool.fresh() for _ in range(results))
        option = str(pool.pick(options))
        blanks["r"] = makes[0] if makes else ""
        try:
            text = option.format_map(blanks)
        except Missing:
            return None
        if "{r}" in option:
            return Step(text, tuple(dict.fromkeys(blanks.reads)), makes)
        return Step(f"{', '.join(makes)} = {text}" if makes else text, tuple(dict.fromkeys(blanks.reads)), makes)

    return draw


# ---- rows of the operator table, called as their schemas say


def rows(*kinds: Kind) -> list[str]:
    """Operators of the table, by kind, sorted."""
    return sorted(op for op, row in TABLE.items() if row.kind in kinds)


def row(ops: Sequence[str]) -> Callable[[Pool], Step | None]:
    """Draws a call of one of `ops` with arguments of the types its schema names."""

    def draw(pool: Pool) -> Step | None:
        op = pool.pick(ops)
        schema = resolve(op)._schema
        if any("List[Tensor]" in str(r.type) for r in schema.returns):
            return None  # the templates name the parts
        reads: list[str] = []
        texts: list[str] = []
        try:
            for argument in schema.arguments:
                if argument.has_default_value() and not pool.maybe(40):
                    continue
                named = argument.kwarg_only or len(texts) < list(schema.arguments).index(argument)
                text = _argument(pool, argument, reads)
                texts.append(f"{argument.name}={text}" if named else text)
        except Missing:
            return None
        names = tuple(pool.fresh() for _ in schema.returns)
        return Step(f"{', '.join(names)} = torch.ops.{op}({', '.join(texts)})", tuple(dict.fromkeys(reads)), names)

    return draw


def _argument(pool: Pool, argument: Any, reads: list[str]) -> str:
    """The text of one argument, by its type and name."""
    kind, name = str(argument.type), argument.name
    if kind.startswith("Optional["):
        kind = kind.removeprefix("Optional[").removesuffix("]")
    rank = len(pool.shapes(reads[0])[0]) if reads else 0
    if kind == "Tensor":
        return _tensor(pool, reads)
    if kind in ("List[Tensor]", "List[Optional[Tensor]]"):
        first = _tensor(pool, reads)
        found = [first, *(pool.like(first) or first for _ in range(pool.integer(0, 2)))]
        return f"[{', '.join(found)}]"
    if kind == "int" and name == "dtype":
        return str(pool.pick(DTYPES))
    if name in _KEPT:
        raise Missing
    if kind == "int":
        return str(pool.integer(-rank, rank - 1) if "dim" in name and rank else pool.integer(-1, 3))
    if kind in ("List[int]", "List[SymInt]") and ("dim" in name or name == "axis"):
        return repr([d for d in range(-rank, 0) if pool.maybe(50)] or [-1])
    if kind in ("List[int]", "List[SymInt]") and name == "normalized_shape":
        return f"{reads[0]}.shape[{pool.integer(-max(1, rank), -1)}:]"
    if kind in ("List[int]", "List[SymInt]"):
        return repr([pool.integer(0, 3) for _ in range(rank or 1)])
    simple = {
        "number": lambda: repr(pool.pick(NUMBERS)),
        "bool": lambda: str(bool(pool.integer(0, 1))),
        "float": lambda: repr(float(pool.pick(NUMBERS))),
        "str": lambda: repr(pool.pick(_WORDS.get(name, ["none"]))),
    }
    if kind not in simple:
        raise Missing
    return simple[kind]()


_KEPT = ("layout", "memory_format", "device", "pin_memory")
_WORDS = {"approximate": ["none", "tanh"], "rounding_mode": ["floor", "trunc"], "mode": ["constant"]}


def _tensor(pool: Pool, reads: list[str]) -> str:
    found = pool.beside(reads[0]) if reads else pool.value()
    if found is None:
        raise Missing
    reads.append(found)
    return found
