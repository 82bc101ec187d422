"""Results that a log no longer holds: a re-run gets tensors of the same form in their places."""

from __future__ import annotations

import torch

from fusion.patterns import symbols
from fusion.patterns.specs import TensorSpec
from fusion.runtime.call_log import LoggedWrite
from fusion.runtime.released_results import HandedOn, restored

ROWS = symbols.symbol("s0")
GONE = HandedOn(TensorSpec(torch.bfloat16, (ROWS, 2 * ROWS), (1, ROWS)), torch.device("cpu"))


def test_a_released_result_gets_a_stand_in_of_its_form() -> None:
    kept = torch.ones(2)
    made, same, plain = restored([GONE, kept, 7], {"s0": 3})
    assert (made.dtype, made.shape, made.stride()) == (torch.bfloat16, (3, 6), (1, 3))
    assert same is kept and plain == 7


def test_what_a_released_calls_wrote_stays_with_it() -> None:
    wrote = LoggedWrite(GONE, {1: torch.ones(2)}, (1,))
    (entry,) = restored([wrote], {"s0": 2})
    assert isinstance(entry, LoggedWrite) and entry.given is wrote.given and entry.later == (1,)
    assert entry.entry.shape == (2, 4) and wrote.entry is GONE, "the log itself stays as it is"
