"""Folders for files that nobody needs once the process has ended."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path


def scratch_folder(purpose: str) -> Path:
    """The process's folder for `purpose`, which only its user can enter. A forked child has one of its own.

    It goes when the process that made it ends, and not when a forked child does.
    """
    return _made_by(os.getpid(), purpose)


@functools.cache
def _made_by(process: int, purpose: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"fusion-{purpose}-"))
    atexit.register(_remove, process, folder)
    return folder


def _remove(process: int, folder: Path) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
