"""The operator table. Importing this package fills it."""

from . import creation, joins, pointwise, reductions, views
from .spellings import Spelling, canonical, functional, resolve
from .table import FUSABLE, TABLE, Call, Kind, Operator, Read, Run, call_of, kind_of, lookup, register, row_of

__all__ = [
    "FUSABLE", "TABLE", "Call", "Kind", "Operator", "Read", "Run", "Spelling", "call_of", "canonical", "creation",
    "functional", "joins", "kind_of", "lookup", "pointwise", "reductions", "register", "resolve", "row_of", "views",
]  # fmt: skip
