"""Python's and NumPy's global generators: what a run draws from them, no plan would draw."""

from __future__ import annotations

import random
import sys
from typing import Any


class PythonGenerators:
    """The states of the generators when this was made."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = _numpy_state()

    def drawn(self) -> bool:
        """Whether something drew from one of them, or seeded it, since."""
        return random.getstate() != self._python or not _equal(_numpy_state(), self._numpy)

    def rewind(self) -> None:
        """Makes them what they were."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")  # torch imports it where it is installed
    return None if numpy is None else numpy.random.get_state()


def _equal(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return bool(left[0] == right[0] and (left[1] == right[1]).all() and left[2:] == right[2:])
