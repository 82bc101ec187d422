"""Matrix products that are known already: a call that is checked computes each large one once.

A recorded call is made several times: under the recorder, without it, by the plan without kernels, and once more for
the proof of each kernel. Large products take nearly all of that time. torch makes the same result of the same operands
each time, so one that it has made stands for those that follow. What is compared stays compared: a call that is wired
otherwise has other operands, and its product is computed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .graph import SubGraph
from .leaves import Ref
from .ops.products import FLOATS

LINEAR = "aten.linear.default"
_LEAST_WORK = 1 << 25  # multiplications of a product that takes longer than to look it up
_active = threading.local()


class KnownProducts:
    """The products of one call. Their results take no more memory than the weights they were made with."""

    def __init__(self) -> None:
        self._known: dict[Any, Tensor] = {}  # results, of which nobody has this copy
        self._weights: dict[Any, float] = {}  # by weight, the shortest time of a product with it
        self._held: list[Tensor] = []  # weights, so that their memory stays theirs
        self._room = 0

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`torch.nn.functional.linear`; of operands it was called with before, a copy of that result."""
        with torch._C.DisableTorchFunction():
            key = _key(x, weight, bias)
            known = self._known.get(key) if key is not None else None
            if known is not None:
                return known.clone()
        start = time.perf_counter()
        result = torch._C._nn.linear(x, weight, bias)
        seconds = time.perf_counter() - start
        if key is not None:
            with torch._C.DisableTorchFunction():
                self._keep(key, weight, result, seconds)
        return result

    def seconds(self, weight: Tensor) -> float:
        """How long a product with a weight takes torch; 0 where that is not known."""
        return self._weights.get(_place(weight), 0.0)

    def _keep(self, key: Any, weight: Tensor, result: Tensor, seconds: float) -> None:
        place = _place(weight)
        if place not in self._weights:
            self._held.append(weight)
            self._room += weight.nbytes
        self._weights[place] = min(seconds, self._weights.get(place, seconds))
        if result.is_contiguous() and result.nbytes <= self._room:
            self._room -= result.nbytes
            self._known[key] = result.clone()


def active() -> KnownProducts | None:
    """The products of the call that this thread checks."""
    return getattr(_active, "products", None)


@contextmanager
def remembered() -> Iterator[KnownProducts]:
    """Inside, large products of this thread are computed once, where they are asked for here."""
    outer = active()
    _active.products = KnownProducts()
    try:
        yield _active.products
    finally:
        _active.products = outer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, of which the result may be known."""
    products = active()
    return torch._C._nn.linear(x, weight, bias) if products is None else products.linear(x, weight, bias)


def call(function: Any, args: Any, kwargs: Any) -> Any:
    """An operator's result, which is known where the operator is a linear one that was called before."""
    if function is torch.ops.aten.linear.default and active() is not None:
        return linear(*args, **kwargs)
    return function(*args, **kwargs)


def seconds_of(graph: SubGraph, tensors: Mapping[str, Tensor]) -> float:
    """How long the products of a graph take torch, as far as that is known.

    Args:
        graph: any graph.
        tensors: its inputs.
    """
    products = active()
    if products is None:
        return 0.0
    weights = [node.args[1] for node in graph.nodes if node.op == LINEAR]
    names = [weight.name for weight in weights if isinstance(weight, Ref) and weight.name in tensors]
    return sum(products.seconds(tensors[name]) for name in names)


def _key(x: Tensor, weight: Tensor, bias: Tensor | None) -> Any | None:
    """What tells products apart; None for those that are not remembered: small ones, and of special tensors."""
    operands = [x, weight, *([] if bias is None else [bias])]
    if any(type(t) not in (Tensor, torch.nn.Parameter) or not _is_plain(t) for t in operands):
        return None
    if x.numel() * (weight.shape[0] if weight.dim() == 2 else 1) < _LEAST_WORK:
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in operands):
        return None
    weights = tuple((_place(t), None if t.is_inference() else t._version, _checksum(t)) for t in operands[1:])
    return (x.dtype, x.shape, x.stride(), _digest(x), weights)


def _is_plain(tensor: Tensor) -> bool:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.dtype not in FLOATS:
        return False
    return not (tensor.is_neg() or tensor.is_conj())


def _place(tensor: Tensor) -> Any:
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _checksum(tensor: Tensor) -> int:
    """The sum of a weight's bits: tells, at the speed of memory, of most writes that its version does not count."""
    return int(_bits(tensor).sum(dtype=torch.int64))


def _digest(tensor: Tensor) -> bytes:
    copy = tensor.detach().clone()  # memory that NumPy has seen cannot be let go of early
    return hashlib.blake2b(_bits(copy).numpy().data, digest_size=16).digest()


def _bits(tensor: Tensor) -> Tensor:
    """Whole numbers of the same bytes, as large as they go."""
    flat = tensor.detach().contiguous().reshape(-1)
    wide = 8 // flat.element_size()
    return flat.view(torch.int64) if flat.numel() % wide == 0 and not flat.data_ptr() % 8 else flat.view(torch.uint8)
