"""Corrections of Triton's interpreter, where it computes otherwise than every GPU."""

from __future__ import annotations

import functools
from typing import Any

import torch


@functools.cache
def correct() -> None:
    """Makes it round to bfloat16, where it cuts off, and multiply bfloat16, whose bits it takes for integers."""
    from triton.runtime import interpreter

    _round(interpreter)
    _multiply(interpreter)


def _round(interpreter: Any) -> None:
    import triton.language as tl

    original = getattr(interpreter, "_convert_float", None)
    if original is None:
        return

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            rounded = torch.from_numpy(data.copy()).to(torch.bfloat16)
            return rounded.view(torch.int16).numpy().view("uint16")
        if source == tl.bfloat16 and target == tl.float32:
            return _widened_bits(data)
        return original(data, source, target, rounding)

    interpreter._convert_float = convert


def _multiply(interpreter: Any) -> None:
    import triton.language as tl

    builder = interpreter.InterpreterBuilder
    original = builder.create_dot

    def wide(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle(_widened_bits(operand.data).view("float32"), tl.float32)

    def dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        return original(self, wide(left), wide(right), *others)

    builder.create_dot = dot


def _widened_bits(data: Any) -> Any:
    """Numbers in bfloat16, by their bits, as the bits of the same in float32."""
    return (data.view("uint16").astype("uint32") << 16).reshape(data.shape)
