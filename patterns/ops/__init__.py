"""The operator table. Importing this package fills it."""

from . import pointwise, reductions, views
from .table import TABLE, Call, Kind, Operator, Run, call_of, kind_of, lookup, register, resolve, row_of

__all__ = [
    "TABLE", "Call", "Kind", "Operator", "Run", "call_of", "kind_of", "lookup", "pointwise", "reductions", "register",
    "resolve", "row_of", "views",
]  # fmt: skip
