"""From a compiled C++ kernel to a function of tensors: through C where it can be, through ctypes where not."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import torch

from fusion.kernels.backend import Launcher
from fusion.kernels.backends.cpp.compile import CompiledKernel, run_ctypes
from fusion.kernels.loops import Argument
from fusion.kernels.plain_memory import DLPACK_TYPES, in_plain_memory
from fusion.patterns import symbols
from fusion.patterns.errors import StructureMismatch


def make_cpp_launcher(kernel: CompiledKernel, extension: ModuleType | None) -> Launcher:
    """A function that runs `kernel`, as `Backend.launch` describes it.

    Args:
        kernel: a compiled C++ kernel.
        extension: the C extension of `fusion.runtime.native`, or None.
    """
    slow = CtypesLauncher(kernel)
    if extension is None:
        return slow
    library = ctypes.CDLL(kernel.library)  # never unloaded, so the addresses stay good
    prepare, run = (
        ctypes.cast(library[f"{kernel.symbol}_{part}"], ctypes.c_void_p).value for part in ("prepare", "run")
    )
    outputs = tuple((*DLPACK_TYPES[o.dtype], o.order, tuple(dim for dim, _ in o.loose)) for o in kernel.nest.outputs)
    launcher: Launcher = extension.Launcher(
        prepare, run, len(kernel.nest.inputs), slow.given, len(kernel.nest.sizes), outputs, slow
    )
    return launcher


class CtypesLauncher:
    """`make_cpp_launcher` without the C extension, which also calls it to say what is wrong with a call.

    Args:
        kernel: a kernel with target "cpp".
    """

    def __init__(self, kernel: CompiledKernel) -> None:
        self.kernel = kernel
        self.given = max((s.argument + 1 for s in kernel.nest.sizes if s.source == "given"), default=0)

    def __call__(self, *arguments: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        inputs = self.kernel.nest.inputs
        if len(arguments) != len(inputs) + self.given:
            raise StructureMismatch(
                f"The kernel {self.kernel.name} takes {len(inputs)} tensors and {self.given} integers, not "
                f"{len(arguments)} arguments.",
                remedy="Pass one tensor for each of its inputs, in order, then its sizes.",
            )
        tensors, given = arguments[: len(inputs)], arguments[len(inputs) :]
        for argument, tensor in zip(inputs, tensors, strict=True):
            if not in_plain_memory(tensor):
                raise _unreadable(self.kernel.name, argument, tensor)
        outputs = run_ctypes(self.kernel, tensors, given)
        return outputs[0] if len(outputs) == 1 else outputs


def _unreadable(kernel: str, argument: Argument, tensor: Any) -> StructureMismatch:
    shape, strides = (", ".join(map(symbols.render, dims)) for dims in (argument.shape, argument.strides))
    kind = type(tensor).__name__
    if isinstance(tensor, torch.Tensor):
        kind += f" of layout {tensor.layout} on {tensor.device}"
    return StructureMismatch(
        f"The input {argument.name} of the kernel {kernel} must be a plain {argument.dtype} tensor on cpu of shape "
        f"[{shape}] and strides [{strides}]; found a {kind} that is no tensor in plain memory.",
        remedy="Pass a dense tensor of this structure: no subclass, no lazy negation or conjugation, no freed storage.",
    )
