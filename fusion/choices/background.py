"""Compilers that work on the side, while calls run eagerly.

One thread for all models of the process calls them, one batch after another: each batch has a process for every
processor. The thread runs nothing of torch's and loads nothing, because the interpreter ends such threads wherever they
are when it exits, and one that is inside torch's C++ then aborts the process.
"""

from __future__ import annotations

import atexit
import collections
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fusion.kernels import processes
from fusion.patterns.forks import Lock, changes

_QUIET_S = 0.05  # after a recorded or checked call: the next layer's comes sooner, and compilers would slow it down
_LAST_WAIT_S = 2.0  # at the process's exit, for the thread to remove its files

_lock = Lock()
_waiting: collections.deque[Build] = collections.deque()
_threads: dict[int, threading.Thread] = {}  # by process: a forked child has none
_ends = False  # whether the process ends
_busy = [0, 0.0]  # calls that are recorded or checked now, and when the last one ended


class Build:
    """Work that a thread does on the side.

    Args:
        work: what is to be done. An exception that it raises is lost.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work
        self._process = os.getpid()
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        """Whether nothing is left to wait for. A forked child waits for nothing of its parent's."""
        return self._done.is_set() or self._process != os.getpid()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is done, for at most `timeout` seconds; whether it is."""
        return self.done or self._done.wait(timeout)

    def run(self) -> None:
        """Does the work."""
        work, self._work = self._work, None
        with suppress(Exception):
            if work is not None:
                work()
        self._done.set()

    def cancel(self) -> None:
        """Leaves the work undone."""
        self._work = None
        self._done.set()


class Compiling(Exception):
    """Kernels that a decision needs are being compiled on the side; it can be made once they are."""

    def __init__(self, builds: tuple[Build, ...]) -> None:
        super().__init__(f"{len(builds)} batches of kernels are being compiled")
        self.builds = builds


@contextmanager
def postponed() -> Iterator[None]:
    """Around what must not be slowed down: no compiler is started inside the block, and for a moment after it."""
    with _lock:
        _busy[0] += 1
    ended: list[bool] = []

    def end() -> None:
        if not ended:
            ended.append(True)
            with _lock:
                _busy[:] = [_busy[0] - 1, time.monotonic()]

    with changes(end):  # a child that another thread forks meanwhile has no such call
        yield


def begin(work: Callable[[], None]) -> Build:
    """Does `work` on the side, after what was begun before."""
    build = Build(work)
    with _lock:
        if _ends:
            build.cancel()
            return build
        _waiting.append(build)
        thread = _threads.get(os.getpid())
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=_run, name="fusion-compile", daemon=True)
            _threads[os.getpid()] = thread
            thread.start()
    return build


def _run() -> None:
    with processes.aside():
        while (build := _next()) is not None:
            while _busy[0] or time.monotonic() - _busy[1] < _QUIET_S:
                time.sleep(_QUIET_S / 5)
            build.run()


def _next() -> Build | None:
    """What comes next; None where nothing does, and the thread ends."""
    with _lock:
        while _waiting:
            build = _waiting.popleft()
            if not build.done:  # else its parent's, in a forked child
                return build
        _threads.pop(os.getpid(), None)
        return None


@atexit.register
def _end() -> None:
    """Ends the compilers that nobody waits for any more, and lets the thread remove their files."""
    global _ends
    with _lock:
        _ends = True
        while _waiting:
            _waiting.popleft().cancel()
        thread = _threads.get(os.getpid())
    if thread is not None:
        processes.end_all()
        thread.join(_LAST_WAIT_S)
