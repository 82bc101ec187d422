"""What the C++ compiler makes, kept for the rest of a test session: equal sources are compiled once.

Many tests run the same kernels, each with a store of its own, so that no decision of another test is found there. A
library depends on its sources and the toolchain alone; where both have been met, a test gets a copy of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from fusion.kernels.backends.cpp.toolchain import Toolchain


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
