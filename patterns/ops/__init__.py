"""The operator table. Importing this package fills it."""

from . import activations, convolutions, creation, joins, pointwise, products, reductions, transcendental, views
from .spellings import Spelling, canonical, functional, resolve
from .table import (
    CALLED,
    FUSABLE,
    TABLE,
    Attention,
    Call,
    Contraction,
    Kind,
    Operator,
    Read,
    Run,
    call_of,
    kind_of,
    lookup,
    register,
    row_of,
)

__all__ = [
    "CALLED", "FUSABLE", "TABLE", "Attention", "Call", "Contraction", "Kind", "Operator", "Read", "Run", "Spelling",
    "activations", "call_of", "canonical", "convolutions", "creation", "functional", "joins", "kind_of", "lookup",
    "pointwise", "products", "reductions", "register", "resolve", "row_of", "transcendental", "views",
]  # fmt: skip
