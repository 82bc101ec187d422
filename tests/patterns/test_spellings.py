"""In-place, `out=` and alias spellings go by the functional operator the table has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusion.patterns.ops import TABLE, Kind, Spelling, canonical, functional, kind_of, lookup, resolve
from fusion.patterns.ops.document import page
from fusion.patterns.ops.spellings import ALIASES


def overloads(name: str) -> list[str]:
    """The overloads of an operator that tensors are passed to."""
    packet = getattr(torch.ops.aten, name)
    found = ((o, getattr(packet, o)._schema) for o in packet.overloads())
    return [f"aten.{name}.{o}" for o, schema in found if any("Tensor" in str(a.type) for a in schema.arguments)]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_means_what_its_operator_means(alias: str) -> None:
    for op in overloads(alias):
        spelling = functional(op)
        assert spelling is not None and spelling.op.split(".")[1] == ALIASES[alias]
        ours, theirs = resolve(op)._schema.arguments, resolve(spelling.op)._schema.arguments
        kept = [a for a in ours if spelling.writes is None or a.name != spelling.writes]
        assert [str(a.type) for a in kept] == [str(a.type) for a in theirs]
        if spelling.writes is None and spelling.op in TABLE:
            assert lookup(op) is TABLE[spelling.op] and kind_of(op) is TABLE[spelling.op].kind


@pytest.mark.parametrize(
    ("op", "made", "writes"),
    [
        ("add_.Tensor", "add.Tensor", 0),
        ("add.out", "add.Tensor", "out"),
        ("greater.Scalar_out", "gt.Scalar", "out"),
        ("true_divide_.Tensor", "div.Tensor", 0),
        ("sum.IntList_out", "sum.dim_IntList", "out"),
        ("__iand__.Tensor", "bitwise_and.Tensor", 0),
        ("masked_fill_.Scalar", "masked_fill.Scalar", 0),
        ("copy_.default", "copy.default", 0),
        ("fill_.Scalar", "fill.Scalar", 0),
        ("zero_.default", "zero.default", 0),
        ("clip_.default", "clamp.default", 0),
        ("absolute.default", "abs.default", None),
        ("mul.Tensor", "mul.Tensor", None),
    ],
)
def test_spellings(op: str, made: str, writes: int | str | None) -> None:
    assert functional(f"aten.{op}") == Spelling(f"aten.{made}", writes)


@pytest.mark.parametrize("op", ["squeeze_.dim", "t_.default", "max.dim_max", "no_such_operator.default", "add.none"])
def test_what_has_no_functional_spelling(op: str) -> None:
    """Views written in place, several results, operators and overloads torch does not have."""
    assert functional(f"aten.{op}") is None


def test_operators_of_other_libraries_are_their_own() -> None:
    assert canonical("mylib.add_.default") == "mylib.add_.default" and functional("mylib.add_.default") is None


WRITTEN = sorted({name for op in TABLE if hasattr(torch.ops.aten, f"{(name := op.split('.')[1])}_")})


@pytest.mark.parametrize("name", WRITTEN)
def test_in_place_spellings_are_those_of_rows(name: str) -> None:
    """An in-place call writes its first argument what the row makes; a view's writes no elements."""
    rows = [row for op, row in TABLE.items() if op.split(".")[1] == name]
    found = [functional(op) for op in overloads(f"{name}_")]
    if rows[0].kind is Kind.VIEW:
        assert found == [None] * len(found)
    else:
        assert {(s.op in TABLE, s.op.split(".")[1], s.writes) for s in found if s is not None} == {(True, name, 0)}


def test_the_page_of_operators_is_fresh() -> None:
    path = Path(__file__).parents[2] / "patterns" / "OPERATORS.md"
    assert path.read_text() == page(), "Run `make docs`."
