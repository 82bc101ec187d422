"""A module called at many sizes, and what is counted on the way."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

import fusion

SHAPES = [(2, 7), (3, 11)]
PAIRS = [pair for pair in itertools.product(range(2, 6), range(5, 30, 4)) if pair not in SHAPES]
WIDTH = 16


def batch(rows: int, length: int) -> torch.Tensor:
    """Numbers [rows, length, WIDTH]."""
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(rows * 100 + length))


def counts(model: torch.nn.Module) -> tuple[int, int]:
    """Kernels asked for and recordings made so far."""
    report = fusion.report(model)
    return report.totals.cache_hits + report.totals.cache_misses, sum(s.recordings for s in report.scopes)


def many(
    module: torch.nn.Module, tmp_path: object, again: Callable[[], torch.nn.Module] | None = None
) -> tuple[tuple[int, int], tuple[int, int], torch.nn.Module]:
    """The counts after two shapes and after all others, every result compared with eager's; the fused module."""
    eager = module.eval()
    fused = fusion.enable((again or type(module))().eval(), {"profile": False, "cache_dir": str(tmp_path)})
    fused.load_state_dict(eager.state_dict())
    for shape in [s for s in SHAPES for _ in range(4)]:
        agree(fused, eager, batch(*shape))
    before = counts(fused)
    for shape in [s for s in PAIRS for _ in range(2)]:
        agree(fused, eager, batch(*shape))
    return before, counts(fused), fused


def agree(fused: torch.nn.Module, eager: torch.nn.Module, x: torch.Tensor) -> None:
    """Fused and eager give the same, but for the rounding of float32."""
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), eager(x), rtol=1e-5, atol=1e-5)
