"""What models write around their matrix products: one function a pattern, and the inputs to run it on.

`written["name"]` is the function, a maker of its inputs, and the names its regions must have. Weights keep the dtype of
the model, positions are int64, and frequencies float32, as in models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

BATCH, HEADS, HEAD, HIDDEN, EXPERTS = 2, 3, 16, 32, 8
Tensor = torch.Tensor


class Written(NamedTuple):
    """A function of tensors; `inputs(dtype, length)`, by name; the names of the regions it becomes."""

    fn: Callable[..., Any]
    inputs: Callable[[torch.dtype, int], dict[str, Tensor]]
    names: tuple[str, ...]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tokens(**widths: int) -> Callable[[torch.dtype, int], dict[str, Tensor]]:
    """Inputs [batch, length, width] by name; names that start with a capital are vectors [width]."""

    def make(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
        return {
            name.lower(): normal(k, *(() if name[0].isupper() else (BATCH, length)), width, dtype=dtype)
            for k, (name, width) in enumerate(widths.items())
        }

    return make


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


def written_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def fast_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def heads(projected: Tensor) -> Tensor:
    """[batch, length, heads * size] to [batch, heads, length, size]."""
    return projected.view(*projected.shape[:2], HEADS, HEAD).transpose(1, 2)


def rotate_every_two(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def cohere_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    dtype, cos, sin = q.dtype, cos.unsqueeze(1), sin.unsqueeze(1)
    q, k = heads(q).float(), heads(k).float()
    q, k = q * cos + rotate_every_two(q) * sin, k * cos + rotate_every_two(k) * sin
    return q.to(dtype), k.to(dtype)


def gptj_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (torch.repeat_interleave(a[:, :, None, :], 2, 3) for a in (cos, sin))
    return x * cos + rotate_every_two(x) * sin


def partial_gptj_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.view(*x.shape[:2], HEADS, HEAD)
    turned, kept = x[:, :, :, : HEAD // 2], x[:, :, :, HEAD // 2 :]
    return torch.cat((gptj_rope(turned, cos, sin), kept), dim=-1).permute(0, 2, 1, 3)


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def partial_rope(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, size, cos, sin = heads(q), HEAD // 4, cos.unsqueeze(1), sin.unsqueeze(1)
    turned, kept = q[..., :size], q[..., size:]
    return torch.cat((turned * cos + rotate_half(turned) * sin, kept), dim=-1)


def half_by_half_rope(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = torch.chunk(heads(q), 2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def llama_tables(positions: Tensor, inv_freq: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    angles = (inv_freq[None, :, None].float() @ positions[:, None, :].float()).transpose(1, 2)
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * 1.2).to(x.dtype), (angles.sin() * 1.2).to(x.dtype)


def product_tables(positions: Tensor, inv_freq: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions[:, :, None].float() * inv_freq
    angles = torch.repeat_interleave(angles, 2, dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def counted_tables(inv_freq: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    positions = torch.arange(x.shape[1])
    angles = positions[:, None].float() * inv_freq[None]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


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


def mamba2_decay(dt: Tensor, bias: Tensor, a_log: Tensor) -> tuple[Tensor, Tensor]:
    step = F.softplus(dt + bias)
    return torch.exp(step * -torch.exp(a_log.float())), step


def clamped_decay(dt: Tensor, bias: Tensor, a_log: Tensor) -> tuple[Tensor, Tensor]:
    step = torch.clamp(F.softplus(dt + bias), 0.001, 0.1)
    return torch.exp(step * -torch.exp(a_log.float())), step


def mamba_update(state: Tensor, step: Tensor, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    decay = torch.exp(a[None] * step[:, :, None])
    added = step[:, :, None] * b[:, None, :].float() * x[:, :, None].float()
    return decay * state + added


def mamba_output(scan: Tensor, x: Tensor, d: Tensor, gate: Tensor) -> Tensor:
    return (scan + x * d[None, :, None]) * F.silu(gate)


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


def _heads(dtype: torch.dtype, length: int, *names: str) -> dict[str, Tensor]:
    return {n: normal(k, BATCH, length, HEADS * HEAD, dtype=dtype) for k, n in enumerate(names)}


def _angles(dtype: torch.dtype, length: int, size: int) -> dict[str, Tensor]:
    angle = normal(9, BATCH, length, size)
    return {"cos": angle.cos().to(dtype), "sin": angle.sin().to(dtype)}


def _scores(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return {"scores": normal(0, BATCH, HEADS, length, length, dtype=dtype)}


def _later(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]


def _masked(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return _scores(dtype, length) | {"mask": torch.zeros(1, 1, 1, 1, dtype=dtype).masked_fill(_later(length), -3e4)}


def _positions(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return {
        "positions": torch.arange(length).expand(BATCH, length).contiguous(),
        "inv_freq": 1e4 ** -(torch.arange(HEAD // 2) / (HEAD // 2)),
        "x": normal(0, BATCH, length, HIDDEN, dtype=dtype),
    }


def _update(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return {
        "state": normal(0, BATCH, length, HEAD),
        "step": normal(1, BATCH, length).abs(),
        "a": -normal(2, length, HEAD).exp(),
        "b": normal(3, BATCH, HEAD, dtype=dtype),
        "x": normal(4, BATCH, length, dtype=dtype),
    }


def _scan(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    made = {n: normal(k, BATCH, HIDDEN, length, dtype=dtype) for k, n in enumerate(("scan", "x", "gate"))}
    return {"scan": made["scan"], "x": made["x"], "d": normal(5, HIDDEN, dtype=dtype), "gate": made["gate"]}


def _logits(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return {"logits": normal(0, length, 97, dtype=dtype)}


_GATED = tokens(gate=HIDDEN, up=HIDDEN)
_BIASED = tokens(x=HIDDEN, Bias=HIDDEN)
_AFFINE = tokens(x=HIDDEN, Weight=HIDDEN, Bias=HIDDEN)
_ADDED = tokens(x=HIDDEN, residual=HIDDEN, Weight=HIDDEN, Bias=HIDDEN)
_CHOSEN = lambda dtype, length: {"chosen": normal(0, length, 2, dtype=dtype).sigmoid()}  # noqa: E731
_STEP = tokens(dt=HEADS, Bias=HEADS, A_log=HEADS)

WRITTEN: dict[str, Written] = {
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
    "RoPE, interleaved": Written(
        cohere_rope, lambda d, n: _heads(d, n, "q", "k") | _angles(d, n, HEAD),
        ("interleaved RoPE",),
    ),
    "RoPE, interleaved, angles of pairs": Written(
        gptj_rope, lambda d, n: {"x": normal(0, BATCH, n, HEADS, HEAD, dtype=d)} | _angles(d, n, HEAD // 2),
        ("interleaved RoPE",),
    ),
    "RoPE, interleaved and partial": Written(
        partial_gptj_rope, lambda d, n: _heads(d, n, "x") | _angles(d, n, HEAD // 4), ("interleaved RoPE",)
    ),
    "RoPE, partial": Written(partial_rope, lambda d, n: _heads(d, n, "q") | _angles(d, n, HEAD // 4), ("RoPE",)),
    "RoPE, half by half": Written(
        half_by_half_rope, lambda d, n: _heads(d, n, "q") | _angles(d, n, HEAD // 2),
        ("RoPE",),
    ),
    "rotary tables, matrix product": Written(llama_tables, _positions, ("rotary tables",)),
    "rotary tables, product": Written(product_tables, _positions, ("rotary tables",)),
    "rotary tables, counted": Written(
        counted_tables, lambda d, n: {k: v for k, v in _positions(d, n).items() if k != "positions"}, ("rotary tables",)
    ),
    "soft-capping": Written(soft_capped, _logits, ("soft-capping",)),
    "masked softmax": Written(eager_attention, _masked, ("masked softmax",)),
    "masked softmax, where": Written(
        gpt2_attention, lambda d, n: _scores(d, n) | {"keep": ~_later(n)},
        ("masked softmax",),
    ),
    "soft-capped softmax": Written(gemma_attention, _masked, ("soft-capped softmax",)),
    "causal softmax": Written(causal_attention, _scores, ("causal softmax",)),
    "causal softmax, triangle": Written(triangular_attention, _scores, ("causal softmax",)),
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
    "router weights": Written(mixtral_weights, _CHOSEN, ("router weights",)),
    "router weights, clamped": Written(ernie_weights, _CHOSEN, ("router weights",)),
    "router, softmax": Written(mixtral_router, tokens(logits=EXPERTS), ("router weights",)),
    "router, sigmoid": Written(
        deepseek_router, tokens(logits=EXPERTS, Bias=EXPERTS),
        ("router scores", "router weights"),
    ),
    "state-space step": Written(
        lambda dt, bias: F.softplus(dt + bias), tokens(dt=HEADS, Bias=HEADS), ("state-space step",)
    ),
    "state-space decay": Written(mamba2_decay, _STEP, ("state-space decay",)),
    "state-space decay, clamped": Written(clamped_decay, _STEP, ("state-space decay",)),
    "state-space update": Written(mamba_update, _update, ("state-space update",)),
    "state-space output": Written(mamba_output, _scan, ("state-space output",)),
    "sampling": Written(sampling_chain, _logits, ("temperature+min-p", "top-k", "top-p")),
}  # fmt: skip
