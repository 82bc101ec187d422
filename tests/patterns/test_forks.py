"""What a child finds that was forked while another thread was in the middle of something."""

import os
import threading
from collections.abc import Callable

from fusion.patterns import forks
from fusion.patterns.forks import Lock, cached_property, changes


def in_child(does: Callable[[], bool]) -> bool:
    """Whether `does` says yes in a forked child, which is not waited for longer than it may take."""
    child = os.fork()
    if not child:
        watchdog = threading.Timer(20, os._exit, [2])
        watchdog.daemon = True
        watchdog.start()
        os._exit(0 if does() else 1)
    return os.waitpid(child, 0)[1] == 0


class Elsewhere:
    """Another thread that is inside a `with` block meanwhile."""

    def __init__(self, block: object) -> None:
        self._inside, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(block,))

    def _run(self, block: object) -> None:
        with block:  # type: ignore[attr-defined]
            self._inside.set()
            self._leave.wait()

    def __enter__(self) -> None:
        self._thread.start()
        self._inside.wait()

    def __exit__(self, *error: object) -> None:
        self._leave.set()
        self._thread.join()


def test_a_child_finds_a_lock_free_that_another_thread_holds() -> None:
    lock = Lock()
    with Elsewhere(lock):
        assert not lock.acquire(blocking=False)
        assert in_child(lambda: lock.acquire(blocking=False))
        assert not lock.acquire(blocking=False)  # in the parent nothing has changed


def test_a_child_keeps_the_lock_that_the_forking_thread_holds() -> None:
    lock = Lock()

    def releases() -> bool:
        lock.release()
        return True

    with lock:
        assert in_child(releases)


def test_a_child_puts_back_what_another_thread_had_changed() -> None:
    value = ["before"]

    def put_back() -> None:
        value[0] = "before"

    with Elsewhere(changes(put_back)):
        value[0] = "changed"
        assert in_child(lambda: value == ["before"] and not forks._changes)
        assert value == ["changed"]
    assert value == ["before"] and not forks._changes


def test_a_child_keeps_what_the_forking_thread_has_changed() -> None:
    value = ["before"]

    def put_back() -> None:
        value[0] = "before"

    with changes(put_back):
        value[0] = "changed"
        assert in_child(lambda: value == ["changed"])
    assert value == ["before"]


class Slow:
    """Computes an attribute for as long as it is told to."""

    def __init__(self) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()

    @cached_property
    def answer(self) -> int:
        self.inside.set()
        self.leave.wait()
        return 42


def test_a_child_computes_an_attribute_that_another_thread_was_computing() -> None:
    slow = Slow()
    thread = threading.Thread(target=lambda: slow.answer)
    thread.start()
    slow.inside.wait()

    def computes() -> bool:
        slow.leave = threading.Event()
        slow.leave.set()
        return slow.answer == 42

    assert in_child(computes)
    slow.leave.set()
    thread.join()
    assert slow.__dict__["answer"] == 42 and slow.answer == 42
