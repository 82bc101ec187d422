"""What a compiled kernel came to: registers and spills, and which instructions its assembly and its binary hold."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.kernels import processes
from fusion.kernels.scratch import scratch_folder

_LISTING_S = 60.0  # of a processor, for a binary's resources or instructions
_MOST_LISTED = 1 << 26  # bytes of a listing: some hundred for each instruction
WHOLE = 16  # bytes: the widest load of a thread
_LOAD = re.compile(r"\bld\.global(?:\.[a-zA-Z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bfus](\d+)\b")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^\n]*?\], \[[^\]]*\], (0x[0-9a-fA-F]+|\d+)")
_BULK = re.compile(r"\bcp\.async\.bulk\.tensor")
_MULTIPLIED = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b")


@dataclass(frozen=True, slots=True)
class Instructions:
    """The instructions of a kernel for an NVIDIA GPU, counted where they stand in the text, not as often as they run.

    Attributes:
        tensor_core: products on tensor cores, in PTX.
        tensor_core_binary: likewise in the binary (HGMMA, HMMA); None where no tool lists it.
        loads: loads from global memory, by bytes of a thread; copies to shared memory among them.
        local: loads and stores of spilled registers in the binary (LDL, STL); None where no tool lists it.
    """

    tensor_core: int
    tensor_core_binary: int | None
    loads: Mapping[int, int]
    local: int | None

    @property
    def whole(self) -> float:
        """The share of the loaded bytes that come 16 at a time; 0 where nothing is loaded."""
        total = sum(size * count for size, count in self.loads.items())
        return WHOLE * self.loads.get(WHOLE, 0) / total if total else 0.0


def instructions(ptx: str, binary: bytes) -> Instructions:
    """Counts the instructions of a kernel.

    Args:
        ptx: its assembly.
        binary: what ptxas made of it.
    """
    sizes = [int(count or 1) * int(bits) // 8 for count, bits in _LOAD.findall(ptx)]
    sizes += [int(size, 0) for size in _COPY.findall(ptx)]
    sizes += [WHOLE] * len(_BULK.findall(ptx))
    listing = _listed(binary)
    return Instructions(
        tensor_core=len(_MULTIPLIED.findall(ptx)),
        tensor_core_binary=None if listing is None else len(re.findall(r"\b(?:HGMMA|HMMA|UTCHMMA)\b", listing)),
        loads={size: sizes.count(size) for size in sorted(set(sizes))},
        local=None if listing is None else len(re.findall(r"\b(?:LDL|STL)\b", listing)),
    )


def resources(asm: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Registers per thread and spills, from the binary (NVIDIA) or the assembly's notes (AMD); None where unknown."""
    if "amdgcn" in asm:
        counts = {k: int(n) for k, n in re.findall(r"\.(vgpr_count|[sv]gpr_spill_count):\s*(\d+)", asm["amdgcn"])}
        return counts.get("vgpr_count"), counts.get("vgpr_spill_count", 0) + counts.get("sgpr_spill_count", 0)
    usage = _told(_tool("cuobjdump"), ["-res-usage"], asm["cubin"]) if "cubin" in asm else None
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage or ""))
    if "REG" not in found:
        return None, None
    return int(found["REG"]), int(found.get("STACK", 0)) + int(found.get("LOCAL", 0))


def _listed(binary: bytes) -> str | None:
    """A binary's instructions as text, or None where no tool lists them."""
    return _told(_tool("nvdisasm"), ["-c"], binary)


def _told(tool: str | None, options: list[str], binary: bytes) -> str | None:
    """What a tool says of a binary; None where it is missing or hangs."""
    if tool is None:
        return None
    path = scratch_folder("triton") / f"{hashlib.sha256(binary).hexdigest()[:16]}.cubin"
    path.write_bytes(binary)
    try:
        return processes.run([[tool, *options, str(path)]], processor_s=_LISTING_S, kept=_MOST_LISTED)[0].output
    except (processes.Hung, OSError):
        return None
    finally:
        path.unlink()


@functools.cache
def _tool(name: str) -> str | None:
    """One of NVIDIA's listers of binaries, which Triton's wheel brings along."""
    from triton import backends

    bundled = Path(backends.__file__).parent / "nvidia" / "bin" / name
    return str(bundled) if bundled.is_file() else shutil.which(name)
