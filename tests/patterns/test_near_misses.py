"""What looks like a named pattern and is not: another wiring, constant, dimension, order or role."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import trace

from fusion.patterns import match

X, Y, Z = (torch.randn(2, 6, 16) for _ in range(3))
SQUARE = torch.randn(2, 6, 6)
W, B = torch.randn(16), torch.randn(16)
SCORES, MASK = torch.randn(2, 4, 6, 6), torch.randn(2, 1, 6, 6)
KEEP = MASK > 0
Q, COS, SIN = torch.randn(2, 4, 6, 16), torch.randn(2, 1, 6, 16), torch.randn(2, 1, 6, 16)
POSITIONS, FREQUENCIES = torch.randn(2, 6, 1), torch.randn(8)
LOGITS, KTH = torch.randn(5, 97), torch.randn(5, 1)
DT, HEADS, A = torch.randn(5, 3), torch.randn(3), torch.randn(3)
STATE, STEP, RATE, IN = torch.randn(2, 6, 4), torch.randn(2, 6, 1), torch.randn(6, 4), torch.randn(2, 1, 4)
PLACES = torch.arange(6)

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


def variance(x: torch.Tensor) -> torch.Tensor:
    return centred(x).square().mean(-1, keepdim=True)


def norm(x: torch.Tensor, y: torch.Tensor, v: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (x - y) * torch.rsqrt(v + 1e-5) * w + b


def pairs(x: torch.Tensor, signs: tuple[int, int] = (-1, 1), order: tuple[int, int] = (1, 0)) -> torch.Tensor:
    parts = [x[..., start::2] for start in order]
    parts = [part.neg() if sign < 0 else part for sign, part in zip(signs, parts, strict=True)]
    return torch.stack(parts, -1).flatten(-2)


def rotated(turn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, c, s: x * c + turn(x) * s


def causal(keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def fn(scores: torch.Tensor) -> torch.Tensor:
        place = torch.arange(scores.shape[-1])
        return F.softmax(scores.masked_fill(~keep(place[:, None], place[None]), float("-inf")), -1)

    return fn


def update(decay: Callable[..., Any], term: Callable[..., Any]) -> Callable[..., Any]:
    return lambda h, dt, a, b, x: h * decay(dt, a) + term(dt, b, x)


def likely(x: torch.Tensor) -> torch.Tensor:
    return F.softmax(x, -1)


NEAR_MISSES: dict[str, Case] = {
    "LayerNorm, another mean": (lambda x, y, w, b: norm(x, y.mean(-1, keepdim=True), variance(x), w, b), (X, Y, W, B)),
    "LayerNorm, another variance": (
        lambda x, y, w, b: norm(x, x.mean(-1, keepdim=True), variance(y), w, b), (X, Y, W, B)
    ),
    "LayerNorm, not centred": (lambda x, w, b: x * torch.rsqrt(variance(x) + 1e-5) * w + b, (X, W, B)),
    "LayerNorm, sum of squares": (
        lambda x, w, b: norm(x, x.mean(-1, keepdim=True), centred(x).square().sum(-1, keepdim=True), w, b), (X, W, B)
    ),
    "LayerNorm, variance of a sample": (
        lambda x, w, b: norm(x, x.mean(-1, keepdim=True), x.var(-1, keepdim=True), w, b), (X, W, B)
    ),
    "LayerNorm, bias before the weight": (
        lambda x, w, b: (centred(x) * torch.rsqrt(variance(x) + 1e-5) + b) * w, (X, W, B)
    ),
    "LayerNorm over the tokens": (lambda x: F.layer_norm(x.transpose(1, 2), (6,)).transpose(1, 2) * 2.0, (X,)),
    "LayerNorm over two dimensions": (lambda x: F.layer_norm(x, (6, 16)), (X,)),
    "LayerNorm, mean along another dimension": (
        lambda x: (x - x.mean(1, keepdim=True)) * torch.rsqrt(variance(x) + 1e-5), (X,)
    ),
    "LayerNorm without eps": (lambda x, w, b: centred(x) * torch.rsqrt(variance(x)) * w + b, (X, W, B)),
    "Add+LayerNorm of a difference": (lambda x, r, w, b: F.layer_norm(r - x, (16,), w, b), (X, Y, W, B)),
    "Add+LayerNorm, the sum twice": (lambda x, w, b: F.layer_norm(x + x, (16,), w, b), (X, W, B)),
    "Add+LayerNorm, added after": (lambda x, r, w, b: F.layer_norm(x, (16,), w, b) + r, (X, Y, W, B)),
    "Add+LayerNorm that hands on its mean": (
        lambda x, r: (F.layer_norm(s := x + r, (16,)), s.mean(-1, keepdim=True)), (X, Y)
    ),
    "RMSNorm+Add, norm of the sum too, weights shared out of place": (
        lambda x, r, w: F.rms_norm(r + F.rms_norm(x, (16,), w), (16,), w),
        (X, Y, W),
    ),
    "RMSNorm+Add, subtracted": (lambda x, r, w: r - F.rms_norm(x, (16,), w), (X, Y, W)),
    "RMSNorm+Add of one value": (lambda x, w: x + F.rms_norm(x, (16,), w), (X, W)),
    "gated norm, gate not activated": (lambda x, z, w: F.rms_norm(x * z, (16,), w), (X, Y, W)),
    "gated norm, gate normed too": (lambda x, z, w: F.rms_norm(F.silu(z) * x, (16,), w) * F.silu(z), (X, Y, W)),
    "ReGLU of the product": (lambda g, u: F.relu(g * u), (X, Y)),
    "ReGLU, both activated": (lambda g, u: F.relu(g) * F.relu(u), (X, Y)),
    "ReGLU of one value": (lambda x: F.relu(x) * x, (X,)),
    "bias of every element": (lambda x, b: F.gelu(x + b), (X, Y)),
    "bias per row": (lambda x, b: F.gelu(x + b), (X, Y[..., :1])),
    "bias multiplied": (lambda x, b: F.gelu(x * b), (X, B)),
    "bias after the activation": (lambda x, b: F.gelu(x) + b, (X, B)),
    "bias subtracted": (lambda x, b: F.silu(x - b), (X, B)),
    "bias+tanh": (lambda x, b: torch.tanh(x + b), (X, B)),
    "gelu written out, another constant": (
        lambda x, b: 0.5 * (y := x + b) * (1 + torch.tanh(0.9 * (y + 0.044715 * y**3))), (X, B)
    ),
    "gelu written out, a square for a cube": (
        lambda x, b: 0.5 * (y := x + b) * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**2))), (X, B)
    ),
    "gelu written out, not halved": (lambda x, b: (y := x + b) * (1 + torch.erf(y / math.sqrt(2))), (X, B)),
    "gelu written out, erf unscaled": (lambda x, b: 0.5 * (y := x + b) * (1 + torch.erf(y)), (X, B)),
    "interleaved RoPE, sign on the other half": (rotated(lambda x: pairs(x, (1, -1))), (Q, COS, SIN)),
    "interleaved RoPE, no sign": (rotated(lambda x: pairs(x, (1, 1))), (Q, COS, SIN)),
    "interleaved RoPE, pairs not swapped": (rotated(lambda x: pairs(x, order=(0, 1))), (Q, COS, SIN)),
    "interleaved RoPE, every fourth": (
        rotated(lambda x: torch.stack((-x[..., 1::4], x[..., ::4]), -1).flatten(-2).repeat(1, 1, 1, 2)), (Q, COS, SIN)
    ),
    "interleaved RoPE, stacked in halves": (
        rotated(lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -2).flatten(-2)), (Q, COS, SIN)
    ),
    "interleaved RoPE, one angle": (lambda x, c: x * c + pairs(x) * c, (Q, COS)),
    "interleaved RoPE of two values": (lambda x, y, c, s: x * c + pairs(y) * s, (Q, Q + 1, COS, SIN)),
    "half-split pairs, interleaved sign": (
        rotated(lambda x: torch.cat((-x[..., 1::2], x[..., ::2]), -1)), (Q, COS, SIN)
    ),
    "partial RoPE, the kept part first": (
        lambda x, c, s: torch.cat((x[..., 8:], x[..., :8] * c + torch.cat((-x[..., 4:8], x[..., :4]), -1) * s), -1),
        (Q, COS[..., :8], SIN[..., :8]),
    ),
    "half-by-half RoPE, both subtracted": (
        lambda x, c, s: torch.cat((x[..., :8] * c - x[..., 8:] * s, x[..., 8:] * c - x[..., :8] * s), -1),
        (Q, COS[..., :8], SIN[..., :8]),
    ),
    "half-by-half RoPE, angles swapped": (
        lambda x, c, s: torch.cat((x[..., :8] * c - x[..., 8:] * s, x[..., 8:] * s + x[..., :8] * c), -1),
        (Q, COS[..., :8], SIN[..., :8]),
    ),
    "soft-capping by two numbers": (lambda x: torch.tanh(x / 30.0) * 50.0, (X,)),
    "soft-capping, multiplied before": (lambda x: torch.tanh(x * 30.0) * 30.0, (X,)),
    "soft-capping by a sigmoid": (lambda x: torch.sigmoid(x / 30.0) * 30.0, (X,)),
    "soft-capping, not stretched": (lambda x: torch.tanh(x / 30.0) + 30.0, (X,)),
    "masked softmax, capped by two numbers": (
        lambda x, m: F.softmax(torch.tanh(x / 30.0) * 50.0 + m, -1), (SCORES, MASK)
    ),
    "masked softmax, multiplied mask": (lambda x, m: F.softmax(x * m, -1), (SCORES, MASK)),
    "masked softmax, masked after": (lambda x, m: F.softmax(x * 0.5, -1) + m, (SCORES, MASK)),
    "masked softmax, two scores": (lambda x, y, k: F.softmax(torch.where(k, x, y), -1), (SCORES, SCORES + 1, KEEP)),
    "causal softmax, keys transposed": (lambda x: causal(lambda q, k: k <= q)(x.transpose(2, 3)) * 2.0, (SCORES,)),
    "later keys only": (causal(lambda q, k: k >= q), (SCORES,)),
    "earlier keys only": (causal(lambda q, k: k < q), (SCORES,)),
    "the same place only": (causal(lambda q, k: k == q), (SCORES,)),
    "a triangle of another diagonal": (
        lambda x: F.softmax(x + torch.full((6, 6), float("-inf")).triu(2), -1), (SCORES,)
    ),
    "the lower triangle hidden": (lambda x: F.softmax(x + torch.full((6, 6), -1e9).tril(-1), -1), (SCORES,)),
    "residual scaling, the sum scaled": (lambda x, r: (r + x) * 0.22, (X, Y)),
    "residual scaling, both scaled": (lambda x, r: r * 0.5 + x * 0.22, (X, Y)),
    "residual scaling by a tensor": (lambda x, r, s: r + x * s, (X, Y, Z)),
    "residual scaling, subtracted": (lambda x, r: r - x * 0.22, (X, Y)),
    "residual scaling of one value": (lambda x: x + x * 0.22, (X,)),
    "rotary tables, cosine only": (lambda p, f: torch.cat((a := p * f, a), -1).cos(), (POSITIONS, FREQUENCIES)),
    "rotary tables, scaled differently": (
        lambda p, f: ((a := torch.cat((b := p * f, b), -1)).cos() * 1.2, a.sin() * 1.3), (POSITIONS, FREQUENCIES)
    ),
    "rotary tables, one half negative": (
        lambda p, f: ((a := torch.cat((b := p * f, -b), -1)).cos(), a.sin()), (POSITIONS, FREQUENCIES)
    ),
    "rotary tables of two angles": (
        lambda p, f, g: (torch.cat((a := p * f, a), -1).cos(), torch.cat((b := p * g, b), -1).sin()),
        (POSITIONS, FREQUENCIES, FREQUENCIES + 1),
    ),
    "rotary tables, positions added": (
        lambda p, f: ((a := torch.cat((b := p + f, b), -1)).cos(), a.sin()), (POSITIONS, FREQUENCIES)
    ),
    "rotary tables, cat along the positions": (
        lambda p, f: ((a := torch.cat((b := p * f, b), 1)).cos(), a.sin()), (POSITIONS, FREQUENCIES)
    ),
    "router weights, sum of others": (lambda x, y: x / y.sum(-1, keepdim=True), (X, Y)),
    "router weights, mean": (lambda x: x / x.mean(-1, keepdim=True), (X,)),
    "router weights, highest": (lambda x: x / x.amax(-1, keepdim=True), (X,)),
    "router weights over the tokens": (lambda x: x / x.sum(1, keepdim=True), (X,)),
    "router weights, sum over weights": (lambda x: x.sum(-1, keepdim=True) / x, (X,)),
    "router weights, product": (lambda x: x * x.sum(-1, keepdim=True), (X,)),
    "router scores, bias first": (lambda x, b: torch.sigmoid(x + b), (X, B)),
    "router scores, bias of every token": (lambda x, b: torch.sigmoid(x) + b, (X, Y)),
    "router scores, softmax over the tokens": (lambda x, b: F.softmax(x, 1) + b, (X, B)),
    "state-space step, bias of every element": (lambda d, b: F.softplus(d + b), (DT, DT + 1)),
    "state-space step, exponential": (lambda d, b: torch.exp(d + b), (DT, HEADS)),
    "state-space decay, bias of every element": (lambda d, b, a: torch.exp(F.softplus(d + b) * a), (DT, DT + 1, A)),
    "state-space decay, no softplus": (lambda d, b, a: torch.exp((d + b) * a), (DT, HEADS, A)),
    "state-space decay, added": (lambda d, b, a: torch.exp(F.softplus(d + b) + a), (DT, HEADS, A)),
    "state-space decay, growing": (lambda d, b, a: torch.exp(F.softplus(d + b) * a.exp()), (DT, HEADS, A)),
    "state-space decay, exp of exp": (lambda d, a: torch.exp(d * a), (DT, A)),
    "state-space update, no exponential": (
        update(lambda d, a: d * a, lambda d, b, x: d * b * x), (STATE, STEP, RATE, IN, STEP + 1)
    ),
    "state-space update, two steps": (
        lambda h, d, e, a, b, x: h * torch.exp(d * a) + e * b * x, (STATE, STEP, STEP + 2, RATE, IN, STEP + 1)
    ),
    "state-space update, subtracted": (
        lambda h, d, a, b, x: h * torch.exp(d * a) - d * b * x, (STATE, STEP, RATE, IN, STEP + 1)
    ),
    "state-space output, skip of every element": (lambda y, x, d, z: (y + x * d) * F.silu(z), (X, Y, Z, X + 1)),
    "state-space output, gated first": (lambda y, x, d, z: y * F.silu(z) + x * d, (X, Y, W, Z)),
    "state-space output, sigmoid": (lambda y, x, d, z: (y + x * d) * torch.sigmoid(z), (X, Y, W, Z)),
    "min-p, sum instead of highest": (
        lambda x: x.masked_fill((p := likely(x)) < 0.1 * p.sum(-1, keepdim=True), float("-inf")), (LOGITS,)
    ),
    "min-p, the probable ones removed": (
        lambda x: x.masked_fill((p := likely(x)) > 0.1 * p.amax(-1, keepdim=True), float("-inf")), (LOGITS,)
    ),
    "min-p, filled with 0": (
        lambda x: x.masked_fill((p := likely(x)) < 0.1 * p.amax(-1, keepdim=True), 0.0), (LOGITS,)
    ),
    "min-p of other logits": (
        lambda x, y: y.masked_fill((p := likely(x)) < 0.1 * p.amax(-1, keepdim=True), float("-inf")),
        (LOGITS, LOGITS + 1),
    ),
    "min-p, temperature after": (
        lambda x: (x / 0.7).masked_fill((p := likely(x)) < 0.1 * p.amax(-1, keepdim=True), float("-inf")), (LOGITS,)
    ),
    "top-k, the highest removed": (lambda x, k: x.masked_fill(x > k, float("-inf")), (LOGITS, KTH)),
    "top-k, filled with 0": (lambda x, k: x.masked_fill(x < k, 0.0), (LOGITS, KTH)),
    "top-k of other logits": (lambda x, y, k: y.masked_fill(x < k, float("-inf")), (LOGITS, LOGITS + 1, KTH)),
    "top-p, sum instead of a running one": (lambda x: likely(x).sum(-1, keepdim=True) <= 0.1, (LOGITS,)),
    "top-p along the sequences": (lambda x: likely(x).cumsum(0) <= 0.1, (LOGITS,)),
    "top-p of logits": (lambda x: x.cumsum(-1) <= 0.1, (LOGITS,)),
    "top-p, less of another": (lambda x, y: likely(x).cumsum(-1) - likely(y) > 0.9, (LOGITS, LOGITS + 1)),
    "top-p, equal": (lambda x: likely(x).cumsum(-1) == 0.9, (LOGITS,)),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_have_no_name(case: str) -> None:
    fn, inputs = NEAR_MISSES[case]
    assert match(trace(fn, *inputs)) is None


def test_what_follows_products_is_named_after_them() -> None:
    def gated(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        linear = torch.nn.functional.linear
        return torch.nn.functional.silu(linear(x, a)) * linear(x, b)

    weights = torch.rand(48, 32), torch.rand(48, 32)
    assert match(trace(gated, torch.rand(5, 32), *weights)) == "linear*2+SwiGLU"
    assert match(trace(lambda x, a: torch.nn.functional.linear(x, a), torch.rand(5, 32), weights[0])) is None
