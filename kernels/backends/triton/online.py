"""Two reductions over rows that do not fit on chip, in one loop instead of two.

The IR keeps them apart; this is how a looped Triton kernel computes some pairs of them. Each lane of the block carries
its own partial results, which are put together after the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from fusion.kernels.loops import LoopNest, Reduction
from fusion.patterns import symbols
from fusion.patterns.scalar import Apply, Constant, Reduced, Scalar, Size


class Pair(Protocol):
    """How two reductions are computed together; `second` is the later one."""

    @property
    def second(self) -> Reduction:
        """The reduction that needs no loop of its own."""

    def start(self) -> list[str]:
        """What is declared before the loop."""

    def step(self, value: str, mask: str) -> list[str]:
        """What is done with a chunk: `value` has the first reduction's identity where `mask` ("": nowhere) is false."""

    def finish(self, extent: str) -> list[str]:
        """What defines both results after the loop over `extent` columns."""


def pairs(nest: LoopNest) -> dict[str, Pair]:
    """The pairs of a kernel, by the name of their first reduction; no reduction is in two."""
    found: dict[str, Pair] = {}
    taken: set[str] = set()
    for k, first in enumerate(nest.reductions):
        for second in nest.reductions[k + 1 :]:
            names = {first.name, second.name}
            pair = _pair(first, second) if not names & taken else None
            if pair is not None:
                found[first.name] = pair
                taken |= names
    return found


def _pair(first: Reduction, second: Reduction) -> Pair | None:
    plain = not first.running and not second.running and second.fn == "sum" and first.body.dtype is torch.float32
    if not plain or not symbols.same(first.extent, second.extent):
        return None
    if first.fn == "max" and _is_raised(second.body, first):
        return Softmax(first, second)
    if first.fn == "sum" and _is_spread(second.body, first):
        return Moments(first, second)
    return None


def _is_raised(body: Scalar, first: Reduction) -> bool:
    """Whether it is exp(x - highest)."""
    match body:
        case Apply(fn="exp", args=(Apply(fn="sub", args=(x, Reduced(name=name))),)):
            return x is first.body and name == first.name
    return False


def _is_spread(body: Scalar, first: Reduction) -> bool:
    """Whether it is (x - mean) * (x - mean), where the mean is the first sum by the number of columns."""
    match body:
        case Apply(
            fn="mul", args=(Apply(fn="sub", args=(x, Apply(fn="div", args=(Reduced(name=name), by)))) as off, other)
        ):
            return other is off and x is first.body and name == first.name and _is_count(by, first)
    return False


def _is_count(by: Scalar, first: Reduction) -> bool:
    match by:
        case Constant(value=value):
            return bool(value == first.extent)
        case Size(dim=dim):
            return symbols.same(dim, first.extent)
    return False


@dataclass(frozen=True, slots=True)
class Softmax:
    """A maximum and the sum of exp(x - maximum): the sum is scaled down whenever the maximum rises (Milakov and
    Gimelshein 2018).
    """

    first: Reduction
    second: Reduction

    def start(self) -> list[str]:
        """The highest so far and the sum below it, in each lane."""
        top, total = self.first.name, self.second.name
        return [
            f'{top}_block = tl.full([ROWS, COLS], float("-inf"), tl.float32)',
            f"{total}_block = tl.full([ROWS, COLS], 0.0, tl.float32)",
        ]

    def step(self, value: str, mask: str) -> list[str]:
        """A value beyond the row's end is -inf: it raises nothing and adds 0, and nothing at all while all are."""
        top, total = self.first.name, self.second.name
        scaled = f"{total}_block * _exp_below({top}_block, {top}_next)"
        return [
            f"{top}_next = _maximum({top}_block, {value})",
            f"{total}_block = {scaled} + _exp_below({value}, {top}_next)",
            f"{top}_block = {top}_next",
        ]

    def finish(self, extent: str) -> list[str]:
        """The sums of all lanes, scaled to the highest of them; of a row of -inf it is NaN, as eager's is."""
        top, total = self.first.name, self.second.name
        return [
            f"{top} = tl.reduce({top}_block, 1, _maximum)[:, None]",
            f"{total} = tl.sum({total}_block * _exp({top}_block - {top}), axis=1)[:, None]",
        ]


@dataclass(frozen=True, slots=True)
class Moments:
    """A sum and the sum of squared distances to the mean, by Welford's recurrence in each lane (Chan et al. 1983)."""

    first: Reduction
    second: Reduction

    def start(self) -> list[str]:
        """Elements, sum, mean and squared distances of each lane."""
        total, spread = self.first.name, self.second.name
        names = (f"{total}_block", f"{spread}_block", f"{spread}_mean", f"{spread}_count")
        return [f"{name} = tl.full([ROWS, COLS], 0.0, tl.float32)" for name in names]

    def step(self, value: str, mask: str) -> list[str]:
        """Lanes beyond the row's end keep what they have."""
        total, spread = self.first.name, self.second.name
        off = f"tl.where({mask}, {value} - {spread}_mean, 0.0)" if mask else f"{value} - {spread}_mean"
        more = f"tl.where({mask}, 1.0, 0.0)" if mask else "1.0"
        return [
            f"{total}_block += {value}",
            f"{spread}_count += {more}",
            f"{spread}_off = {off}",
            f"{spread}_mean += tl.div_rn({spread}_off, _maximum({spread}_count, 1.0))",
            f"{spread}_block += {spread}_off * ({spread}_off - tl.div_rn({spread}_off, _maximum({spread}_count, 1.0)))",
        ]

    def finish(self, extent: str) -> list[str]:
        """Each lane's distances, and of its mean to the row's."""
        total, spread = self.first.name, self.second.name
        count = f"tl.full([ROWS, 1], {extent}, tl.float32)" if extent.isdigit() else f"({extent}).to(tl.float32)"
        return [
            f"{total} = tl.sum({total}_block, axis=1)[:, None]",
            f"{spread}_off = {spread}_mean - {total} / {count}",
            f"{spread} = tl.sum({spread}_block + {spread}_count * {spread}_off * {spread}_off, axis=1)[:, None]",
        ]
