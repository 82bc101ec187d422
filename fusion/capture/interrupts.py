"""Signals while a call is recorded: none is lost, and none arrives as something else.

Python runs signal handlers wherever it is. Where that is a function that torch's C++ has called to ask for a symbolic
size, an exception such as KeyboardInterrupt is swallowed there, or becomes a TypeError or RuntimeError. So a signal
that comes while torch or this package is at work waits until the next operator is done.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import sympy

from fusion.capture.user_frame import is_ours

_LIBRARY = os.path.dirname(os.__file__) + os.sep
_SYMPY = os.path.dirname(sympy.__file__) + os.sep


_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_ACTIVE: list[_Interrupts] = []  # of the main thread, which alone runs handlers


def held_back(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """`function`, in which signals wait that come at such a place; those that still do are met when it ends."""

    @functools.wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        with _Interrupts():
            return function(*args, **kwargs)

    return call


def deliver() -> None:
    """Runs the handlers of the signals that wait, which may raise."""
    if _ACTIVE and threading.current_thread() is threading.main_thread():
        _ACTIVE[-1].deliver()


class _Interrupts:
    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        _ACTIVE.append(self)
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._met)

    def __exit__(self, *error: Any) -> None:
        _ACTIVE.remove(self)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._met:  # else the forward has set another
                signal.signal(number, handler)
        self.deliver()

    def deliver(self) -> None:
        while self._waiting:
            number, frame = self._waiting.pop(0)
            self._handlers[number](number, frame)

    def _met(self, number: int, frame: FrameType | None) -> None:
        if _is_machinery(frame):
            self._waiting.append((number, frame))
        else:
            self._handlers[number](number, frame)


def _is_machinery(frame: FrameType | None) -> bool:
    """Whether torch or this package is at work in a frame, rather than the user's code; libraries work for either."""
    while frame is not None:
        name = frame.f_code.co_filename
        if is_ours(name):
            return True
        library = name.startswith(_LIBRARY) and "site-packages" not in name
        if not library and not name.startswith(("<", _SYMPY)):
            return False
        frame = frame.f_back
    return False
