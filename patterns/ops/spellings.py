"""The many names of one operator: in-place, `out=` and alias spellings, and the functional one the table has.

torch's schemas tell what an in-place or `out=` overload writes and which functional overload takes the same arguments.
Which names mean the same operator they do not tell, so those are listed here, and nowhere else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UnsupportedOperator

# Another name of an operator -> its own; the overloads take the same arguments in the same order. From torch's
# documentation, where each alias says what it is an alias of.
ALIASES = {
    "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctan2": "atan2", "arctanh": "atanh", "clip": "clamp", "concat": "cat", "concatenate": "cat",
    "divide": "div", "fix": "trunc", "greater": "gt", "greater_equal": "ge",
    "less": "lt", "less_equal": "le", "moveaxis": "movedim", "multiply": "mul", "negative": "neg", "not_equal": "ne",
    "special_erf": "erf", "special_erfc": "erfc", "special_erfinv": "erfinv", "special_exp2": "exp2",
    "special_expit": "sigmoid", "special_expm1": "expm1", "special_log1p": "log1p", "special_logit": "logit",
    "special_logsumexp": "logsumexp", "special_round": "round", "special_sinc": "sinc", "special_xlogy": "xlogy",
    "subtract": "sub", "swapaxes": "transpose", "swapdims": "transpose", "true_divide": "div", "__and__": "bitwise_and",
    "__or__": "bitwise_or", "__xor__": "bitwise_xor", "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift",
}  # fmt: skip


_INPLACE = re.compile(r"(__)i(\w+__)$|_$")  # `__iand__` writes what `__and__` makes, `add_` what `add` makes


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a call of an operator is a call of a functional one.

    Attributes:
        op: the functional operator, as the table names it: "aten.add.Tensor".
        writes: the argument the call writes its result to, by position or (`out=`) by name; None for neither. The
            functional call takes the same arguments, less one that is given by name here. torch casts the result to
            the written tensor's dtype; an in-place call's result has its shape, an `out=` tensor is resized.
    """

    op: str
    writes: int | str | None


@functools.cache
def functional(op: str) -> Spelling | None:
    """The functional spelling of `op`, of "aten.add_.Tensor" or "aten.greater.Scalar_out"; a functional one's own name.

    None where torch has no such operator, where it writes several tensors, or to one it does not return, and where no
    functional overload takes the same arguments.
    """
    schema = _schema(op)
    if schema is None:
        return None
    written = [(k, a) for k, a in enumerate(schema.arguments) if _is_written(a)]
    if not written:
        return Spelling(canonical(op), None)
    if len(written) > 1 or len(schema.returns) != 1 or not _is_written(schema.returns[0]):
        return None
    (position, argument), (namespace, name, _) = written[0], op.split(".")
    wanted = _signature(a for a in schema.arguments if not a.kwarg_only or not _is_written(a))
    made = _overload(namespace, name if argument.kwarg_only else _INPLACE.sub(r"\1\2", name), wanted)
    if made is None or _makes_view(made):  # `squeeze_` writes a tensor's shape, no elements
        return None
    return Spelling(canonical(made), argument.name if argument.kwarg_only else position)


@functools.cache
def canonical(op: str) -> str:
    """The name of `op` in the table: of an alias the operator it is an alias of, else `op` itself."""
    namespace, name, _ = op.split(".")
    if namespace != "aten" or name not in ALIASES:
        return op
    schema = _schema(op)
    found = None if schema is None else _overload(namespace, ALIASES[name], _signature(schema.arguments))
    return found or op


def resolve(op: str) -> Any:
    """torch's own callable for a full operator name: "aten.mul.Tensor" -> torch.ops.aten.mul.Tensor.

    Raises:
        UnsupportedOperator: this torch has no such operator.
    """
    namespace, name, overload = op.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError as error:
        raise UnsupportedOperator(f"This torch ({torch.__version__}) has no operator {op}.") from error


def _schema(op: str) -> torch.FunctionSchema | None:
    try:
        schema: torch.FunctionSchema = resolve(op)._schema
    except UnsupportedOperator:
        return None
    return schema


def _overload(namespace: str, name: str, wanted: tuple[Any, ...]) -> str | None:
    """The overload of an operator that writes nothing and takes arguments of the wanted types."""
    packet = getattr(getattr(torch.ops, namespace), name, None)
    for overload in packet.overloads() if packet is not None else ():
        arguments = getattr(packet, overload)._schema.arguments
        if not any(map(_is_written, arguments)) and _signature(arguments) == wanted:
            return f"{namespace}.{name}.{overload}"
    return None


def _signature(arguments: Iterable[Any]) -> tuple[Any, ...]:
    """What overloads are told apart by: types and defaults, in order, without what is written."""
    return tuple((str(a.type), a.kwarg_only) for a in arguments)


def _makes_view(op: str) -> bool:
    return any(r.alias_info is not None for r in resolve(op)._schema.returns)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
