"""Rotary position embeddings and their tables, as models write them. Positions are int64, frequencies float32."""

from __future__ import annotations

import torch
from model_inputs import BATCH, HEAD, HEADS, HIDDEN, Tensor, Written, normal


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


def _heads(dtype: torch.dtype, length: int, *names: str) -> dict[str, Tensor]:
    return {n: normal(k, BATCH, length, HEADS * HEAD, dtype=dtype) for k, n in enumerate(names)}


def _angles(dtype: torch.dtype, length: int, size: int) -> dict[str, Tensor]:
    angle = normal(9, BATCH, length, size)
    return {"cos": angle.cos().to(dtype), "sin": angle.sin().to(dtype)}


def _positions(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    return {
        "positions": torch.arange(length).expand(BATCH, length).contiguous(),
        "inv_freq": 1e4 ** -(torch.arange(HEAD // 2) / (HEAD // 2)),
        "x": normal(0, BATCH, length, HIDDEN, dtype=dtype),
    }


ROTARY: dict[str, Written] = {
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
}  # fmt: skip
