"""Folders for files that nobody needs once the process has ended."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

_folders: list[tuple[int, Path]] = []  # each with the process that made it


def scratch_folder(purpose: str) -> Path:
    """The process's folder for `purpose`, which only its user can enter. A forked child has one of its own.

    It goes when the process that made it ends, and not when a forked child does.
    """
    return _made_by(os.getpid(), purpose)


@functools.cache
def _made_by(process: int, purpose: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"fusion-{purpose}-"))
    _folders.append((process, folder))
    return folder


@atexit.register  # once and early: it runs after what other modules register, which may still make folders
def _remove() -> None:
    for process, folder in _folders:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)
