"""From a compiled kernel to a function of tensors."""

from __future__ import annotations

from fusion.kernels.backend import Artifact, Launcher, backend_named

from .native import load_native


def make_launcher(kernel: Artifact) -> Launcher:
    """A function that runs `kernel`.

    It is called with the input tensors in order, then the integers of the sizes whose source is "given", and returns
    the one output, or a tuple of them. It raises StructureMismatch, naming the input, for tensors whose dtype, device,
    shape or strides are not those of the kernel's inputs.

    Args:
        kernel: what a backend compiled.

    Raises:
        BackendUnavailable, LoweringError: the backend cannot run the kernel here.
    """
    return backend_named(kernel.target).launch(kernel, load_native())
