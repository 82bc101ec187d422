"""The user's code behind a recorded operator: its innermost frame, and its line."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType

import torch

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ROOT = os.path.dirname(_PACKAGE)
_OURS = tuple(
    prefix + os.sep
    for prefix in (
        _PACKAGE,
        os.path.join(_ROOT, "runtime"),
        os.path.join(_ROOT, "patterns"),
        os.path.join(_ROOT, "kernels"),
        os.path.dirname(torch.__file__),
    )
)
_DEMO = os.path.join(_PACKAGE, "demo")  # a model such as users have
_PYTHON = tuple({sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("platstdlib") + os.sep})
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_TAKES_ANYTHING = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def is_ours(filename: str) -> bool:
    """Whether code of a file is torch's or part of what records and runs plans."""
    return filename.startswith(_OURS)


def user_frame() -> FrameType | None:
    """The innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_passed_over(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def user_line() -> str:
    """ "file:line" of the user's code that is running; the file's last two path parts.

    Inside of a library's function that is the line which calls the library, and inside of a library's module the line
    of its forward. Wrappers around a forward, as decorators make, are nobody's line.
    """
    return _line_of(_frames(sys._getframe(1)))


def line_of(error: BaseException) -> str:
    """`user_line` for where an error was raised; "" where no user's code is in its traceback."""
    steps = reversed(list(traceback.walk_tb(error.__traceback__)))
    return _line_of((frame, line) for frame, line in steps if not _is_passed_over(frame.f_code.co_filename))


def short_line(file: str, line: int) -> str:
    """ "file:line" for people: the file's last two path parts."""
    return f"{os.sep.join(file.split(os.sep)[-2:])}:{line}"


def is_users_file(file: str) -> bool:
    """Whether a file's lines may be named as the user's: it is not torch's, not ours and not made up."""
    return bool(file) and not _is_passed_over(file)


def _is_passed_over(file: str) -> bool:
    if file.startswith("<") or "contextlib" in file:
        return True
    return file.startswith(_OURS) and not file.startswith(_DEMO)


def _frames(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Frames of users and libraries with their lines, the innermost first."""
    while frame is not None:
        if not _is_passed_over(frame.f_code.co_filename):
            yield frame, frame.f_lineno
        frame = frame.f_back


def _line_of(frames: Iterable[tuple[FrameType, int]]) -> str:
    first: tuple[FrameType, int] | None = None
    for frame, line in frames:
        if _is_wrapper(frame.f_code):
            continue
        first = first or (frame, line)
        package = _package_of(frame.f_code.co_filename)
        if not package:  # the user's own
            return short_line(frame.f_code.co_filename, line)
        if isinstance(frame.f_locals.get("self"), torch.nn.Module):  # a library's module, and its helpers
            chosen = first if _package_of(first[0].f_code.co_filename) == package else (frame, line)
            return short_line(chosen[0].f_code.co_filename, chosen[1])
    return "" if first is None else short_line(first[0].f_code.co_filename, first[1])


@functools.cache
def _package_of(file: str) -> str:
    """The folder or file of an installed package, or of Python's library, that a file belongs to; "" for a user's."""
    for place in _INSTALLED:
        if place in file:
            return file.split(place, 1)[1].split(os.sep)[0]
    return next((file[len(place) :].split(os.sep)[0] for place in _PYTHON if file.startswith(place)), "")


@functools.cache
def _is_wrapper(code: CodeType) -> bool:
    """Whether code is a library's decorator around another function: a closure that takes any arguments."""
    takes_anything = code.co_flags & _TAKES_ANYTHING == _TAKES_ANYTHING
    return takes_anything and bool(code.co_freevars) and bool(_package_of(code.co_filename))
