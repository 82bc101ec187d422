"""Random programs of views, joins, arithmetic and reductions: what lowers means exactly what eager computes."""

from __future__ import annotations

from collections import Counter

import torch
from evaluate import evaluate
from graphs import LENGTH, trace
from random_programs import OTHER_LENGTH, program, start

from fusion.kernels.lower import lower
from fusion.patterns.errors import LoweringError

PROGRAMS = 120


def test_random_programs_mean_what_eager_computes() -> None:
    refusals: Counter[str] = Counter()
    for seed in range(PROGRAMS):
        fn = program(seed)
        try:
            nest = lower(trace(fn, start(LENGTH), dynamic={LENGTH: "s0"}))
        except LoweringError as error:
            refusals[error.code] += 1
            continue
        for length in (LENGTH, OTHER_LENGTH):
            (made,) = evaluate(nest, start(length))
            assert torch.equal(made, fn(start(length))), f"seed {seed} at length {length}:\n{nest}"
    assert set(refusals) <= {"reduction_in_column", "reduction_in_join"}
    assert refusals.total() < PROGRAMS / 3, refusals  # most of them lower
