"""The callable that a scope stands in for, called as users call it, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fusion.capture.record import call_line
from fusion.capture.user_frame import user_line
from fusion.jit.bound_call import BoundCall
from fusion.jit.signature import Signature
from fusion.jit.statistics import Statistics
from fusion.refusal import Refusal


class Original:
    """A callable, and how often and why it was called rather than a plan.

    Args:
        call: the callable.

    Attributes:
        signature: its parameters.
        as_written: makes a call as users do, of the callable and the arguments one by one, and does not count it.
        statistics: of the scope that stands in for it.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self.signature = Signature(call)
        self.statistics = Statistics()
        self.as_written = self.signature.caller()

    def __call__(self, call: BoundCall) -> Any:
        return self.signature.invoke(self.call, call.arguments)

    def instead(self, arguments: Sequence[Any]) -> Any:
        """Makes a call, with arguments in signature order, in a plan's place: it is eager, and the entry is going to
        count it as planned, too."""
        self.statistics.eager += 1
        result = self.as_written(self.call, *arguments)
        self.statistics.planned[0] -= 1
        return result

    def eager(self, call: BoundCall, reason: Refusal | None = None) -> Any:
        """Makes a call that counts as eager."""
        self.statistics.eager += 1
        if reason is not None:
            self.statistics.last_reason = reason
        return self(call)

    def passed(self, call: BoundCall, reason: Refusal) -> Any:
        """Runs a call eagerly for what is about this call alone; the report says so, and where it was called."""
        passing = self.statistics.passing
        known = passing.get(reason.code)
        if known is None or known.sentence != reason.sentence:
            known = reason if reason.origin else replace(reason, origin=user_line())
        passing[reason.code] = known
        return self.eager(call, known)

    @property
    def line(self) -> str:
        """ "file:line" where the user has defined the callable, or calls it."""
        return call_line(self.call)
