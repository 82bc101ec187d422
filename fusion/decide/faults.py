"""Errors of the compiler's own: each is kept to the operator or the region that it arose in, logged and reported."""

from __future__ import annotations

import logging

import torch

_LOG = logging.getLogger("fusion")

CODE = "compiler_fault"  # of the refusal

# What says nothing of the region, and may not come again; the codes that a recorded run is refused with for it.
PASSING = (MemoryError, RecursionError, torch.OutOfMemoryError)
PASSING_CODES = ("stack", "memory")


def recording_code(error: Exception) -> str:
    """The code of the refusal of a recorded run that an error ended."""
    if isinstance(error, RecursionError):
        return "stack"
    return "memory" if isinstance(error, PASSING) else "recorder_error"


def noted(error: Exception, what: str) -> str:
    """Logs an error, and gives it in words for a report.

    Args:
        error: any but those of `PASSING`, which are raised again: nothing is to be remembered of them.
        what: the operator or the region that is not fused, or what else is left out.
    """
    if isinstance(error, PASSING):
        raise error
    words = f"{type(error).__name__}: {error}".splitlines()[0]
    _LOG.warning("fusion does without %s, for which compiling failed: %s", what, words, exc_info=error)
    return words
