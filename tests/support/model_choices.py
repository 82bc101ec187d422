"""How experts and tokens are chosen, as models write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model_inputs import EXPERTS, Tensor, Written, normal, token_logits, tokens


def mixtral_weights(chosen: Tensor) -> Tensor:
    return chosen / chosen.sum(dim=-1, keepdim=True)


def mixtral_router(logits: Tensor) -> tuple[Tensor, Tensor]:
    likely = F.softmax(logits.float(), dim=-1)
    chosen, experts = torch.topk(likely, 2, dim=-1)
    return (chosen / chosen.sum(dim=-1, keepdim=True)).to(logits.dtype), experts


def deepseek_router(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    experts = torch.topk(scores + bias, 2, dim=-1)[1]
    chosen = scores.gather(-1, experts)
    chosen = chosen / (chosen.sum(dim=-1, keepdim=True) + 1e-20)
    return chosen * 2.5, experts


def ernie_weights(chosen: Tensor) -> Tensor:
    return chosen / torch.clamp(chosen.sum(dim=-1, keepdim=True), min=1e-12)


def min_p(logits: Tensor) -> Tensor:
    logits = logits / 0.7
    likely = F.softmax(logits, dim=-1)
    return logits.masked_fill(likely < 0.1 * likely.amax(dim=-1, keepdim=True), float("-inf"))


def sampling_chain(logits: Tensor) -> Tensor:
    logits = min_p(logits)
    kth = torch.topk(logits, 20)[0][..., -1, None]
    logits = logits.masked_fill(logits < kth, float("-inf"))
    ordered, places = torch.sort(logits, descending=False)
    removed = ordered.softmax(dim=-1).cumsum(dim=-1) <= 0.1
    return logits.masked_fill(removed.scatter(1, places, removed), float("-inf"))


def _chosen(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return {"chosen": normal(0, length, 2, dtype=dtype).sigmoid()}


ROUTERS: dict[str, Written] = {
    "router weights": Written(mixtral_weights, _chosen, ("router weights",)),
    "router weights, clamped": Written(ernie_weights, _chosen, ("router weights",)),
    "router, softmax": Written(mixtral_router, tokens(logits=EXPERTS), ("router weights",)),
    "router, sigmoid": Written(
        deepseek_router, tokens(logits=EXPERTS, Bias=EXPERTS),
        ("router scores", "router weights"),
    ),
}  # fmt: skip

SAMPLING: dict[str, Written] = {
    "sampling": Written(sampling_chain, token_logits, ("temperature+min-p", "top-k", "top-p")),
}  # fmt: skip
