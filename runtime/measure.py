"""Timing two ways of doing the same, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fusion.patterns import symbols
from fusion.patterns.graph import Leaf, Ref, SubGraph

from .calls import call

_SAMPLE_SECONDS = 30e-6  # a sample repeats a short call until it is this long, well above the clock's resolution
_LEAST_SAMPLES, _MOST_SAMPLES = 7, 41


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two medians, in microseconds, and how far the samples spread.

    Attributes:
        first_us, second_us: medians.
        first_spread_us, second_spread_us: distance between the quartiles.
    """

    first_us: float
    second_us: float
    first_spread_us: float
    second_spread_us: float

    @property
    def ratio(self) -> float:
        """The second's time as a share of the first's, the spread counted against the second: upper quartile of the
        second over the median of the first."""
        return (self.second_us + self.second_spread_us / 2) / self.first_us


def compare(first: Callable[[], object], second: Callable[[], object], *, cuda: bool, seconds: float) -> Comparison:
    """Times two calls interleaved.

    Args:
        first, second: what to time; called at least a dozen times each.
        cuda: whether they launch work on a GPU, which is then waited for.
        seconds: time to spend, roughly; the least number of samples is taken in any case.
    """
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    repeats = [max(1, int(_SAMPLE_SECONDS / _once(f, wait))) for f in (first, second) for _ in (f(), f())][::2]
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
    quartiles = [statistics.quantiles(s, n=4) for s in samples]
    return Comparison(
        statistics.median(samples[0]),
        statistics.median(samples[1]),
        quartiles[0][2] - quartiles[0][0],
        quartiles[1][2] - quartiles[1][0],
    )


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

    local = {value: f"t{i}" for i, (value, _) in enumerate(graph.specs)}
    lines = [f"def eager({', '.join([*(local[i] for i in graph.inputs), *graph.symbols])}):"]
    for node in graph.nodes:
        targets = ", ".join(local[o] for o in node.outputs)
        several = "," if len(node.outputs) > 1 else ""
        lines.append(f"    {targets}{several} = {call(node, text, name)}")
    lines.append(f"    return {', '.join(local[o] for o in graph.outputs)}")
    exec(compile("\n".join(lines), "<fusion eager region>", "exec"), names)
    function: Callable[..., object] = names["eager"]  # type: ignore[assignment]
    return function
