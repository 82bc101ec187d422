"""Normal forms as values: what a SubGraph computes, each expression once. `forms` makes them, `match` compares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from .symbols import Dim


@dataclass(frozen=True, slots=True)
class Use:
    """A form as an operand: its number, and the reordering views between it and its user."""

    form: int
    layout: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """One operation of a normal form.

    Attributes:
        fn: "input", "const", "slice", "stride" (every n-th element), "index" (along a dimension), "interleave" (the
            elements of the operands in turn), or an operator's short name.
        operands: what it reads.
        detail: what else tells it apart: an input's name, a constant's value, a slice's part.
    """

    fn: str
    operands: tuple[Use, ...] = ()
    detail: tuple[Any, ...] = ()


@dataclass
class NormalForm:
    """A SubGraph's forms, each once, operands before users.

    Attributes:
        forms: by number.
        values: for each value of the graph, what it is.
        outputs: the graph's outputs, in order.
        vectors: the forms that are inputs of one dimension.
    """

    forms: list[Form] = field(default_factory=list)
    values: dict[str, Use] = field(default_factory=dict)
    outputs: tuple[Use, ...] = ()
    vectors: set[int] = field(default_factory=set)

    def is_leaf(self, number: int) -> bool:
        """Whether a form is an input, a part of one, or a position: an index, moved or scaled by numbers."""
        form = self.forms[number]
        return form.fn == "input" or (
            self.is_leaf(form.operands[0].form) if form.fn in ("slice", "stride") else self.is_position(number)
        )

    def is_position(self, number: int) -> bool:
        """Whether a form is made of the index along one dimension and of numbers."""
        form = self.forms[number]
        if form.fn == "index":
            return True
        inner = [use.form for use in form.operands if self.forms[use.form].fn != "const"]
        return form.fn in ("add", "sub", "mul") and len(inner) == 1 and self.is_position(inner[0])

    def live(self) -> set[int]:
        """The forms the outputs depend on."""
        found: set[int] = set()
        open_ends = [use.form for use in self.outputs]
        while open_ends:
            number = open_ends.pop()
            if number not in found:
                found.add(number)
                open_ends += [use.form for use in self.forms[number].operands]
        return found


class FormBuilder(Protocol):
    """What makes forms: equal ones once, in the one way to write them."""

    def form(self, use: Use) -> Form:
        """The operation behind an operand."""

    def number(self, use: Use) -> Dim | float | None:
        """The number that an operand is; None where it is none."""

    def constant(self, value: Dim | float) -> Use:
        """A number as an operand."""

    def make(self, fn: str, operands: tuple[Use, ...], detail: tuple[Any, ...] = ()) -> Use:
        """An operation."""

    def reduced(self, fn: str, source: Use, dims: tuple[int, ...]) -> Use:
        """A reduction over dimensions, counted from the end."""

    def scaled(self, x: Use, factor: Dim | float) -> Use:
        """A product with a number."""
