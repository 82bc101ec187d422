"""Calls that no plan takes, again and again: looking for one must not cost more than it can save."""

from __future__ import annotations

from typing import Any

_RESTS_AFTER = 8  # calls of one kind that no plan takes, after which only every `_LOOKS_UP`th is asked what it is
_LOOKS_UP = 64


class Backoff:
    """Counts calls by the kinds of their arguments, from the first that no plan could take."""

    def __init__(self) -> None:
        self._calls: dict[Any, int] = {}

    def rests(self, kinds: Any) -> bool:
        """Counts a call; whether it runs eagerly without a look."""
        calls = self._calls.get(kinds, 0)
        if not calls:
            return False
        self._calls[kinds] = calls + 1
        return calls > _RESTS_AFTER and calls % _LOOKS_UP != 0

    def begin(self, kinds: Any) -> None:
        """No plan takes such calls, and none will be made: they count from here on, unless they do already."""
        self._calls.setdefault(kinds, 1)

    def end(self, kinds: Any) -> None:
        """Such calls may get a plan."""
        self._calls.pop(kinds, None)

    def forget(self) -> None:
        """No kind of call counts any more."""
        self._calls.clear()
