"""How far a recording's plans are trusted: the sizes they were checked at, and how often they failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusion.patterns.recorded import RecordedGraph
from fusion.runtime.plan import input_symbols

_FORGIVEN_AFTER = 1000  # planned calls of the scope after which a failure no longer counts


class CheckedSizes:
    """The sizes at which the plan without kernels was compared with eager.

    Args:
        graph: the recording.
        values: its symbols' values in the recorded run.

    Attributes:
        symbols: the input symbols, in order.
        unbacked: size symbols that only an opaque call tells, and no guard ties to others.
        proved: values of the input symbols at which the plan agreed. Plans that are pinned to them hold this very set.
        generalized: whether the plan agreed at a shape other than the recorded one, or has no sizes: it is pinned no
            longer.
    """

    def __init__(self, graph: RecordedGraph, values: Mapping[str, int]) -> None:
        self.symbols = [source.symbol for source in input_symbols(graph)]
        self.unbacked = {s.symbol for s in graph.symbols} - set(self.symbols) - _told(graph.guards)
        self.proved: set[tuple[int, ...]] = set()
        self.generalized = not graph.symbols
        self._recorded = dict(values)

    @property
    def any(self) -> bool:
        """Whether plans may take calls at all."""
        return self.generalized or bool(self.proved)

    def are_proved(self, values: Mapping[str, int]) -> bool:
        """Whether the plan agreed at these very values of the input symbols."""
        return tuple(values[symbol] for symbol in self.symbols) in self.proved

    def prove(self, values: Mapping[str, int]) -> None:
        """The plan agreed at these values of the input symbols."""
        self.proved.add(tuple(values[symbol] for symbol in self.symbols))

    def compare(self, values: Mapping[str, int]) -> None:
        """The plan agreed at these values of all symbols: beyond the recorded shape, where any differs from it."""
        if any(values[symbol] != value for symbol, value in self._recorded.items() if symbol in values):
            self.generalized = True


def _told(guards: Sequence[str]) -> set[str]:
    """Symbols that a guard gives the value of."""
    return {guard.partition(" == ")[0] for guard in guards if " == " in guard}


class FailureCount:
    """How often a recording's plans stopped where the original does not, of late."""

    def __init__(self) -> None:
        self.count = 0
        self._at = 0

    def add(self, planned: int) -> None:
        """Counts one more.

        Args:
            planned: calls of the scope that plans took so far.
        """
        self.count = 1 if planned - self._at > _FORGIVEN_AFTER else self.count + 1
        self._at = planned
