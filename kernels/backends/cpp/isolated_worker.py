"""Runs kernels for the first time, in a process of its own: a program that needs the standard library only.

It reads what to run, marshalled, from its input and writes a line before each kernel, so that whoever started it knows
which one it died of. Every tensor lies between two pages that nobody may touch: first its end at the upper one, then
its start at the lower one. Inputs cannot be written to, and what an output leaves free of its pages must stay as it is.
"""

from __future__ import annotations

import ctypes
import marshal
import mmap
import sys

TYPE_CHECKING = False  # typing's own takes longer to import than all of the rest
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_NO_ACCESS, _READ = 0, 1  # PROT_NONE, PROT_READ on Linux and macOS
_CANARY = 0xA5
_SHOWN_BYTE, _WHOLE_BYTE = 0x3F, 0x01  # four of the first are 0.747 as a float; bools and integers are 1 or small


class DLTensor(ctypes.Structure):
    """DLPack's tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Guarded:
    """Memory for `size` bytes between two pages without access.

    Args:
        size: in bytes.
        at_end: whether the bytes end at the upper page; else they start at the lower one.
    """

    def __init__(self, size: int, at_end: bool) -> None:
        page = mmap.PAGESIZE
        self.size = size
        self.length = max(page, -(-size // page) * page)
        self.memory = mmap.mmap(-1, self.length + 2 * page)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + page
        self.address = self.start + self.length - size if at_end else self.start
        ctypes.memset(self.start, _CANARY, self.length)
        _protect(self.start - page, page, _NO_ACCESS)
        _protect(self.start + self.length, page, _NO_ACCESS)

    def fill(self, byte: int) -> None:
        """Fills the bytes and makes their pages read-only."""
        ctypes.memset(self.address, byte, self.size)
        _protect(self.start, self.length, _READ)

    def intact(self) -> bool:
        """Whether what the bytes leave free of their pages is as it was."""
        held = ctypes.string_at(self.start, self.length)
        offset = self.address - self.start
        around = held[:offset] + held[offset + self.size :]
        return around.count(_CANARY) == len(around)


def _protect(address: int, length: int, access: int) -> None:
    mprotect = ctypes.CDLL(None).mprotect
    mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if mprotect(address, length, access):
        raise OSError("mprotect failed")


def _numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * max(len(values), 1))(*values)


def run_case(library: ctypes.CDLL, kernel: dict[str, Any], case: dict[str, Any], at_end: bool) -> str:
    """Runs a kernel on tensors of one structure; returns what is wrong, or ""."""
    inputs: list[Guarded] = []
    described: list[DLTensor] = []
    kept = []  # what the descriptions point to
    for (code, bits), (shape, strides) in zip(kernel["inputs"], case["inputs"], strict=True):
        elements = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 0
        memory = Guarded(elements * bits // 8, at_end)
        memory.fill(_SHOWN_BYTE if code in (2, 4) else _WHOLE_BYTE)
        dims = _numbers(shape), _numbers(strides)
        kept.append(dims)
        inputs.append(memory)
        described.append(DLTensor(memory.address, 1, 0, len(shape), code, bits, 1, *dims, 0))
    told = sum(rank + strides for _, rank, strides in kernel["outputs"])  # sizes, then strides of dimensions of size 1
    sizes, shapes = _numbers([0] * kernel["sizes"]), _numbers([0] * told)
    tensors = (DLTensor * max(len(described), 1))(*described)
    if library[kernel["symbol"] + "_prepare"](tensors, _numbers(case["given"]), sizes, shapes):
        return ""  # the kernel does not take such tensors
    outputs: list[Guarded] = []
    at = 0
    for width, rank, loose in kernel["outputs"]:
        elements = 1
        for n in shapes[at : at + rank]:
            elements *= n
        outputs.append(Guarded(elements * width, at_end))
        at += rank + loose
    run = library[kernel["symbol"] + "_run"]
    pointers = [(ctypes.c_void_p * max(len(each), 1))(*(m.address for m in each)) for each in (inputs, outputs)]
    run.restype = ctypes.c_int32
    if run(*pointers, sizes):
        raise MemoryError  # which says nothing of the kernel
    return "" if all(m.intact() for m in outputs) else "it writes outside its outputs"


def main() -> None:
    """Runs every kernel on every case; a line "begin <number>" before each, "wrong <number> <why>" where it is."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer here, not a file for someone to read
    except (ImportError, OSError, ValueError):
        pass
    wanted = marshal.load(sys.stdin.buffer)
    if wanted["runtime"]:
        ctypes.CDLL(wanted["runtime"], ctypes.RTLD_GLOBAL)
    for number, kernel in wanted["kernels"]:
        print("begin", number, flush=True)
        library = ctypes.CDLL(kernel["library"])
        for case in kernel["cases"]:
            for at_end in (True, False):
                try:
                    why = run_case(library, kernel, case, at_end)
                except (OSError, MemoryError, ValueError):
                    why = ""  # there is no memory for the case, which says nothing about the kernel
                if why:
                    print("wrong", number, why, flush=True)
                    break


if __name__ == "__main__":
    main()
