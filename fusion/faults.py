"""Errors of the compiler's own: each is kept to the operator or the region that it arose in, logged and reported."""

from __future__ import annotations

import logging

from fusion.patterns.shortage import is_shortage

_LOG = logging.getLogger("fusion")

CODE = "compiler_fault"  # of the refusal


def is_passing(error: BaseException) -> bool:
    """Whether an error says nothing of what is compiled, and may not come again."""
    return isinstance(error, RecursionError) or is_shortage(error)


def recording_code(error: Exception) -> str:
    """The code of the refusal of a recorded run that an error ended."""
    if isinstance(error, RecursionError):
        return "stack"
    return "out_of_memory" if is_shortage(error) else "recorder_error"


def noted(error: Exception, what: str) -> str:
    """Logs an error, and gives it in words for a report.

    Args:
        error: any but passing ones, which are raised again: nothing is to be remembered of them.
        what: the operator or the region that is not fused, or what else is left out.
    """
    if is_passing(error):
        raise error
    words = f"{type(error).__name__}: {error}".splitlines()[0]
    _LOG.warning("fusion does without %s, for which compiling failed: %s", what, words, exc_info=error)
    return words
