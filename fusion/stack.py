"""Room on Python's stack: recording needs some, and a call near the interpreter's limit gets what we take from it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from fusion.patterns.forks import Lock

# Frames. Recording a block took 116 with everything imported, of which eager's own were 13; first imports take more.
_NEEDED = 300
_OURS = 60  # at most, between the caller of a scope and its forward, where it runs in a plan's stead


def is_short() -> bool:
    """Whether a call that is recorded now could meet the interpreter's limit, where it would not by itself."""
    deepest = sys.getrecursionlimit() - _NEEDED
    if deepest <= 0:
        return True
    try:
        sys._getframe(deepest)
    except ValueError:  # the stack is not that deep
        return False
    return True


class _Loans:
    """What the interpreter's limit, which is one for all threads, has been raised by."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._limit = 0  # what we last made it
        self._over = 0  # loans that could not be taken back yet, for the stack was that deep

    def give(self) -> None:
        with self._lock:
            if sys.getrecursionlimit() != self._limit:  # nothing is lent, or somebody else has set it since
                self._over = 0
            self._set(sys.getrecursionlimit() + _OURS)

    def take_back(self) -> None:
        with self._lock:
            if sys.getrecursionlimit() != self._limit:
                return  # whoever set it has the last word
            self._over += 1
            with contextlib.suppress(RecursionError):
                self._set(self._limit - self._over * _OURS)
                self._over = 0

    def _set(self, limit: int) -> None:
        sys.setrecursionlimit(limit)
        self._limit = limit


_LOANS = _Loans()


@contextlib.contextmanager
def lent() -> Iterator[None]:
    """Inside, the stack may be deeper by the frames that we put between a caller and their forward."""
    _LOANS.give()
    try:
        yield
    finally:
        _LOANS.take_back()
