"""Whether a shared library is one that can be loaded, and holds what it should."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from pathlib import Path

# A 64-bit little-endian ELF header: its first six bytes; offset, size and number of its section headers.
_HEADER = struct.Struct("<6s34xQ10xHH2x")
_MAGIC = b"\x7fELF\2\1"


def why_unusable(path: Path, symbols: Iterable[str]) -> str:
    """Loads a library, and says what is wrong with it; "" for nothing.

    Args:
        path: of the library.
        symbols: names that it must hold.
    """
    if not is_whole(path):
        return "it is cut off"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    missing = [symbol for symbol in symbols if not hasattr(library, symbol)]
    return f"it lacks {missing[0]}" if missing else ""


def is_whole(path: Path) -> bool:
    """Whether an ELF file reaches up to the end of its last table: one that was cut off kills whoever loads it.

    Files of other systems count as whole.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER.size)
        size = path.stat().st_size
    if len(head) < _HEADER.size:
        return False
    magic, table, length, count = _HEADER.unpack(head)
    return bool(magic != _MAGIC or table + length * count <= size)
