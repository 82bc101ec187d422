"""Triton kernels with the schedule that the backend's rule gives, for tests that are not about schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusion.kernels.backends.triton import emit as emitter
from fusion.kernels.backends.triton import launch, toolchain
from fusion.kernels.backends.triton import schedule as scheduling
from fusion.kernels.backends.triton.schedule import AnySchedule, schedule_for
from fusion.kernels.bundle import Nest


def emit(nest: Nest, schedule: AnySchedule | None = None) -> str:
    """A kernel's module."""
    return emitter.emit(nest, schedule or schedule_for(nest))


def emit_all(nest: Nest) -> str:
    """A kernel's module, and those of its phases."""
    return emitter.emit_all(nest, schedule_for(nest))


def forms(nest: Nest) -> tuple[tuple[Nest, AnySchedule], ...]:
    """A kernel and its phases."""
    return scheduling.forms(nest, schedule_for(nest))


def compile_ahead(
    nest: Nest, target: str, *, schedule: AnySchedule | None = None, aligned: bool = True
) -> toolchain.TritonKernel:
    """A kernel compiled for a device that need not be there."""
    return toolchain.compile_ahead(nest, schedule or schedule_for(nest), target, aligned=aligned)


def make_cuda_launcher(
    nest: Nest, *, schedule: AnySchedule | None = None, processors: int | None = None
) -> Callable[..., Any]:
    """What runs a kernel."""
    return launch.make_cuda_launcher(nest, schedule or schedule_for(nest), processors=processors)
