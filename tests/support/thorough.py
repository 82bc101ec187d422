"""How many of the combinations of two lists are tested: by default each of the first once, or all of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

FULL = os.environ.get("FUSION_OPINFO") == "full"  # which `make test-all` sets


def combined(first: Iterable[A], second: Sequence[B]) -> list[tuple[A, B]]:
    """Pairs of `first` and `second`: by default each of `first` once, the next with the next of `second`; else all."""
    if FULL:
        return list(itertools.product(first, second))
    return list(zip(first, itertools.cycle(second), strict=False))
