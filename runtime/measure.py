"""Timing two ways of doing the same, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from fusion.patterns import symbols
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Leaf, Ref
from fusion.patterns.source import define
from fusion.runtime.op_calls import call

_SAMPLE_SECONDS = 30e-6  # a sample repeats a short call until it is this long, well above the clock's resolution
_LEAST_SAMPLES, _MOST_SAMPLES = 7, 41
_LONG_SECONDS, _SAMPLES_OF_LONG = 5e-3, 3  # a call that takes so long needs no warming up, and few samples
_VERY_LONG_SECONDS, _OBVIOUS = 0.2, 3.0  # where a call takes so long, one that is so much slower is timed once
_CLEAR = 1.7  # of two long calls, one that takes so many times the other's time is slower, whatever noise there is


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two medians, in microseconds, and how far the samples spread.

    Attributes:
        first_us, second_us: medians.
        first_best_us, second_best_us: lower quartiles.
        first_spread_us, second_spread_us: distance between the quartiles.
    """

    first_us: float
    second_us: float
    first_best_us: float
    second_best_us: float
    first_spread_us: float
    second_spread_us: float

    @property
    def noisy(self) -> bool:
        """Whether something else had the machine: the quartiles of one side are further apart than half its median."""
        return self.first_spread_us > self.first_us / 2 or self.second_spread_us > self.second_us / 2

    @property
    def ratio(self) -> float:
        """The second's time as a share of the first's, the spread counted against the second.

        Upper quartile of the second over the median of the first; on a noisy machine, where the upper half of the
        samples measures other programs, the lower quartiles.
        """
        if self.noisy:
            return self.second_best_us / self.first_best_us
        return (self.second_us + self.second_spread_us / 2) / self.first_us


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    wait: Callable[[], object],
    seconds: float,
    known: float = 0.0,
) -> Comparison:
    """Times two calls interleaved; a noisy comparison is repeated twice before it is given.

    Args:
        first, second: what to time; called at least a dozen times each; where a call takes long, at most four times,
            twice where one clearly takes longer, and once where it takes very long.
        wait: returns when the device has done what was launched on it.
        seconds: time to spend, roughly; the least number of samples is taken in any case.
        known: seconds that a call of the first was seen to take, at least. Where that is long, and the second is much
            faster, the first is not called, and the second once.
    """
    if known > _LONG_SECONDS:
        took = _once(second, wait)
        if known > _OBVIOUS * took:
            return _comparison(2 * [known * 1e6], 2 * [took * 1e6])
    once = _once(first, wait), _once(second, wait)
    if max(once) > _LONG_SECONDS:
        return _compare_long((first, second), once, wait)
    for _ in range(3):
        found = _compare(first, second, wait, seconds)
        if not found.noisy:
            break
    return found


def _compare_long(
    calls: tuple[Callable[[], object], Callable[[], object]], once: tuple[float, float], wait: Callable[[], object]
) -> Comparison:
    """A comparison of calls that were timed once, of which one takes long."""
    samples = [[time * 1e6] for time in once]
    if max(once) > _VERY_LONG_SECONDS and max(once) > _OBVIOUS * min(once):
        return _comparison(2 * samples[0], 2 * samples[1])
    for _ in range(_SAMPLES_OF_LONG):
        for function, kept in zip(calls, samples, strict=True):
            kept.append(_once(function, wait) * 1e6)
        fast, slow = sorted(samples, key=min)
        if min(slow) > _CLEAR * max(fast):
            break
    return _comparison(samples[0], samples[1])


def _compare(
    first: Callable[[], object], second: Callable[[], object], wait: Callable[[], object], seconds: float
) -> Comparison:
    repeats = [_repeats(f, wait) for f in (first, second)]
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(samples[0]) < _MOST_SAMPLES and (len(samples[0]) < _LEAST_SAMPLES or time.perf_counter() < end):
        for function, times, kept in ((first, repeats[0], samples[0]), (second, repeats[1], samples[1])):
            wait()
            start = time.perf_counter()
            for _ in range(times):
                function()
            wait()
            kept.append((time.perf_counter() - start) / times * 1e6)
    return _comparison(samples[0], samples[1])


def _comparison(first: list[float], second: list[float]) -> Comparison:
    """Of at least two samples each, in microseconds. A quartile is no shorter than the shortest of them."""
    quartiles = [statistics.quantiles(samples, n=4, method="inclusive") for samples in (first, second)]
    low, high = zip(*((q[0], q[2]) for q in quartiles), strict=True)
    return Comparison(
        statistics.median(first), statistics.median(second), low[0], low[1], high[0] - low[0], high[1] - low[1]
    )


def _repeats(function: Callable[[], object], wait: Callable[[], object]) -> int:
    """How many calls make one sample: a short call is repeated."""
    function()
    return max(1, int(_SAMPLE_SECONDS / _once(function, wait)))


def _once(function: Callable[[], object], wait: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    wait()
    return max(time.perf_counter() - start, 1e-7)


def eager_function(graph: SubGraph) -> Callable[..., object]:
    """A SubGraph as the Python function a plan would run without the kernel.

    It takes the inputs in order, then the values of `graph.symbols` in order, and returns the outputs.
    """
    names: dict[str, object] = {}

    def name(hint: str, value: object) -> str:
        fresh = f"{hint}{len(names)}"
        names[fresh] = value
        return fresh

    def text(leaf: Leaf) -> str:
        if isinstance(leaf, tuple):
            return "(" + ", ".join(map(text, leaf)) + ("," if len(leaf) == 1 else "") + ")"
        if isinstance(leaf, Ref):
            return local[leaf.name]
        if hasattr(leaf, "free_symbols"):
            return symbols.print_python(leaf)
        return repr(leaf) if leaf is None or type(leaf) in (bool, int) else name("k", leaf)

    local = {value: f"t{i}" for i, value in enumerate(graph.inputs)}
    last = {value: k for k, node in enumerate(graph.nodes) for value in node.refs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    free: list[str] = []  # variables of values that nothing reads any more
    lines = [f"def eager({', '.join([*(local[i] for i in graph.inputs), *graph.symbols])}):"]
    for k, node in enumerate(graph.nodes):
        source = call(node, text, name, graph.spec[node.outputs[0]])
        free += [local[value] for value in dict.fromkeys(node.refs) if last[value] == k]
        for output in node.outputs:
            local[output] = free.pop() if free else f"t{len(local)}"
        several = "," if len(node.outputs) > 1 else ""
        lines.append(f"    {', '.join(local[o] for o in node.outputs)}{several} = {source}")
        if free:
            lines.append(f"    {' = '.join(free)} = None")  # their memory goes, as it does in the user's own code
    lines.append(f"    return {', '.join(local[o] for o in graph.outputs)}")
    return define("\n".join(lines), "eager", names, "<fusion eager region>")
