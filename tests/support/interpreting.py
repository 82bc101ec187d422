"""Settings of a process that runs Triton kernels under the interpreter."""

from __future__ import annotations

import dataclasses
import warnings

import torch

from fusion.kernels.backends.triton import toolchain


def prepare() -> None:
    """Sets up this process, which has TRITON_INTERPRET=1.

    The interpreter computes for every sum and product of integers whether it overflowed, some eight operations more,
    and drops the answer unless it debugs.
    """
    if not toolchain.interpreted():
        raise SystemExit("Set TRITON_INTERPRET=1.")
    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
    warnings.simplefilter("ignore")  # NumPy's, about the infinities the cases are made of
    torch.set_num_threads(1)
