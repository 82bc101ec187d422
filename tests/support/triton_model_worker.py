"""A small model whose tensors pass for a GPU's, through Triton's interpreter; prints what became of it as JSON.

A process of its own with TRITON_INTERPRET=1. Triton takes the CPU's tensors there, and the costs of the CPU are those
of a GPU: so regions are what they are on one. Times are the interpreter's, which loses to torch wherever it is timed.
"""

from __future__ import annotations

import json
from typing import Any

import interpreting
import torch
import torch.nn.functional as F

import fusion
from fusion.kernels.backend import backend_named
from fusion.partition import cost_model


class Gated(torch.nn.Module):
    """A feed-forward layer with a gate and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (torch.nn.Linear(*sizes) for sizes in ((32, 48), (32, 48), (48, 32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


@torch.inference_mode()
def outcome(profile: bool) -> dict[str, Any]:
    """The greatest error of some calls, and each region's operators with what was decided about it."""
    torch.manual_seed(0)
    model, plain = Gated().eval(), Gated().eval()
    plain.load_state_dict(model.state_dict())
    config: dict[str, Any] = {"backend": "triton", "matrix_products": "auto", "product_seconds": 0.0}
    config |= {"enable_cache": False, "profile": profile}
    fusion.enable(model, config)
    worst = 0.0
    for rows in (5, 5, 9, 9, 1, 1):
        x = torch.randn(rows, 32)
        worst = max(worst, float((model(x) - plain(x)).abs().max()))
    report = fusion.report(model)
    return {"error": worst, "regions": [[row.name, row.decision, row.code] for row in report.regions]}


def main() -> None:
    """Runs the model with and without measuring."""
    interpreting.prepare()
    triton = type(backend_named("triton"))
    triton.targets = frozenset({"cpu"})
    triton.synchronize = lambda self: None
    cost_model.DEVICES["cpu"] = cost_model.DEVICES["cuda"]
    print(json.dumps({"by rule": outcome(profile=False), "measured": outcome(profile=True)}))


if __name__ == "__main__":
    main()
