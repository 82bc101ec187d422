"""Tensors that recordings do not cover, and the modules that hold such weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fusion.capture.mutation import has_memory

TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def unsupported(tensor: torch.Tensor) -> str | None:
    """What about a tensor the recorder does not cover, in words, or None."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor of a functorch transformation"
    if type(tensor) not in TENSOR_TYPES:
        return f"a tensor subclass {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return f"a tensor of layout {tensor.layout} that is not plain strided"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"a tensor on {tensor.device}"
    if tensor.is_nested:
        return "a nested tensor"
    if not has_memory(tensor):
        return "a tensor inside a torch.func transform"
    return None


def holders(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules at and below `module`, by path, that hold weights which only their own library computes with."""
    for path, child in module.named_modules():
        held = (*child._parameters.values(), *child._buffers.values())
        if any(tensor is not None and unsupported(tensor) for tensor in held):
            yield path, child
