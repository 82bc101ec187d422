"""How a plan calls each operator: the cheapest entry point that does the same as the recorded call.

A Tensor method or a `torch._C._nn` function costs about 1 us less than the `torch.ops` callable; an operator without a
shorthand here is called through `torch.ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fusion.patterns.graph import OpNode
from fusion.patterns.ops import resolve

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
_OPERATORS = {"aten.add.Tensor": "+", "aten.mul.Tensor": "*", "aten.sub.Tensor": "-"}
_END = 2**63 - 1  # how torch writes "to the end" in a slice


def call(node: OpNode, text: Text, name: Name) -> str:
    """The source of one operator call.

    Args:
        node: the call.
        text: source of an argument.
        name: binds an object and gives its name; the first argument is a hint for the name.
    """
    if node.op in _OPERATORS and len(node.args) == 2 and not node.kwargs:
        return f"{text(node.args[0])} {_OPERATORS[node.op]} {text(node.args[1])}"
    if node.op in _METHODS and not node.kwargs:
        method = node.op.split(".")[1]
        rest = node.args[1] if method in _SPREAD else node.args[1:]
        return f"{text(node.args[0])}.{method}({', '.join(map(text, rest))})"
    if node.op == "aten.slice.Tensor" and len(node.args) == 4 and not node.kwargs:
        short = _slice(node, text)
        if short:
            return short
    function = _FUNCTIONS.get(node.op)
    arguments = [*map(text, node.args), *(f"{k}={text(v)}" for k, v in node.kwargs)]
    return f"{name('op', function or resolve(node.op))}({', '.join(arguments)})"


def _slice(node: OpNode, text: Text) -> str | None:
    """`x[:, :, a:b]`, where the bounds are plain numbers and none counts from the end."""
    _, dim, start, end = node.args
    if not (type(dim) is int and dim >= 0 and type(start) is int and start >= 0 and type(end) is int and end >= 0):
        return None
    stop = "" if end == _END else str(end)
    return f"{text(node.args[0])}[{':, ' * dim}{start or ''}:{stop}]"
