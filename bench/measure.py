"""Interleaved timing: sides take turns in one run, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

_SAMPLE_SECONDS = 300e-6  # a sample of a short call repeats it until it is this long: 1000x the clock's resolution
_MOST_REPEATS = 2000

Block = Callable[[], list[float]]  # runs one side's turn and returns seconds per call, one value per sample


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of samples with their 20th and 80th percentile."""

    p20: float
    p50: float
    p80: float
    samples: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return Spread(ordered[round(0.2 * last)], statistics.median(ordered), ordered[round(0.8 * last)], len(ordered))

    def scaled(self, factor: float) -> Spread:
        """In another unit."""
        return Spread(self.p20 * factor, self.p50 * factor, self.p80 * factor, self.samples)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds per call of every side, by round.

    Attributes:
        seconds: side -> rounds -> samples.
    """

    seconds: dict[str, tuple[tuple[float, ...], ...]]

    def spreads(self) -> dict[str, Spread]:
        """Microseconds per call of every side, over all rounds."""
        return {side: Spread.of([s for r in rounds for s in r]).scaled(1e6) for side, rounds in self.seconds.items()}

    def speedup(self, slower: str, faster: str) -> Spread:
        """How many times faster one side is: the ratio of the medians of each round, so that drift cancels."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return Spread.of([statistics.median(a) / statistics.median(b) for a, b in pairs])


def interleave(sides: Mapping[str, Block], rounds: int) -> Rounds:
    """Runs every side once per round; who goes first changes from round to round.

    Args:
        sides: a block per side.
        rounds: how often each takes its turn.
    """
    names = list(sides)
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in order(names, turn):
            seconds[name].append(tuple(sides[name]()))
    return Rounds({name: tuple(values) for name, values in seconds.items()})


def order(names: Sequence[str], turn: int) -> list[str]:
    """The sides of a round: reversed every other round, rotated every second one."""
    first = (turn // 2) % len(names)
    rotated = [*names[first:], *names[:first]]
    return rotated[::-1] if turn % 2 else rotated


def calls(function: Callable[[], object], *, cuda: bool = False, samples: int = 15) -> Block:
    """A block that times a short call: every sample is the mean of as many calls as fill it.

    Args:
        function: what to time; called a few times now.
        cuda: time the stream with events instead of the host's clock.
        samples: per round.
    """
    timed = _events if cuda else _clock
    for _ in range(3):
        function()
    repeats = min(_MOST_REPEATS, max(1, round(_SAMPLE_SECONDS / max(timed(function, 3), 1e-7))))
    return lambda: [timed(function, repeats) for _ in range(samples)]


def _clock(function: Callable[[], object], repeats: int) -> float:
    turns = range(repeats)
    start = time.perf_counter()
    for _ in turns:
        function()
    return (time.perf_counter() - start) / repeats


def _events(function: Callable[[], object], repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats
