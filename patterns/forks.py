"""What a forked child needs of its parent's threads, of which it has one: free locks, and nothing left half done.

A child has the thread that forked and a copy of everything else. A lock that another thread held stays held for ever,
and what that thread had changed for a moment stays changed; so locks are replaced in the child, and changes put back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, overload

_Value = TypeVar("_Value")


class Lock:
    """A reentrant lock, which a forked child finds free where a thread held it that the child does not have."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Takes the lock; whether it was to be had."""
        return self._lock.acquire(blocking=blocking)

    def release(self) -> None:
        """Gives it back."""
        self._lock.release()

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.release()

    def renew(self) -> None:
        """In a child: takes another thread's lock away."""
        if self._lock.acquire(blocking=False):
            self._lock.release()  # free, or the forking thread's own, which will release it
        else:
            self._lock = threading.RLock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_changes: list[tuple[int, Callable[[], None]]] = []  # by thread: how what it has changed is put back


@contextlib.contextmanager
def changes(put_back: Callable[[], None]) -> Iterator[None]:
    """Around what a thread changes for the whole process, and for a while.

    Args:
        put_back: called at the end, and in a child that was forked meanwhile by another thread.
    """
    change = (threading.get_ident(), put_back)
    _changes.append(change)
    try:
        yield
    finally:
        _changes.remove(change)
        put_back()


def _in_child() -> None:
    for lock in list(_locks):
        lock.renew()
    own = threading.get_ident()
    for thread, put_back in reversed(_changes):
        if thread != own:
            put_back()
    _changes[:] = [change for change in _changes if change[0] == own]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class cached_property(Generic[_Value]):  # as functools' own
    """`functools.cached_property` without its lock, which until Python 3.12 a forked child could find taken."""

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[_Value]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> _Value: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
