"""Triton on GPUs as a backend."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import torch

from fusion.kernels.backend import Finding, Launcher, Schedule
from fusion.kernels.backends.triton import emit as emitter
from fusion.kernels.backends.triton import launch, script, toolchain
from fusion.kernels.backends.triton.schedule import AnySchedule, schedule_for
from fusion.kernels.bundle import Nest
from fusion.kernels.store import Store

KERNELS = "kernels on the GPU"


@dataclass(frozen=True, slots=True)
class JitKernel:
    """A kernel that Triton compiles when it is first launched, for the device and the sizes it meets.

    Attributes:
        name: its nest's name.
        nest: what it computes.
        schedule: its launch data.
        source: the text of all that may run for it.
        target: "triton".
        from_cache: False; Triton has a cache of its own.
    """

    name: str
    nest: Nest
    schedule: AnySchedule
    source: str
    target: str = "triton"
    from_cache: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 over source, schedule and Triton's version."""
        return hashlib.sha256("\0".join((self.source, repr(self.schedule), toolchain.version())).encode()).hexdigest()

    def to_script(self) -> str:
        """A program that runs the kernel alone on random inputs and prints checksums; needs torch and Triton only."""
        return script.standalone(self.nest, self.schedule, emitter.emit(self.nest, self.schedule))


class TritonBackend:
    """Hands nests to Triton."""

    name = "triton"
    targets = frozenset({"cuda"})
    dtypes = frozenset(toolchain.POINTERS)
    isolation = None

    def why_unavailable(self) -> str | None:
        """What Triton lacks here, or None."""
        return toolchain.available()

    def identity(self) -> str:
        """The GPU and Triton's version."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
        return f"{device}, Triton {toolchain.version()}"

    def schedules(self, nest: Nest) -> tuple[Schedule, ...]:
        """The one by rule."""
        return (schedule_for(nest),)

    def emit(self, nest: Nest, schedule: Schedule) -> str:
        """A module for the kernel, and those that take its place where its rows are cut."""
        return emitter.emit_all(nest, cast(AnySchedule, schedule))

    def is_new(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> bool:
        """Never: Triton compiles at the first launch, which needs the tensors' sizes and alignment."""
        return False

    def prepare(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> None:
        """Nothing can be done before the first launch."""

    def compile(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> list[JitKernel]:
        """Kernels as text: Triton compiles them at their first launch."""
        return [JitKernel(n.name, n, cast(AnySchedule, schedule), self.emit(n, schedule)) for n, schedule in jobs]

    def launch(self, kernel: JitKernel, extension: ModuleType | None) -> Launcher:
        """A launcher that calls what Triton compiled."""
        return launch.make_cuda_launcher(kernel.nest, kernel.schedule)

    def synchronize(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize()

    def doctor(self) -> tuple[Finding, ...]:
        """Triton's version, and whether its kernels can run."""
        version = toolchain.version()
        advice = "" if version else "pip install triton (Linux), for GPUs."
        reason = toolchain.available()
        return (
            Finding("triton", "works" if version else "missing", version, advice),
            Finding(KERNELS, "missing" if reason else "works", reason or "Triton runs here", kernels=True),
        )
