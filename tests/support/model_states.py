"""Steps of state-space models, as they write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model_inputs import BATCH, HEAD, HEADS, HIDDEN, Tensor, Written, normal, tokens


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


_STEP = tokens(dt=HEADS, Bias=HEADS, A_log=HEADS)

STATES: dict[str, Written] = {
    "state-space step": Written(
        lambda dt, bias: F.softplus(dt + bias), tokens(dt=HEADS, Bias=HEADS), ("state-space step",)
    ),
    "state-space decay": Written(mamba2_decay, _STEP, ("state-space decay",)),
    "state-space decay, clamped": Written(clamped_decay, _STEP, ("state-space decay",)),
    "state-space update": Written(mamba_update, _update, ("state-space update",)),
    "state-space output": Written(mamba_output, _scan, ("state-space output",)),
}  # fmt: skip
