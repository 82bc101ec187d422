"""The operator table as documentation: a page that is generated from the rows, never written by hand."""

from __future__ import annotations

from collections.abc import Iterable

from .spellings import ALIASES
from .table import TABLE, Kind, Operator, covered

_HEADS = {
    Kind.POINTWISE: "One element from one element of each operand, after broadcasting.",
    Kind.ELEMENT: "An element from its index, and from operands' elements at any index.",
    Kind.VIEW: "An index map: an element is an element of the operand.",
    Kind.REDUCTION: "Over dimensions of the operand, to one element or to a row again.",
    Kind.PRODUCT: "A sum of products of two operands' elements.",
}

_PREAMBLE = """\
# Operators

Generated from the operator table by `make docs`; a test fails where it is stale. An operator without a row runs eagerly
between kernels. In-place and `out=` spellings go by their functional overload; the other names an operator goes by are
listed with it.

Kernels hold bool, int8, int16, int32, int64, uint8, bfloat16, float16, float32 and float64, with torch's promotion;
arithmetic in half precision is done in float32 and rounded where eager rounds. What a row does not cover runs eagerly,
with the reason in the report.
"""


def page() -> str:
    """The page's text."""
    sections = [_PREAMBLE]
    for kind in dict.fromkeys((*_HEADS, *(row.kind for row in TABLE.values()))):
        rows = [row for row in TABLE.values() if row.kind is kind]
        sections.append(_section(kind, rows))
    return "\n".join(sections)


def _section(kind: Kind, rows: Iterable[Operator]) -> str:
    by_name: dict[str, list[Operator]] = {}
    for row in rows:
        by_name.setdefault(row.op.split(".")[1], []).append(row)
    title = f"## {kind.value.capitalize()}\n\n{_HEADS.get(kind, '')}\n".replace("\n\n\n", "\n")
    table = ["| operator | overloads | also called | some uses refused | numerics |", "|---|---|---|---|---|"]
    table += [_line(name, by_name[name]) for name in sorted(by_name)]
    return "\n".join([title, *table, ""])


def _line(name: str, rows: list[Operator]) -> str:
    overloads = ", ".join(row.op.split(".")[2] for row in rows)
    aliases = ", ".join(f"`{alias}`" for alias, own in ALIASES.items() if own == name)
    partial = "yes" if any(row.covers is not covered for row in rows) else ""
    notes = "; ".join(dict.fromkeys(row.note for row in rows if row.note))
    return f"| `{name}` | {overloads} | {aliases} | {partial} | {notes} |"
