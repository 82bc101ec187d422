"""Launches Triton kernels: checks the inputs, allocates the outputs, and calls the compiled kernel on their stream."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusion.kernels.backends.triton import toolchain
from fusion.kernels.backends.triton.emit import emit
from fusion.kernels.backends.triton.schedule import AnySchedule, Schedule, in_phases, needs_int64, pieces, programs
from fusion.kernels.bundle import Nest
from fusion.kernels.loops import Argument, LoopNest
from fusion.patterns import symbols
from fusion.patterns.errors import BackendUnavailable, StructureMismatch
from fusion.patterns.forks import cached_property

REMEMBERED = 256  # shapes whose launch data is kept per kernel, before it starts over


@dataclass(frozen=True, slots=True)
class _Launch:
    """What a set of input shapes comes to.

    Attributes:
        sizes: values of the nest's size symbols, in order.
        outputs: shape, strides and dtype of each output.
        grid: number of programs.
        wide: whether offsets need 64 bits.
        pieces: how few long rows are cut, as `schedule.pieces` says; () where they are not.
        divisible: what a specialisation of the kernel may assume of each size: (it is 1, it is a multiple of 16, it
            needs 64 bits).
    """

    sizes: tuple[int, ...]
    outputs: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]
    grid: int
    wide: bool
    pieces: tuple[int, ...]
    divisible: tuple[tuple[bool, bool, bool], ...]


def make_cuda_launcher(
    nest: Nest, schedule: AnySchedule, *, processors: int | None = None
) -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
    """A function that runs `nest` on a GPU, or on the CPU under TRITON_INTERPRET=1.

    It is called with the input tensors in order, then the integers of the sizes whose source is "given". It returns
    the one output, or a tuple of them, and raises StructureMismatch, naming the input, for tensors whose dtype, shape,
    strides or device are not those of `nest.inputs`. It runs on the current stream of the inputs' device: as one
    launch, or, where rows are few and long, as one for each of the nests of `kernels/split_reduction.py`.

    Args:
        nest: the kernel.
        schedule: its launch data.
        processors: multiprocessors to keep busy with few rows; by default those of the inputs' device, and 1 under the
            interpreter.

    Raises:
        BackendUnavailable: Triton kernels cannot run here.
        LoweringError: the nest has no Triton form.
    """
    if reason := toolchain.available():
        raise BackendUnavailable(f"{nest.name} cannot run: {reason}")
    return _Launcher(nest, schedule, processors)


class _Launcher:
    def __init__(self, nest: Nest, schedule: AnySchedule, processors: int | None = None) -> None:
        self.nest = nest
        self.schedule = schedule
        self.processors = processors
        self.source = emit(nest, schedule)
        self.kernel = toolchain.load(self.source, nest.name)
        self.given = sum(s.source == "given" for s in nest.sizes)
        # AMD kernels are specialised on more than addresses and sizes, so Triton picks them anew for each call.
        self.direct = not toolchain.interpreted() and torch.version.hip is None
        self.constants = {wide: toolchain.block_constants(schedule, wide=wide) for wide in (False, True)}
        self.launches: dict[Any, _Launch] = {}
        self.compiled: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        count = len(self.nest.inputs)
        tensors, given = arguments[:count], arguments[count:]
        launch = self._launch(tensors, given)
        if launch.pieces:
            return self._run_phases(tensors, (*given, *launch.pieces))
        device = tensors[0].device if tensors else _current_device()
        outputs = tuple(
            torch.empty_strided(shape, strides, dtype=dtype, device=device) for shape, strides, dtype in launch.outputs
        )
        if launch.grid > 0:
            self._run(launch, (*tensors, *outputs), device)
        return outputs[0] if len(outputs) == 1 else outputs

    @cached_property
    def phases(self) -> tuple[_Launcher, ...]:
        """Launchers of the nests that take this one's place where its rows are cut."""
        assert isinstance(self.nest, LoopNest) and isinstance(self.schedule, Schedule)
        # One processor: a phase is not cut again.
        return tuple(_Launcher(nest, schedule, processors=1) for nest, schedule in in_phases(self.nest, self.schedule))

    def _run_phases(
        self, tensors: tuple[torch.Tensor, ...], given: tuple[int, ...]
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        *levels, last = self.phases
        for level in levels:
            made = level(*tensors, *given)
            tensors += made if isinstance(made, tuple) else (made,)
        return last(*tensors, *given)

    def _launch(self, tensors: tuple[Any, ...], given: tuple[Any, ...]) -> _Launch:
        """The launch data for these inputs; worked out and checked once per structure."""
        if len(tensors) != len(self.nest.inputs) or len(given) != self.given:
            raise StructureMismatch(
                f"{self.nest.name} takes {len(self.nest.inputs)} tensors and {self.given} integers, "
                f"not {len(tensors) + len(given)} arguments."
            )
        for argument, tensor in zip(self.nest.inputs, tensors, strict=True):
            if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_neg():
                raise StructureMismatch(
                    f"{self.nest.name}: {argument.name} must be a strided tensor in memory, not a "
                    f"{type(tensor).__name__} of another layout or a lazy negation.",
                    remedy="Convert it first: `.to_dense()` or `.resolve_neg()`.",
                )
        key = (tuple((t.dtype, t.shape, t.stride(), t.device) for t in tensors), given)
        launch = self.launches.get(key)
        if launch is None:
            processors = self.processors or _processors(tensors[0].device if tensors else _current_device())
            launch = prepare(self.nest, self.schedule, tensors, given, processors)
            if len(self.launches) >= REMEMBERED:
                self.launches.clear()
            self.launches[key] = launch
        return launch

    def _run(self, launch: _Launch, tensors: tuple[torch.Tensor, ...], device: torch.device) -> None:
        elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
            if self.direct:
                self._run_compiled(launch, tensors, device)
            else:
                self._run_jit(launch, tensors)

    def _run_compiled(self, launch: _Launch, tensors: tuple[torch.Tensor, ...], device: torch.device) -> None:
        """Launches what Triton compiled for an earlier call of the same specialisation, without asking it again."""
        aligned = tuple(t.data_ptr() % 16 == 0 for t in tensors)
        key = (device.index, aligned, launch.divisible, launch.wide)
        compiled = self.compiled.get(key)
        if compiled is None:
            self.compiled[key] = self._run_jit(launch, tensors)
        else:
            compiled[(launch.grid, 1, 1)](*tensors, *launch.sizes, *self.constants[launch.wide].values())

    def _run_jit(self, launch: _Launch, tensors: tuple[torch.Tensor, ...]) -> Any:
        options = self.schedule.options(self.nest, 64 if _wave64() else 32)
        return self.kernel[(launch.grid,)](*tensors, *launch.sizes, **self.constants[launch.wide], **options)


def prepare(
    nest: Nest, schedule: AnySchedule, tensors: tuple[torch.Tensor, ...], given: tuple[int, ...], processors: int
) -> _Launch:
    """Checks the inputs against `nest.inputs` and works out what a launch needs.

    Raises:
        StructureMismatch: an input differs; the message names it.
    """
    for argument, tensor in zip(nest.inputs, tensors, strict=True):
        _check_kind(nest, argument, tensor, tensors[0].device)
    values: dict[str, int] = {}
    for size in nest.sizes:
        if size.source == "given":
            values[size.symbol] = int(given[size.argument])
        else:
            tensor = tensors[size.argument]
            values[size.symbol] = (tensor.shape if size.source == "shape" else tensor.stride())[size.dim]
    for argument, tensor in zip(nest.inputs, tensors, strict=True):
        _check_layout(nest, argument, tensor, values)
    outputs = []
    for output in nest.outputs:
        shape = tuple(symbols.evaluate(d, values) for d in output.shape)
        strides = _dense(shape, output.order)
        for dim, stride in output.loose:
            strides[dim] = symbols.evaluate(stride, values)
        outputs.append((shape, tuple(strides), output.dtype))
    sizes = tuple(values[s.symbol] for s in nest.sizes)
    divisible = tuple((n == 1, n % 16 == 0, n >= 2**31) for n in sizes)
    cut = pieces(nest, schedule, values, processors)
    grid, wide = programs(nest, schedule, values), needs_int64(nest, schedule, values)
    return _Launch(sizes, tuple(outputs), grid, wide, cut, divisible)


def _current_device() -> torch.device:
    """Where a kernel without inputs writes what it makes."""
    return torch.device("cpu") if toolchain.interpreted() else torch.device("cuda", torch.cuda.current_device())


def _check_kind(nest: Nest, argument: Argument, tensor: torch.Tensor, device: torch.device) -> None:
    wanted = "cpu" if toolchain.interpreted() else "cuda"
    for what, found, expected in (
        ("dtype", tensor.dtype, argument.dtype),
        ("number of dimensions", tensor.dim(), len(argument.shape)),
        ("device type", tensor.device.type, wanted),
        ("device", tensor.device, device),
    ):
        if found != expected:
            raise StructureMismatch(f"{nest.name}: the {what} of {argument.name} is {found}, expected {expected}.")


def _check_layout(nest: Nest, argument: Argument, tensor: torch.Tensor, values: dict[str, int]) -> None:
    """Strides of dimensions of size 1, and of tensors without elements, are never used and may be anything."""
    shape = tuple(symbols.evaluate(d, values) for d in argument.shape)
    if tuple(tensor.shape) != shape:
        raise StructureMismatch(
            f"{nest.name}: the shape of {argument.name} is {tuple(tensor.shape)}, expected {shape}."
        )
    strides = tuple(symbols.evaluate(d, values) for d in argument.strides)
    same = all(n == 1 or a == b for n, a, b in zip(shape, tensor.stride(), strides, strict=True))
    if not same and tensor.numel():
        raise StructureMismatch(
            f"{nest.name}: the strides of {argument.name} are {tensor.stride()}, expected {strides}.",
            remedy="Record the layout you call with, or pass a tensor in the recorded one.",
        )


def _dense(shape: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """Strides of a tensor without gaps whose dimensions lie in `order`; as torch's, where there are no elements."""
    strides, running = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = running
        running *= max(1, shape[dim])
    return strides


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a device; the interpreter runs one program after the other."""
    return 1 if toolchain.interpreted() else torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _wave64() -> bool:
    """Whether the GPUs here run 64 threads to a wave."""
    return torch.version.hip is not None and torch.cuda.get_device_properties(0).warp_size == 64
