"""What a run does outside the objects that it can reach: random draws of Python's, prints, files, log lines.

A forward that does such things is run once and refused: a plan would not do them, and a second run would do them twice.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import random
import sys
import threading
import types
from collections.abc import Callable, Collection
from typing import Any

import torch

from fusion.capture.user_frame import user_line
from fusion.patterns.forks import Lock, changes

_NOTED = {
    "print": "prints",
    "open": "opens a file",
    "input": "asks for input",
}
_OWN = ("torch", "fusion", "sympy")  # what these do while a forward is recorded is not its own doing
_patching = Lock()


class OutsideEffects:
    """Notices such effects of what this thread does inside a `with` block.

    Attributes:
        noticed: the first one, in words, or None.
        line: "file:line" of the user's code that did it, or "" where that was not seen.
    """

    def __init__(self) -> None:
        self.noticed: str | None = None
        self.line = ""
        self._thread = threading.get_ident()
        self._python = random.getstate()
        self._numpy = _numpy_state()
        self._functions: dict[str, Callable[..., Any]] = {}
        self._watches = False
        self._changes = contextlib.ExitStack()

    def __enter__(self) -> OutsideEffects:
        self._watches = _patching.acquire(blocking=False)  # one recording at a time changes Python's builtins
        if self._watches:
            self._text_of_size = torch.SymInt.__repr__
            self._factory = logging.getLogRecordFactory()
            self._changes.enter_context(changes(self._put_back))
            for name, words in _NOTED.items():
                self._functions[name] = getattr(builtins, name)
                setattr(builtins, name, self._noticing(self._functions[name], words))
            torch.SymInt.__repr__ = self._size_as_text()  # type: ignore[method-assign]  # put back below
            logging.setLogRecordFactory(self._log_record)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._watches:
            self._changes.close()
            _patching.release()
        if random.getstate() != self._python or not _equal(_numpy_state(), self._numpy):
            self.noticed, self.line = "draws from Python's or NumPy's generator", ""

    def _put_back(self) -> None:
        for name, function in self._functions.items():
            setattr(builtins, name, function)
        torch.SymInt.__repr__ = self._text_of_size  # type: ignore[method-assign]  # its own again
        logging.setLogRecordFactory(self._factory)

    def rewind(self) -> None:
        """Makes the generators what they were."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)

    def _note(self, words: str) -> None:
        if threading.get_ident() == self._thread and self.noticed is None:
            self.noticed = words
            self.line = user_line()

    def _noticing(self, function: Callable[..., Any], words: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def noticing(*args: Any, **kwargs: Any) -> Any:
            if not _is_called_by(sys._getframe(1), (*sys.stdlib_module_names, *_OWN)):
                self._note(words)
            return function(*args, **kwargs)

        return noticing

    def _size_as_text(self) -> Callable[[torch.SymInt], str]:
        """What stands for a symbol's text: for the forward's code, that of the number it is in this call, which torch
        then makes a guard."""
        symbolic = self._text_of_size

        def text(size: torch.SymInt) -> str:
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
                frame = frame.f_back
            own = threading.get_ident() != self._thread or _is_called_by(frame, _OWN)
            return symbolic(size) if own else repr(int(size))

        return text

    def _log_record(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        if name.partition(".")[0] not in _OWN:
            self._note("writes to a log")
        return self._factory(name, *args, **kwargs)


def _is_called_by(frame: types.FrameType, packages: Collection[str]) -> bool:
    """Whether a frame runs code of one of some packages."""
    return (frame.f_globals.get("__name__") or "").partition(".")[0] in packages


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")  # torch imports it where it is installed
    return None if numpy is None else numpy.random.get_state()


def _equal(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return bool(left[0] == right[0] and (left[1] == right[1]).all() and left[2:] == right[2:])
