"""Errors for want of memory: known as such, and rid of the frames that keep memory alive."""

from __future__ import annotations

import errno

import torch

# How torch's allocators, its CUDA calls and the system say it; they share no class.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, says that memory ran out: it may well be there in the next call."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def without_frames(error: BaseException) -> None:
    """Takes the tracebacks off an error and what led to it: they keep the variables of its frames alive."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]
