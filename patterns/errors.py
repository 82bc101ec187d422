"""The one hierarchy of errors. Every message says what was expected, what was found, and the remedy."""

from __future__ import annotations


class FusionError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: what was expected and what was found.
        remedy: what the caller can do about it; appended to the message.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message} {remedy}".strip())


class ConfigError(FusionError, ValueError):
    """A configuration key or value that does not exist."""


class RecordingError(FusionError):
    """Recording was used in a way that has no meaning: nested, stopped without a start, read too early."""


class GraphError(FusionError, ValueError):
    """A malformed graph: a value used before it is made, a name made twice, an unknown symbol."""


class StructureMismatch(FusionError, ValueError):
    """Inputs that do not have the structure a compiled graph was recorded with."""


class UnsupportedOperator(FusionError):
    """An operator that has no row in the operator table, or a row that does not cover this use of it."""


class LoweringError(FusionError):
    """A SubGraph that cannot become one kernel. `code` is the refusal code a report shows."""

    def __init__(self, code: str, message: str, *, remedy: str = "") -> None:
        self.code = code
        super().__init__(message, remedy=remedy)


class BackendUnavailable(FusionError, RuntimeError):
    """A backend was asked for by name on a machine that cannot provide it."""


class CompileError(FusionError, RuntimeError):
    """A kernel's source did not compile. The message ends with the compiler's own words."""
