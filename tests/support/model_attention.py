"""What stands between the two products of attention, as models write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model_inputs import BATCH, HEADS, Tensor, Written, normal, token_logits


def soft_capped(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 30.0) * 30.0


def eager_attention(scores: Tensor, mask: Tensor) -> Tensor:
    return F.softmax(scores * 0.25 + mask, dim=-1, dtype=torch.float32).to(scores.dtype)


def gemma_attention(scores: Tensor, mask: Tensor) -> Tensor:
    capped = torch.tanh(scores * 0.25 / 50.0) * 50.0
    return F.softmax(capped + mask, dim=-1, dtype=torch.float32).to(scores.dtype)


def gpt2_attention(scores: Tensor, keep: Tensor) -> Tensor:
    least = torch.finfo(scores.dtype).min
    return F.softmax(torch.where(keep, scores / 4.0, least), dim=-1)


def causal_attention(scores: Tensor) -> Tensor:
    queries, keys = scores.shape[-2:]
    later = torch.arange(keys)[None, :] > torch.arange(queries)[:, None]
    return F.softmax((scores * 0.25).masked_fill(later, float("-inf")), dim=-1, dtype=torch.float32).to(scores.dtype)


def triangular_attention(scores: Tensor) -> Tensor:
    mask = torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return F.softmax(scores.float() * 0.25 + mask, dim=-1).to(scores.dtype)


def _scores(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return {"scores": normal(0, BATCH, HEADS, length, length, dtype=dtype)}


def _later(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]


def _masked(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return _scores(dtype, length) | {"mask": torch.zeros(1, 1, 1, 1, dtype=dtype).masked_fill(_later(length), -3e4)}


ATTENTION: dict[str, Written] = {
    "soft-capping": Written(soft_capped, token_logits, ("soft-capping",)),
    "masked softmax": Written(eager_attention, _masked, ("masked softmax",)),
    "masked softmax, where": Written(
        gpt2_attention, lambda d, n: _scores(d, n) | {"keep": ~_later(n)},
        ("masked softmax",),
    ),
    "soft-capped softmax": Written(gemma_attention, _masked, ("soft-capped softmax",)),
    "causal softmax": Written(causal_attention, _scores, ("causal softmax",)),
    "causal softmax, triangle": Written(triangular_attention, _scores, ("causal softmax",)),
}  # fmt: skip
