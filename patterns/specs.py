"""What is known of a tensor before it exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import symbols
from .leaves import torch_constant
from .symbols import Dim


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor before it exists.

    Attributes:
        dtype: element type.
        shape: one Dim per dimension.
        strides: in elements, one Dim per dimension.
        device: device type, "cpu" or "cuda".
    """

    dtype: torch.dtype
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    device: str = "cpu"

    @staticmethod
    def contiguous(dtype: torch.dtype, shape: tuple[Dim, ...], device: str = "cpu") -> TensorSpec:
        """The spec of a row-major tensor."""
        return TensorSpec(dtype, shape, contiguous_strides(shape), device)

    @property
    def is_contiguous(self) -> bool:
        """Whether the strides are provably row-major; dimensions of size 1 do not count."""
        expected = contiguous_strides(self.shape)
        return all(
            symbols.same(have, want) or (isinstance(size, int) and size == 1)
            for have, want, size in zip(self.strides, expected, self.shape, strict=True)
        )

    def text(self) -> str:
        """`bfloat16[s0, 64]`, for people."""
        dims = ", ".join(symbols.render(d) for d in self.shape)
        return f"{str(self.dtype).removeprefix('torch.')}[{dims}]"


def contiguous_strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Row-major strides, in elements."""
    strides: list[Dim] = []
    running: Dim = 1
    for size in reversed(shape):
        strides.append(running)
        running = symbols.as_dim(running * size)
    return tuple(reversed(strides))


def encode_spec(spec: TensorSpec) -> dict[str, Any]:
    """A TensorSpec as JSON-able data."""
    return {
        "dtype": str(spec.dtype),
        "shape": [symbols.render(d) for d in spec.shape],
        "strides": [symbols.render(d) for d in spec.strides],
        "device": spec.device,
    }


def decode_spec(data: Mapping[str, Any]) -> TensorSpec:
    """Reads what `encode_spec` wrote."""
    return TensorSpec(
        torch_constant(data["dtype"]),
        tuple(symbols.parse(d) for d in data["shape"]),
        tuple(symbols.parse(d) for d in data["strides"]),
        data["device"],
    )
