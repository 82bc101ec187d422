"""The kernels behind a plan can be seen: their loops, their sources, and a program that runs each alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusion
from fusion.kernels import kernel_sources, lower


class Gate(torch.nn.Module):
    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up


def test_kernels_of_a_model(tmp_path: Path) -> None:
    model = fusion.enable(Gate().eval(), {"profile": False, "enable_cache": False})
    with torch.inference_mode():
        for rows in (3, 4, 5):
            gate, up = torch.randn(rows, 32), torch.randn(rows, 32)
            model(gate, up)
    (scope,) = fusion.report(model).scopes
    assert scope.fused_calls >= 1 and scope.fallbacks == 0, "the kernel ran"
    (kernel,) = fusion.kernels_in_use(model)
    sources = kernel.sources()
    assert str(kernel) == sources["loops"] and "kernel silu_mul" in sources["loops"]
    assert "_run(" in sources["cpp"] and "@triton.jit" in sources["triton"]
    script = tmp_path / "alone.py"
    script.write_text(kernel.to_script())
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True)


def test_kernels_need_an_enabled_model() -> None:
    with pytest.raises(fusion.FusionError, match="enable"):
        fusion.kernels_in_use(Gate())


def test_sources_of_a_pattern_need_no_model() -> None:
    sources = kernel_sources(lower(fusion.create_swiglu_pattern()))
    assert set(sources) == {"loops", "cpp", "triton"}
    assert all("silu_mul" in text or "swiglu" in text.lower() for text in sources.values())
