"""Which guards did not hold, for the report: of calls that no plan took, of plans that were left, of changed state.

All of it is on the slow path, and nothing of the user's is kept but short texts.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fusion.capture.python.changed_state import changed_entry
from fusion.capture.python.reachable_state import Entry
from fusion.jit.cache_entry import CacheEntry
from fusion.patterns.errors import StructureMismatch
from fusion.patterns.guards import GuardMiss, Words, shorten
from fusion.runtime.guard_list import GuardList
from fusion.runtime.plan import TELLER, Deoptimized

_MOST = 32  # guards of one scope that are told apart


@dataclass
class MissedGuard:
    """A guard, and how often it did not hold.

    Attributes:
        last: the latest time, in words.
        times: how often.
    """

    last: GuardMiss
    times: int = 0


class GuardMisses:
    """The guards of one scope that did not hold.

    Attributes:
        others: how often further guards did not hold, once there were too many to tell apart.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], MissedGuard] = {}
        self.others = 0

    @property
    def rows(self) -> tuple[MissedGuard, ...]:
        """Each guard once, in the order in which they first did not hold."""
        return tuple(self._rows.values())

    def add(self, miss: GuardMiss | None) -> None:
        """Counts a guard that did not hold; None counts as one that could not be told."""
        told = miss or GuardMiss("unknown", "", "", "")
        key = (told.kind, told.source, told.wanted)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= _MOST:
                self.others += 1
                return
            row = self._rows[key] = MissedGuard(told)
        row.last = told
        row.times += 1

    def call(self, known: Sequence[CacheEntry], arguments: Sequence[Any], owner: str, line: str) -> None:
        """Counts, for each recording that does not apply to a call, its first guard that does not hold.

        Args:
            known: the scope's recordings.
            arguments: the call's, in signature order.
            owner: "self" for a module's forward, else "".
            line: of the callable, for guards of which no line is known.
        """
        for entry in known:
            try:
                guards = entry.template.guards
                if owner not in guards:
                    guards[owner] = GuardList(entry.template.shape, owner)
                miss = guards[owner].first_miss(arguments, entry.bound.tensors)
            except Exception:  # an argument that answers no question
                miss = GuardMiss("unknown", "", "", "")
            if miss is not None:
                self.add(_at(miss, line))

    def left(self, error: BaseException) -> None:
        """Counts the guard that ended a plan on its way, if it was one: call it before the error loses its frames."""
        if isinstance(error, Deoptimized):
            self.add(error.miss)
        elif isinstance(error, StructureMismatch):
            told = shorten(Words(error.message))
            self.add(GuardMiss("kernel", "a kernel's arguments", "those it was compiled for", told, _plan_line(error)))

    def changed(self, before: Sequence[Entry], modules: Mapping[str, torch.nn.Module], line: str) -> None:
        """Counts the entry of a snapshot that does not hold any more.

        Args:
            before: the snapshot's entries.
            modules: the scope's, by path prefix.
            line: of the callable.
        """
        try:
            self.add(_at(changed_entry(before, modules), line))
        except Exception:  # an object of the user's that answers no question
            self.add(None)


def _at(miss: GuardMiss, line: str) -> GuardMiss:
    return miss if miss.origin else replace(miss, origin=line)


def _plan_line(error: BaseException) -> str:
    """The user's line behind the line of a plan that an error went through; "" where no plan is in its traceback."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        teller = frame.f_globals.get(TELLER)
        if teller is not None:
            return str(teller.origin(line))
    return ""
