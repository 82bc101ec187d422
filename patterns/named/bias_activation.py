"""Bias+activation: what is left of a linear layer and its activation beside the matrix product."""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern

_NAMES = {"gelu": "bias+GELU", "gelu_tanh": "bias+GELU", "silu": "bias+SiLU", "relu": "bias+ReLU"}


def create_bias_activation_pattern(
    activation: str = "gelu", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """activation(x + bias), the bias the same for all rows.

    Args:
        activation: "gelu", "gelu_tanh" (approximated), "silu" or "relu", as torch.nn.functional has them.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "x" [s0, s1] and "bias" [s1], and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    x, bias = b.input("x", dtype, (symbol("s0"), symbol("s1"))), b.input("bias", dtype, (symbol("s1"),))
    op, _, approximate = activation.partition("_")
    kwargs = (("approximate", approximate or "none"),) if op == "gelu" else ()
    made = b.call(f"{op}.default", b.call("add.Tensor", x, bias), kwargs=kwargs, name="output")
    return b.graph(made).with_pattern(_NAMES[activation])


PATTERNS = tuple(
    Pattern(name, functools.partial(create_bias_activation_pattern, activation), vectors=("bias",))
    for activation, name in _NAMES.items()
)
