"""Drawing programs: a step is drawn, tried on tensors of every size of the program, and kept where torch takes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import fuzz_around as around
import fuzz_steps as steps
import fuzz_templates as templates
import torch
from fuzz_numerics import Unspecified, Watch
from fuzz_program import Blocks, Group, Program, Sizes, Step, Tensor, laid_out
from hypothesis import strategies as st

from fusion.patterns.ops import Kind

MOST_ELEMENTS = 600
MOST_DIMENSIONS = 5
GOES_ON = 99  # percent
_DTYPES = (*(torch.float32,) * 5, torch.bfloat16, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)
_RARE = (torch.int32, torch.uint8, torch.int16, torch.int8)
_SIZES: tuple[tuple[Sizes, ...], ...] = (
    ((("B", 2), ("N", 5)), (("B", 3), ("N", 7)), (("B", 2), ("N", 12))),
    ((("B", 2), ("N", 4)), (("B", 2), ("N", 9)), (("B", 5), ("N", 3))),
    ((("B", 1), ("N", 6)), (("B", 1), ("N", 11)), (("B", 2), ("N", 6))),
    ((("B", 3), ("N", 1)), (("B", 4), ("N", 1)), (("B", 3), ("N", 8))),
    ((("B", 2), ("N", 0)), (("B", 2), ("N", 5)), (("B", 3), ("N", 0))),
    ((("B", 2), ("N", 33)), (("B", 2), ("N", 17)), (("B", 4), ("N", 40))),
)
_SHAPES: tuple[tuple[int | str, ...], ...] = (
    ("B", "N", 8), ("B", "N", 8), ("N", 8), ("B", "N"), (8,), ("B", 1, "N", "N"), ("B", 2, "N", 4), (1, "N", 8), ("N",),
    (), ("B", "N", 2, 4), (1,), ("N", 1), ("B", 8, "N"), (4, 8), ("B", "N", 0),
)  # fmt: skip
_LAYOUTS = ("dense", "dense", "dense", "transposed", "stepped", "offset", "expanded", "odd")

Draw = Callable[[steps.Pool], Step | None]


def _kinds() -> list[tuple[int, Draw]]:
    """Weights and drawers; the table's rows by kind, so that a row added there is drawn here."""
    computing = [k for k in Kind if k.value not in ("library", "effect")]
    pointwise, reduces = steps.rows(Kind.POINTWISE), steps.rows(Kind.REDUCTION)
    others = steps.rows(*(k for k in computing if k not in (Kind.POINTWISE, Kind.REDUCTION)))
    return [
        (18, steps.template(templates.ARITHMETIC)),
        (12, steps.row(pointwise)),
        (8, steps.template(templates.ACTIVATION, steps.floating)),
        (12, steps.template(templates.VIEW, steps.dimensioned)),
        (4, steps.template(templates.PARTS, steps.dimensioned, results=2)),
        (3, steps.template(templates.PAIRS, steps.dimensioned, results=2)),
        (9, steps.template(templates.JOIN, steps.dimensioned)),
        (5, steps.template(templates.CREATE, steps.dimensioned)),
        (6, steps.template(templates.CONVERT)),
        (10, steps.template(templates.REDUCTION, steps.dimensioned)),
        (4, steps.row(reduces)),
        (3, steps.row(others)),
        (4, steps.template(templates.SIZED, steps.dimensioned)),
        (6, steps.template(templates.WRITE, results=0)),
        (3, steps.template(templates.LIBRARY, steps.dimensioned)),
        (2, steps.template(templates.DATA, steps.dimensioned)),
        (1, steps.template(templates.RANDOM, steps.dimensioned)),
        (1, steps.template(templates.ISLAND)),
    ]


_READS, _MODES, _EFFECTS = map(steps.template, (around.READS, around.MODES, around.EFFECTS))
_AROUND = ((_READS,), (_READS,), (_READS,), (_READS,), (_READS,), (_READS,), (_MODES,), (_MODES, _READS),
           (_EFFECTS,), (_READS, _MODES, _EFFECTS))  # fmt: skip


