"""Triton as a toolchain: is it there, load an emitted kernel, compile one ahead of time for a device that is not.

Ahead-of-time compilation needs no GPU; only a launch does.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from fusion.kernels.backends.triton import binary, interpreter
from fusion.kernels.backends.triton import script as triton_script
from fusion.kernels.backends.triton.emit import emit
from fusion.kernels.backends.triton.schedule import AnySchedule, parameters, tensors
from fusion.kernels.bundle import Nest
from fusion.kernels.scratch import scratch_folder
from fusion.patterns.errors import BackendUnavailable, CompileError
from fusion.patterns.forks import cached_property

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

POINTERS = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.uint8: "*u8",
    torch.bool: "*i1",
}  # fmt: skip
ALIGNED = [["tt.divisibility", 16]]  # an address, or a size, that is a multiple of 16


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter, on the CPU; Triton reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def version() -> str:
    """The installed Triton's version, or ""."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


def available() -> str | None:
    """None where Triton kernels can run; else why they cannot, and what to do about it."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed. `pip install triton` (Linux; it comes with the CUDA and ROCm builds of torch)."
    if not interpreted() and not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA or ROCm"
        return (
            f"torch {torch.__version__}, built {built}, sees no GPU. Install a CUDA or ROCm build of torch and check "
            "the driver with `nvidia-smi` or `rocm-smi`; or set TRITON_INTERPRET=1 to run kernels slowly on the CPU."
        )
    return None


@dataclass(frozen=True)
class TritonKernel:
    """A kernel compiled ahead of time.

    Attributes:
        nest: what it computes.
        schedule: its launch data.
        target: "sm_90" or "gfx942".
        source: the emitted module.
        digest: SHA-256 over source, schedule, target and Triton's version.
        asm: the texts of each stage by name: "ttir", "ttgir", "llir", and "ptx" or "amdgcn".
        registers: per thread, or None where the tool that tells is missing.
        spills: bytes of local memory per thread (NVIDIA), or spilled registers (AMD); None where unknown.
        shared: bytes of shared memory per program.
        cubin: the binary (NVIDIA), else empty.
    """

    nest: Nest
    schedule: AnySchedule
    target: str
    source: str
    digest: str
    asm: Mapping[str, str]
    registers: int | None
    spills: int | None
    shared: int
    cubin: bytes

    @cached_property
    def instructions(self) -> binary.Instructions:
        """What its assembly and binary hold; for NVIDIA only."""
        return binary.instructions(self.asm["ptx"], self.cubin)

    def to_script(self) -> str:
        """A program that runs the kernel alone on random inputs and prints checksums; needs torch and Triton only."""
        return triton_script.standalone(self.nest, self.schedule, self.source)


def compile_ahead(
    nest: Nest, schedule: AnySchedule, target: GPUTarget | str, *, aligned: bool = True, even: bool = True
) -> TritonKernel:
    """Compiles `nest` for a device that need not be there.

    Args:
        nest: the kernel.
        schedule: its launch data.
        target: a GPUTarget, or its name: "sm_80", "sm_90", "sm_100", "gfx942".
        aligned: whether pointers, and sizes that are `even`, are multiples of 16: Triton finds it out at each launch.
        even: whether sizes are.

    Raises:
        BackendUnavailable: Triton is not installed, is interpreting, or the target's name is unknown.
        LoweringError: the nest has no Triton form.
        CompileError: Triton refused the source.
    """
    if importlib.util.find_spec("triton") is None or interpreted():
        raise BackendUnavailable(
            "Compiling needs Triton, installed and not interpreting.",
            remedy="`pip install triton`, and unset TRITON_INTERPRET.",
        )
    import triton
    from triton.compiler import ASTSource

    device = parse_target(target)
    source = emit(nest, schedule)
    names = parameters(nest)
    signature = {t.name: POINTERS[t.dtype] for t in tensors(nest)}
    signature |= {size.symbol: "i32" for size in nest.sizes}
    constants = block_constants(schedule, wide=False)
    known = len(names) if even else len(tensors(nest))
    attrs = {(i,): ALIGNED for i in range(known)} if aligned else {}
    kernel = load(source, nest.name)
    try:
        compiled = triton.compile(
            ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants, attrs),
            target=device,
            options=schedule.options(nest, device.warp_size),
        )
    except Exception as error:  # Triton raises many kinds, all of which mean the same here
        raise CompileError(
            f"Triton {triton.__version__} refused {nest.name} for {target_name(device)}: {error}",
        ) from error
    registers, spills = binary.resources(compiled.asm)
    texts = {stage: text for stage, text in compiled.asm.items() if isinstance(text, str)}
    key = "\0".join((source, repr(schedule), target_name(device), triton.__version__))
    return TritonKernel(
        nest=nest,
        schedule=schedule,
        target=target_name(device),
        source=source,
        digest=hashlib.sha256(key.encode()).hexdigest(),
        asm=texts,
        registers=registers,
        spills=spills,
        shared=int(compiled.metadata.shared),
        cubin=compiled.asm.get("cubin", b""),
    )


def block_constants(schedule: AnySchedule, *, wide: bool) -> dict[str, Any]:
    """The kernel's compile-time parameters by name."""
    import triton.language as tl

    return {**schedule.constants, "INDEX": tl.int64 if wide else tl.int32}


def parse_target(target: GPUTarget | str) -> GPUTarget:
    """The GPUTarget called "sm_90" or "gfx942".

    Raises:
        BackendUnavailable: the name is neither.
    """
    from triton.backends.compiler import GPUTarget

    if not isinstance(target, str):
        return target
    if match := re.fullmatch(r"sm_(\d+)a?", target):
        return GPUTarget("cuda", int(match[1]), 32)
    if re.fullmatch(r"gfx[0-9a-f]+", target):
        return GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32)
    raise BackendUnavailable(f"{target!r} names no GPU architecture.", remedy="Use a name like 'sm_90' or 'gfx942'.")


def target_name(target: GPUTarget) -> str:
    """What `parse_target` reads back."""
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def load(source: str, name: str) -> Any:
    """The kernel called `name` of an emitted module.

    The text goes through a file in a private folder, because Triton reads a kernel's source with `inspect`.

    Raises:
        CompileError: the text is no module.
    """
    return getattr(_module(source), name)


@functools.lru_cache(maxsize=1024)
def _module(source: str) -> ModuleType:
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = scratch_folder("triton") / f"kernel_{digest}.py"
    path.write_text(source)
    if interpreted():
        interpreter.correct()
    spec = importlib.util.spec_from_file_location(f"fusion_triton_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CompileError(f"An emitted Triton module did not load: {error!r}") from error
    return module
