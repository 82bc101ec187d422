"""What the C++ compiler makes, kept for the rest of a test session: equal sources are compiled once.

Many tests run the same kernels, each with a store of its own, so that no decision of another test is found there. A
library depends on its sources and the toolchain alone; where both have been met, a test gets a copy of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
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

    def from_folder(toolchain: Toolchain, sources: tuple[str, ...], scratch: Path, path: Path) -> None:
        key = hashlib.sha256("\0".join((toolchain.identity, *sources)).encode()).hexdigest()
        kept = folder / f"{key}.so"
        if kept.exists():
            shutil.copy(kept, path)
            return
        compiled(toolchain, sources, scratch, path)
        handle, new = tempfile.mkstemp(dir=folder)
        os.close(handle)
        shutil.copy(path, new)
        os.replace(new, kept)  # at once, for the other workers

    with patch.object(Toolchain, "_compile", from_folder):
        yield
