"""Norms and residuals, as models write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model_inputs import HIDDEN, Tensor, Written, tokens


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)


def cohere_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    mean = wide.mean(-1, keepdim=True)
    variance = (wide - mean).pow(2).mean(-1, keepdim=True)
    wide = (wide - mean) * torch.rsqrt(variance + 1e-5)
    return (weight.to(torch.float32) * wide).to(x.dtype)


def variance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    wide = x.float()
    centred = wide - wide.mean(dim=-1, keepdim=True)
    spread = torch.sqrt(wide.var(dim=-1, keepdim=True, unbiased=False) + 1e-5)
    return (centred / spread * weight.float() + bias.float()).to(x.dtype)


def pre_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return F.layer_norm(total, total.shape[-1:], weight, bias), total


def post_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x + residual, x.shape[-1:], weight, bias, 1e-12)


def torch_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def granite_residual(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    residual = residual + x * 0.22
    return rms(residual, weight), residual


def gemma_norms(x: Tensor, residual: Tensor, weight: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    residual = residual + gemma_norm(x, weight)
    return gemma_norm(residual, after), residual


def gemma_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide * (1.0 + weight.float())).type_as(x)


def norm_then_gate(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    return (rms(x, weight) * F.silu(gate.to(torch.float32))).to(x.dtype)


def gate_then_norm(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32) * F.silu(gate.to(torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


_AFFINE = tokens(x=HIDDEN, Weight=HIDDEN, Bias=HIDDEN)
_ADDED = tokens(x=HIDDEN, residual=HIDDEN, Weight=HIDDEN, Bias=HIDDEN)

NORMS: dict[str, Written] = {
    "LayerNorm, operator": Written(layer_norm, _AFFINE, ("LayerNorm",)),
    "LayerNorm, no bias": Written(cohere_norm, tokens(x=HIDDEN, Weight=HIDDEN), ("LayerNorm",)),
    "LayerNorm, var": Written(variance_norm, _AFFINE, ("LayerNorm",)),
    "LayerNorm, nothing": Written(
        lambda x: F.layer_norm(x.float(), (HIDDEN,)).to(x.dtype), tokens(x=HIDDEN),
        ("LayerNorm",),
    ),
    "Add+LayerNorm": Written(pre_norm, _ADDED, ("Add+LayerNorm",)),
    "Add+LayerNorm, post-norm": Written(post_norm, _ADDED, ("Add+LayerNorm",)),
    "RMSNorm, operator": Written(torch_rms_norm, tokens(x=HIDDEN, Weight=HIDDEN), ("RMSNorm",)),
    "Add+RMSNorm, scaled": Written(
        granite_residual, tokens(x=HIDDEN, residual=HIDDEN, Weight=HIDDEN),
        ("Add+RMSNorm",),
    ),
    "RMSNorm+Add": Written(
        lambda x, residual, weight: residual + gemma_norm(x, weight),
        tokens(x=HIDDEN, residual=HIDDEN, Weight=HIDDEN),
        ("RMSNorm+Add",),
    ),
    "RMSNorm+Add+RMSNorm": Written(
        gemma_norms, tokens(x=HIDDEN, residual=HIDDEN, Weight=HIDDEN, After=HIDDEN), ("RMSNorm+Add+RMSNorm",)
    ),
    "gated RMSNorm, after": Written(norm_then_gate, tokens(x=HIDDEN, gate=HIDDEN, Weight=HIDDEN), ("gated RMSNorm",)),
    "gated RMSNorm, before": Written(gate_then_norm, tokens(x=HIDDEN, gate=HIDDEN, Weight=HIDDEN), ("gated RMSNorm",)),
}  # fmt: skip

RESIDUALS: dict[str, Written] = {
    "residual scaling": Written(
        lambda x, residual: residual + x * 0.22, tokens(x=HIDDEN, residual=HIDDEN), ("residual scaling",)
    ),
    "residual scaling, alpha": Written(
        lambda x, residual: torch.add(residual, x, alpha=0.22), tokens(x=HIDDEN, residual=HIDDEN), ("residual scaling",)
    ),
    "residual scaling, channels": Written(
        lambda x, residual, scale: residual + x * scale, tokens(x=HIDDEN, residual=HIDDEN, Scale=HIDDEN),
        ("residual scaling",),
    ),
}  # fmt: skip
