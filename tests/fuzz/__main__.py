"""`make fuzz`: random programs, fused against eager. A failure leaves a script in the working directory."""

from __future__ import annotations

import argparse
import random
import sys

import torch
from fuzz_run import Tally, run

BATCH = 100  # programs under one seed
MOST_FAILURES = 3  # in a batch, which then goes no further


def main() -> int:
    """Runs the programs; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="printed; repeats a run"
    )
    parser.add_argument("--count", type=int, default=5000, help="programs")
    parser.add_argument("--steps", type=int, default=14, help="most steps of a program")
    given = parser.parse_args()
    print(f"fuzz: seed {given.seed}, {given.count} programs", flush=True)
    torch.set_num_threads(1)
    tally = Tally()
    for k, first in enumerate(range(0, given.count, BATCH)):
        known = len(tally.failures)
        run(
            given.seed * 1000 + k,
            min(BATCH, given.count - first),
            most_steps=given.steps,
            tally=tally,
            most_failures=MOST_FAILURES,
        )
        for path in tally.failures[known:]:
            print(f"failure: {path}", flush=True)
        if k % 10 == 9:
            print(str(tally).splitlines()[0], flush=True)
    print(tally)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
