"""Tensors whose elements C code may read where they lie, and DLPack's names for what the elements are."""

from __future__ import annotations

from typing import Any

import torch

TENSOR_TYPES: tuple[type, ...] = (torch.Tensor, torch.nn.Parameter)  # exact types; nn.Buffer makes plain tensors

# DLPack type codes and bits.
DLPACK_TYPES: dict[torch.dtype, tuple[int, int]] = {
    torch.int8: (0, 8), torch.int16: (0, 16), torch.int32: (0, 32), torch.int64: (0, 64), torch.uint8: (1, 8),
    torch.uint16: (1, 16), torch.uint32: (1, 32), torch.uint64: (1, 64), torch.float16: (2, 16),
    torch.float32: (2, 32), torch.float64: (2, 64), torch.bfloat16: (4, 16), torch.complex64: (5, 64),
    torch.complex128: (5, 128), torch.bool: (6, 8),
}  # fmt: skip


def in_plain_memory(tensor: Any) -> bool:
    """Whether C code may read a tensor's elements where they lie: no subclass or wrapper, no layout, no lazy bits."""
    if type(tensor) not in TENSOR_TYPES or tensor.is_nested:
        return False
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor.is_neg() or tensor.is_conj():
        return False
    return bool(tensor.device.type != "meta" and (tensor.data_ptr() != 0 or tensor.numel() == 0))
