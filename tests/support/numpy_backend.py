"""A third backend, to show what one takes: NumPy interprets the loops, on CPUs, slowly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy
import torch
from evaluate import evaluate

from fusion.kernels.backend import Finding, Launcher, Schedule, register, unregister
from fusion.kernels.bundle import Nest
from fusion.kernels.plain_memory import in_plain_memory
from fusion.kernels.store import Store
from fusion.patterns import symbols
from fusion.patterns.errors import StructureMismatch

_DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


@dataclass(frozen=True)
class NumpyKernel:
    """A nest that is going to be interpreted, as often in a call as its schedule says."""

    name: str
    nest: Nest
    schedule: Schedule
    target: str = "numpy"
    from_cache: bool = False

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.nest}\n{self.schedule}\n{numpy.__version__}".encode()).hexdigest()

    def to_script(self) -> str:
        return f"print('''{self.nest}''')\n"


class NumpyBackend:
    """Interprets nests.

    Args:
        passes: for each schedule, how often the nest is run in a call; the last run counts.

    Attributes:
        calls: how often a kernel has been launched.
        factor: what floating results are multiplied by: 1, for results that are right.
    """

    name = "numpy"
    targets = frozenset({"cpu"})
    dtypes = frozenset(_DTYPES)
    isolation = None

    def __init__(self, passes: tuple[int, ...] = (1,)) -> None:
        self.passes = passes
        self.calls: dict[Schedule, int] = {}
        self.factor = 1.0

    def why_unavailable(self) -> str | None:
        return None

    def identity(self) -> str:
        return f"NumPy {numpy.__version__}"

    def schedules(self, nest: Nest) -> tuple[Schedule, ...]:
        return self.passes

    def emit(self, nest: Nest, schedule: Schedule) -> str:
        return f"# {schedule} passes\n{nest}"

    def is_new(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> bool:
        return False

    def prepare(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> None:
        """There is nothing to compile."""

    def compile(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> list[NumpyKernel]:
        return [NumpyKernel(nest.name, nest, schedule) for nest, schedule in jobs]

    def launch(self, kernel: NumpyKernel, extension: ModuleType | None) -> Launcher:
        count = len(kernel.nest.inputs)
        passes = kernel.schedule
        assert isinstance(passes, int)

        def run(*arguments: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
            tensors, given = arguments[:count], arguments[count:]
            sizes = _checked(kernel.nest, tensors, given)
            self.calls[passes] = self.calls.get(passes, 0) + 1
            plain = [tensor.detach() for tensor in tensors]
            for _ in range(passes):
                made = evaluate(kernel.nest, *plain, given=given)
            outputs = tuple(self._finished(k, t, kernel.nest, sizes) for k, t in enumerate(made))
            return outputs[0] if len(outputs) == 1 else outputs

        return run

    def _finished(self, k: int, made: torch.Tensor, nest: Nest, sizes: dict[str, int]) -> torch.Tensor:
        """An output with the strides that eager gives dimensions of size 1."""
        strides = list(made.stride())
        for dim, stride in nest.outputs[k].loose:
            strides[dim] = symbols.evaluate(stride, sizes)
        if self.factor != 1.0 and made.is_floating_point():
            made.mul_(self.factor)
        return made.as_strided(made.shape, strides)

    def synchronize(self) -> None:
        """The work is done when a call returns."""

    def doctor(self) -> tuple[Finding, ...]:
        return (Finding("kernels in NumPy", "works", numpy.__version__, kernels=True),)


@contextmanager
def registered(backend: NumpyBackend) -> Iterator[NumpyBackend]:
    """Makes a backend known inside the block."""
    register(backend)
    try:
        yield backend
    finally:
        unregister(backend.name)


def _checked(nest: Nest, tensors: Sequence[Any], given: Sequence[int]) -> dict[str, int]:
    """The values of a nest's sizes; StructureMismatch for tensors that it does not take."""
    wanted = sum(size.source == "given" for size in nest.sizes)
    if len(tensors) != len(nest.inputs) or len(given) != wanted:
        raise StructureMismatch(f"{nest.name} takes {len(nest.inputs)} tensors and {wanted} integers.")
    for argument, tensor in zip(nest.inputs, tensors, strict=True):
        fits = in_plain_memory(tensor) and tensor.device.type == "cpu" and tensor.dtype is argument.dtype
        if not fits or tensor.dim() != len(argument.shape):
            raise StructureMismatch(f"{nest.name}: {argument.name} is no tensor of {argument.dtype} in plain memory.")
    sizes: dict[str, int] = {}
    for size in nest.sizes:
        if size.source == "given":
            sizes[size.symbol] = given[size.argument]
        else:
            tensor = tensors[size.argument]
            sizes[size.symbol] = (tensor.shape if size.source == "shape" else tensor.stride())[size.dim]
    for argument, tensor in zip(nest.inputs, tensors, strict=True):
        shape = [symbols.evaluate(d, sizes) for d in argument.shape]
        strides = [symbols.evaluate(d, sizes) for d in argument.strides]
        same = all(n == 1 or a == b for n, a, b in zip(shape, tensor.stride(), strides, strict=True))
        if list(tensor.shape) != shape or not (same or tensor.numel() == 0):
            raise StructureMismatch(f"{nest.name}: {argument.name} is {tuple(tensor.shape)}, {tensor.stride()}.")
    return sizes
