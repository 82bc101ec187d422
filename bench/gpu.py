"""Decode, prefill, kernels and products on CUDA; says why and measures nothing where there is none."""

from __future__ import annotations

from dataclasses import replace

import torch

from fusion.kernels.backends.triton import toolchain as triton_toolchain

from . import decode, gpu_products, kernels, prefill
from .options import Options
from .rows import Row


def run(options: Options) -> list[Row]:
    """The rows of the four, or none without CUDA."""
    reason = why_not()
    if reason:
        print(f"Nothing was measured on a GPU: {reason}")
        return []
    here = replace(options, device="cuda")
    return [row for module in (kernels, gpu_products, decode, prefill) for row in module.run(here)]


def why_not() -> str | None:
    """Why nothing can be measured on a GPU here, or None."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return "torch finds no CUDA device." if built else "this torch is built for the CPU only; install one for CUDA."
    return triton_toolchain.available()
