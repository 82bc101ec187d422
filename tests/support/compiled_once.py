"""What the C++ compiler makes, kept for the rest of a test session: equal sources are compiled once.

Many tests run the same kernels, each with a store of its own, so that no decision of another test is found there. A
library depends on its sources and the toolchain alone; where both have been met, a test gets a copy of it.

Tests that ask what plans do, not how kernels are compiled, have kernels without optimisation, in a third of the time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from fusion.kernels.backends.cpp.toolchain import Toolchain

_plainly: list[bool] = []  # not empty where kernels are not optimised


@contextmanager
def without_optimisation() -> Iterator[None]:
    """Inside, kernels are compiled with -O0; what all kernels share is not."""
    _plainly.append(True)
    try:
        yield
    finally:
        _plainly.pop()


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Inside, a `Toolchain` copies what `folder` has instead of calling its compiler; processes may share the folder.

    Args:
        folder: where libraries are kept; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compiled = Toolchain._compile

    def from_folder(
        toolchain: Toolchain, sources: tuple[str, ...], scratch: Path, path: Path, objects: Sequence[Path], shared: str
    ) -> None:
        if _plainly and not shared:
            flags = tuple("-O0" if flag == "-O3" else flag for flag in toolchain.flags)
            toolchain = replace(toolchain, flags=flags)
        parts = (toolchain.identity, *sources, shared, *(hashlib.sha256(o.read_bytes()).hexdigest() for o in objects))
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        made = [path, *([path.with_suffix(".o")] if shared else [])]
        kept = [folder / f"{key}{file.suffix}" for file in made]
        if all(file.exists() for file in kept):
            for file, copy in zip(kept, made, strict=True):
                shutil.copy(file, copy)
            return
        compiled(toolchain, sources, scratch, path, objects, shared)
        for file, copy in zip(made, kept, strict=True):
            handle, new = tempfile.mkstemp(dir=folder)
            os.close(handle)
            shutil.copy(file, new)
            os.replace(new, copy)  # at once, for the other workers

    with patch.object(Toolchain, "_compile", from_folder):
        yield
