"""Activations, as models write them: gated and after a bias."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from model_inputs import HIDDEN, Tensor, Written, tokens


def written_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def fast_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


_GATED = tokens(gate=HIDDEN, up=HIDDEN)
_BIASED = tokens(x=HIDDEN, Bias=HIDDEN)

ACTIVATIONS: dict[str, Written] = {
    "ReGLU": Written(lambda gate, up: F.relu(gate) * up, _GATED, ("ReGLU",)),
    "GEGLU, erf": Written(lambda gate, up: F.gelu(gate) * up, _GATED, ("GEGLU",)),
    "GEGLU, tanh": Written(lambda gate, up: F.gelu(gate, approximate="tanh") * up, _GATED, ("GEGLU",)),
    "GEGLU, written out": Written(lambda gate, up: written_gelu(gate) * up, _GATED, ("GEGLU",)),
    "GELU, written out": Written(written_gelu, tokens(x=HIDDEN), ("GELU",)),
    "bias+GELU": Written(lambda x, bias: F.gelu(x + bias), _BIASED, ("bias+GELU",)),
    "bias+GELU, written out": Written(lambda x, bias: written_gelu(x + bias), _BIASED, ("bias+GELU",)),
    "bias+GELU, fast": Written(lambda x, bias: fast_gelu(x + bias), _BIASED, ("bias+GELU",)),
    "bias+SiLU": Written(lambda x, bias: F.silu(x + bias), _BIASED, ("bias+SiLU",)),
    "bias+ReLU": Written(lambda x, bias: torch.relu(bias + x), _BIASED, ("bias+ReLU",)),
}  # fmt: skip
