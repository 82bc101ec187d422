"""Scratch folders and the processes that made them."""

import subprocess
import sys
from pathlib import Path

import pytest

from fusion.kernels.scratch import scratch_folder

FORKS = """
import os, sys
from fusion.kernels.scratch import scratch_folder
mine = scratch_folder("test")
child = os.fork()
if not child:
    other = scratch_folder("test")
    sys.exit(0 if other != mine and other.is_dir() and mine.is_dir() else 1)
status = os.waitpid(child, 0)[1]
print(mine, status, mine.is_dir())
"""


def test_one_folder_for_a_purpose() -> None:
    folder = scratch_folder("test")
    assert folder == scratch_folder("test") != scratch_folder("other")
    assert folder.is_dir() and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_forked_child_has_its_own_and_leaves_its_parents() -> None:
    ended = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    folder, status, is_there = ended.stdout.split()
    assert (status, is_there) == ("0", "True")
    assert not Path(folder).exists()
