"""How a plan calls each operator: the cheapest entry point that does the same as the recorded call.

A Tensor method or a `torch._C._nn` function costs about 1 us less than the `torch.ops` callable; an operator without a
shorthand here is called through `torch.ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import resolve
from fusion.patterns.specs import TensorSpec

Text = Callable[[Any], str]  # source of a leaf or a nested tuple of leaves
Name = Callable[[str, Any], str]  # binds an object to a name in the plan's namespace

_FUNCTIONS: dict[str, Any] = {
    "aten.linear.default": torch._C._nn.linear,
    "aten.scaled_dot_product_attention.default": torch._C._nn.scaled_dot_product_attention,
    "aten.silu.default": torch._C._nn.silu,
    "aten.gelu.default": torch._C._nn.gelu,
    "aten.embedding.default": torch.embedding,
    "aten.cat.default": torch.cat,
    "aten.softmax.int": torch.softmax,
    "aten.where.self": torch.where,
}
_SPREAD = {"view", "reshape", "expand", "permute"}  # the method takes the sizes as arguments of their own
_METHODS = {
    "aten.view.default", "aten.reshape.default", "aten.expand.default", "aten.permute.default", "aten.transpose.int",
    "aten.unsqueeze.default", "aten.contiguous.default", "aten.to.dtype", "aten.mean.dim", "aten.rsqrt.default",
    "aten.neg.default", "aten.cos.default", "aten.sin.default", "aten.pow.Tensor_Scalar", "aten.matmul.default",
    "aten.exp.default", "aten.sigmoid.default", "aten.tanh.default", "aten.masked_fill.Scalar",
}  # fmt: skip
# Arguments by position that the method takes; an operator's schema may hold more.
_MOST_ARGUMENTS = {"aten.to.dtype": 4, "aten.contiguous.default": 1}
_OPERATORS = {"aten.add.Tensor": "+", "aten.mul.Tensor": "*", "aten.sub.Tensor": "-"}


def call(node: OpNode, text: Text, name: Name, result: TensorSpec | None = None, *, hold_scalars: bool = False) -> str:
    """The source of one operator call.

    Args:
        node: the call.
        text: source of an argument.
        result: what is known of its (first) result.
        hold_scalars: whether numbers may be held as tensors without dimensions.
        name: binds an object and gives its name; the first argument is a hint for the name.
    """
    if not node.refs:  # of numbers alone, a shorthand would make another number
        return _plainly(node, resolve(node.op), text, name)
    if node.op in _OPERATORS and len(node.args) == 2 and not node.kwargs:
        second = node.args[1]
        if hold_scalars and type(second) is float and result is not None and result.dtype is torch.float32:
            # a tensor without dimensions is 1.2 us cheaper than a number, and in float32 the same arithmetic
            scalar = name("scalar", torch.tensor(second, dtype=torch.float32, device="cpu"))
            return f"{text(node.args[0])} {_OPERATORS[node.op]} {scalar}"
        return f"{text(node.args[0])} {_OPERATORS[node.op]} {text(second)}"
    short = _SHORT.get(node.op)
    if short is not None and not node.kwargs:
        source = short(node, text, result)
        if source:
            return source
    if node.op in _METHODS and not node.kwargs and len(node.args) <= _MOST_ARGUMENTS.get(node.op, len(node.args)):
        method = node.op.split(".")[1]
        rest = node.args[1] or ((),) if method in _SPREAD else node.args[1:]
        return f"{text(node.args[0])}.{method}({', '.join(map(text, rest))})"
    return _plainly(node, _FUNCTIONS.get(node.op) or resolve(node.op), text, name)


def _plainly(node: OpNode, function: Any, text: Text, name: Name) -> str:
    """A call of a function with the node's arguments."""
    arguments = list(map(text, node.args))
    if node.kwargs:  # a keyword is bound to a name of ours, for it may be any string
        arguments.append("**{" + ", ".join(f"{name('key', k)}: {text(v)}" for k, v in node.kwargs) + "}")
    return f"{name('op', function)}({', '.join(arguments)})"


def _slice(node: OpNode, text: Text, result: TensorSpec | None) -> str | None:
    """`x.narrow(dim, start, size)`, 0.5 us cheaper than a slice, where nothing counts from the end.

    A slice that starts behind the end is empty; narrow refuses it.
    """
    if len(node.args) != 4 or result is None:
        return None
    _, dim, start, _ = node.args
    if type(dim) is not int or dim < 0 or type(start) is not int or start < 0:
        return None
    size = result.shape[dim]
    return f"{text(node.args[0])}.narrow({dim}, {start}, {size})" if isinstance(size, int) and size else None


def _square(node: OpNode, text: Text, result: TensorSpec | None) -> str | None:
    """torch computes `pow(x, 2)` as `x * x`, which is 0.4 us cheaper to ask for; of a bool it makes an integer."""
    if node.args[1:] != (2,) or type(node.args[1]) is not int or result is None or not result.dtype.is_floating_point:
        return None
    operand = text(node.args[0])
    return f"{operand} * {operand}"


def _convert(node: OpNode, text: Text, result: TensorSpec | None) -> str | None:
    """`x.bfloat16()` for `x.to(torch.bfloat16)`: 0.7 us cheaper."""
    method = _CONVERSIONS.get(node.args[1]) if len(node.args) == 2 else None
    return f"{text(node.args[0])}.{method}()" if method else None


def _mean(node: OpNode, text: Text, result: TensorSpec | None) -> str | None:
    """One dimension as a number is 0.3 us cheaper than as a tuple."""
    if len(node.args) != 3 or not isinstance(node.args[1], tuple) or len(node.args[1]) != 1:
        return None
    return f"{text(node.args[0])}.mean({text(node.args[1][0])}, {text(node.args[2])})"


_CONVERSIONS = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "half", torch.float64: "double"}
_SHORT: dict[str, Callable[[OpNode, Text, TensorSpec | None], str | None]] = {
    "aten.slice.Tensor": _slice,
    "aten.pow.Tensor_Scalar": _square,
    "aten.to.dtype": _convert,
    "aten.mean.dim": _mean,
}