class Builder:
    """A program in the making; also the Pool that steps are drawn from.

    Attributes:
        values: for each of the program's sizes, the values by name.
    """

    def __init__(self, draw: Any, kinds: Sequence[Draw]) -> None:
        self.draw = draw
        self.kinds = kinds
        self.sizes = self.pick(_SIZES)
        self.steps: list[Step] = []
        self.counter = 0
        self.cache = False
        self.around = _AROUND[self.integer(0, 9)] if self.maybe(40) else ()
        self.inputs = self._inputs()
        self.state = self._state()
        self._restart()

    # ---- choices

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def maybe(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent

    def value(self, wanted: Callable[[torch.Tensor], bool] = lambda t: True) -> str | None:
        names = [n for n, t in self.values[0].items() if wanted(t)]
        if not names:
            return None
        recent = names[-4:]
        return str(self.pick(recent[::-1] if self.maybe(60) else names))

    def temporary(self) -> str | None:
        outer = {t.untyped_storage()._cdata for n, t in self.values[0].items() if not n.startswith("v")}
        return self.value(lambda t: t.untyped_storage()._cdata not in outer)

    def beside(self, name: str) -> str | None:
        found = [n for n in self.values[0] if all(_broadcasts(a, b) for a, b in self._pairs(name, n))]
        return str(self.pick(found)) if found else None

    def like(self, name: str) -> str | None:
        dtype = self.tensor(name).dtype
        found = [
            n for n in self.values[0] if self.tensor(n).dtype is dtype and all(a == b for a, b in self._pairs(name, n))
        ]
        return str(self.pick(found)) if found else None

    def _pairs(self, left: str, right: str) -> list[tuple[torch.Size, torch.Size]]:
        return list(zip(self.shapes(left), self.shapes(right), strict=True))

    def shapes(self, name: str) -> list[torch.Size]:
        return [values[name].shape for values in self.values]

    def tensor(self, name: str) -> torch.Tensor:
        return self.values[0][name]

    def fresh(self) -> str:
        self.counter += 1
        return f"v{self.counter - 1}"

    # ---- what comes in

    def _dtype(self) -> torch.dtype:
        return self.pick(_RARE) if self.maybe(5) else self.pick(_DTYPES)

    def _inputs(self) -> tuple[Tensor, ...]:
        inputs: list[Tensor] = []
        while len(inputs) < 4 and (not inputs or self.maybe(60)):
            k = len(inputs)
            name = f"x{k}"
            if inputs and self.maybe(12):
                of = self.pick(inputs)
                sliced = [of.name, f"{of.name}.t()" if len(of.shape) == 2 else of.name]
                sliced += [f"{of.name}[..., 1:]", f"{of.name}[..., :1]"] if of.shape else []
                inputs.append(Tensor(name, of.shape, of.dtype, alias=self.pick(sliced)))
                continue
            shape = self.pick(_SHAPES) if k == 0 or self.maybe(50) else inputs[0].shape
            dtype = self._dtype() if k == 0 or self.maybe(40) else inputs[0].dtype
            data = "special" if self.maybe(10) else "small" if self.maybe(20) else "normal"
            inputs.append(Tensor(name, shape, dtype, self.pick(_LAYOUTS), data))
        return tuple(inputs)

    def _state(self) -> tuple[Tensor, ...]:
        """Parameters and buffers, whose sizes never differ."""
        made: list[Tensor] = []
        while len(made) < 3 and self.maybe(40):
            k = len(made)
            kind = self.pick(("p", "b"))
            dtype = self._dtype()
            if kind == "p" and not dtype.is_floating_point:
                dtype = torch.float32
            made.append(Tensor(f"{kind}{k}", self.pick(((8,), (4, 8), (), (1,), (8, 8), (1, 1, 8))), dtype))
        return tuple(made)

    def _restart(self) -> None:
        """The values at every size, computed anew: after a write that one of them refused."""
        self.names: dict[str, Any] = {"torch": torch}
        exec(around.SOURCE, self.names)
        self.names["self"] = self.names["Around"]()
        self.values: list[dict[str, torch.Tensor]] = []
        self.watches: list[Watch] = []
        for sizes in self.sizes:
            values: dict[str, Any] = {}
            scope = {"torch": torch, "laid_out": laid_out, **dict(sizes)}
            for k, tensor in enumerate(self.inputs):
                values[tensor.name] = eval(tensor.text(str(k)), {**scope, **values})
            for k, tensor in enumerate(self.state):
                values[tensor.name] = eval(tensor.text(str(1000 + k)), scope)
            self.values.append(values)
            self.watches.append(Watch())
        for step in self.steps:
            assert self._runs(step)

    # ---- steps

    def _runs(self, step: Step) -> bool:
        """Runs a step at every size; False where torch or `Watch` refuses it, or where its results grow too large."""
        for number, values, watch in zip((3, 2, 3), self.values, self.watches, strict=True):
            scope = {"torch": torch, "F": torch.nn.functional, "cache": _Store, "n0": number, **self.names, **values}
            shapes = {name: t.shape for name, t in values.items()}
            try:
                with torch.no_grad(), warnings.catch_warnings(), watch:
                    warnings.simplefilter("ignore")
                    exec(step.text, scope)  # no_grad puts the mode back that a step sets
            except (Exception, Unspecified):
                return False
            if any(values[name].shape != shape for name, shape in shapes.items()):
                return False  # an `out` that was resized, which torch means to forbid
            for name in step.makes:
                t = scope[name]
                if not _usable(t):
                    return False
                values[name] = t
            if not all(values[n].numel() <= MOST_ELEMENTS for n in step.makes):
                return False
        return True

    def attempt(self) -> None:
        """Draws a step and keeps it where it runs."""
        step = self.pick(self.around if self.around and self.maybe(20) else self.kinds)(self)
        if step is None:
            return
        if self._runs(step):
            self.steps.append(step)
            self.cache = self.cache or "cache." in step.text
            return
        if step.makes:  # nothing was written: forgetting the results is enough
            for values in self.values:
                for name in step.makes:
                    values.pop(name, None)
        else:
            self._restart()

    # ---- what goes out

    def program(self) -> Program:
        number = any("n0" in step.text for step in self.steps)
        plain = Program(
            self.inputs, self.state, self._groups(), tuple(self.steps), self._result(), self.sizes,
            self.pick((1, 1, 1, 2)), self.cache, number, around=bool(self.around), hostile=self.maybe(15),
        )  # fmt: skip
        if self.maybe(40) and len(self.steps) > 1:
            plain = self._in_blocks(plain)
        return replace(plain, events=self._events(plain.blocks.count)) if self.around else plain

    def _events(self, blocks: int) -> tuple[tuple[int, str], ...]:
        options = around.EVENTS + around.BLOCK_EVENTS if blocks else around.EVENTS
        return tuple(sorted((self.integer(1, 6), self.pick(options)) for _ in range(self.integer(0, 3))))

    def _in_blocks(self, program: Program) -> Program:
        """The program with some of its steps in modules of their own, each given what the last one made."""
        first = self.integer(0, len(program.steps) - 1)
        last = self.integer(first, len(program.steps) - 1)
        steps = tuple(replace(s, inside=first <= k <= last) for k, s in enumerate(program.steps))
        inside = steps[first : last + 1]
        made = [name for s in inside for name in s.makes]
        read = [name for s in inside for name in s.reads if name not in made]
        pairs = [(new, old) for new in made for old in read if self._alike(new, old)]
        carry = self.pick(pairs) if pairs and self.maybe(70) else None
        within = self.pick(("", "", "", *around.WITHIN)) if self.maybe(50) else None
        return replace(program, steps=steps, blocks=Blocks(self.pick((2, 2, 1, 3)), carry, within))

    def _alike(self, left: str, right: str) -> bool:
        return self.tensor(left).dtype is self.tensor(right).dtype and self.shapes(left) == self.shapes(right)

    def _groups(self) -> tuple[Group, ...]:
        names = [x.name for x in self.inputs]
        if len(names) > 1 and self.maybe(25):
            packed = Group("packed", self.pick(("tuple", "list", "dict")), tuple(names[1:]))
            return (Group(names[0], "plain", (names[0],)), packed)
        return tuple(Group(n, "plain", (n,)) for n in names)

    def _result(self) -> str:
        read = {name for step in self.steps for name in step.reads}
        unread = [n for n in self.values[0] if n.startswith("v") and n not in read]
        out = unread[-3:] or list(self.values[0])[-1:]
        for _ in range(self.integer(0, 2)):
            out.append(self.value() or out[0])
        if len(out) == 1 and self.maybe(70):
            return out[0]
        flat = ", ".join(out)
        named = ", ".join(f"'r{k}': {n}" for k, n in enumerate(out))
        nested = f"{{'first': {out[0]}, 'rest': [{', '.join(out[1:])}]}}"
        return str(self.pick((f"({flat},)", f"[{flat}]", f"{{{named}}}", nested, f"({out[-1]}, ({flat},), None)")))


class _Store:
    """What the island does to values, while a program is drawn."""

    @staticmethod
    def update(value: torch.Tensor, layer: int) -> torch.Tensor:
        return value + 1


def _usable(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.ndim <= MOST_DIMENSIONS and t.dtype in steps.DTYPES


def _broadcasts(left: torch.Size, right: torch.Size) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(left), reversed(right), strict=False))


@st.composite
def _turn(draw: Any, builder: Builder) -> bool:
    """One more step, or none: together one span of choices, which shrinking can leave out."""
    builder.draw = draw
    if builder.steps and not builder.maybe(GOES_ON):
        return False
    builder.attempt()
    return True


@st.composite
def programs(draw: Any, most_steps: int = 14) -> Program:
    """Programs of up to `most_steps` steps."""
    kinds = [drawer for weight, drawer in _kinds() for _ in range(weight)]
    builder = Builder(draw, kinds)
    for _ in range(most_steps):
        if not draw(_turn(builder)):
            break
    builder.draw = draw
    return builder.program()
