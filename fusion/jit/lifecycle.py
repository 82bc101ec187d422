"""The life of a scope: which phase it is in, and why its calls run eagerly there."""

from __future__ import annotations

import enum

from fusion.jit.state_watch import StateWatch
from fusion.refusal import Refusal

_MOST_RESETS = 8  # a scope whose modules changed this often stays eager
_MOST_DEEP = 4  # times that a scope runs out of stack while it is recorded or compiled, before that counts against it
_PAUSE = 64  # slow calls that are not recorded or proved after memory ran out while one was
_GIVEN_UP = Refusal(
    "python_state",
    f"what the modules hold has changed more than {_MOST_RESETS} times, and each change made the plans void",
    remedy="pass what changes as an argument, or enable the model once it is set up",
)
_SHORT = Refusal("out_of_memory", "memory ran out a few calls ago; they run eagerly for a while")


class Phase(enum.Enum):
    """What becomes of a call that no plan takes."""

    WARMING = "warming up: it runs eagerly once, so that the modules inside record themselves"
    RECORDING = "recording: a call that no plan takes is recorded"
    PAUSED = "paused: memory ran out, and some calls run eagerly"
    UNWATCHED = "unwatched: what it depends on cannot be looked at, and calls run eagerly until it can"
    GIVEN_UP = "given up: what it depends on changed too often, and calls run eagerly"


class Lifecycle:
    """The phase of a scope, and the events that lead to another.

        WARMING     one call                            RECORDING
        RECORDING   memory runs out                     PAUSED
        PAUSED      64 slow calls                       RECORDING
        any         its state cannot be looked at       UNWATCHED, until it can
        any         its state changed nine times        GIVEN_UP

    Args:
        watch: what the scope depends on.
        warms: whether modules inside record themselves first.
    """

    def __init__(self, watch: StateWatch, *, warms: bool) -> None:
        self.resets = 0
        self._watch = watch
        self._warms = warms
        self._pause = 0  # calls left of it
        self._deep = 0

    @property
    def phase(self) -> Phase:
        """Where the scope is."""
        if self.resets > _MOST_RESETS:
            return Phase.GIVEN_UP
        if self._watch.refusal is not None:
            return Phase.UNWATCHED
        if self._pause:
            return Phase.PAUSED
        return Phase.WARMING if self._warms else Phase.RECORDING

    def __str__(self) -> str:
        refusal = self.refusal()
        return self.phase.value if refusal is None else f"{self.phase.value} ({refusal})"

    def refusal(self) -> Refusal | None:
        """Why every call that no plan has taken runs eagerly; None where it may be recorded."""
        match self.phase:
            case Phase.GIVEN_UP:
                return _GIVEN_UP
            case Phase.UNWATCHED:
                return self._watch.refusal
            case Phase.PAUSED:
                return _SHORT
        return None

    # ---- events

    def passed(self) -> None:
        """A call runs eagerly because of the phase."""
        if self.phase is Phase.PAUSED:
            self._pause -= 1

    def warmed(self) -> bool:
        """A call is about to be recorded; whether it warms the modules inside up instead."""
        warms, self._warms = self._warms, False
        return warms

    def ran_out_of_memory(self) -> None:
        """While a call was recorded or proved; what became of it says nothing of the next ones."""
        self._pause = _PAUSE

    def ran_out_of_stack(self) -> bool:
        """While a call was recorded or compiled; whether a call that is less deep is worth another try."""
        self._deep += 1
        return self._deep <= _MOST_DEEP

    def changed(self) -> None:
        """What the scope depends on has changed, so that its recordings are void."""
        self.resets += 1
