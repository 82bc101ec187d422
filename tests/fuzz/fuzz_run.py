"""Running many programs: generated and shrunk by hypothesis, counted, and a failure written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_check import Outcome, check, quick
from fuzz_failure import write
from fuzz_generate import programs
from fuzz_program import Program
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded


@dataclass
class Tally:
    """What a run exercised, in programs unless it says otherwise.

    Attributes:
        programs: those that fused and eager agreed on.
        fused: of these, those in which a plan with kernels answered a call.
        calls, planned, skipped: calls compared, answered by plans, and left out as torch does not specify their result.
        kernels: kernels in use at the end of each, together.
        refusals: programs that stayed eager, by reason.
        failures: scripts written.
    """

    programs: int = 0
    fused: int = 0
    calls: int = 0
    planned: int = 0
    skipped: int = 0
    kernels: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[Path] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Counts one program."""
        self.programs += 1
        self.fused += outcome.planned > 0 and outcome.kernels > 0
        self.calls += outcome.calls
        self.planned += outcome.planned
        self.skipped += outcome.skipped
        self.kernels += outcome.kernels
        if outcome.refusal:
            self.refusals[outcome.refusal] += 1

    def __str__(self) -> str:
        text = (
            f"{self.programs} programs agree, {self.fused} of them with fused kernels ({self.kernels} kernels); "
            f"{self.calls} calls, {self.planned} planned, {self.skipped} unspecified; {len(self.failures)} failures"
        )
        return "\n".join([text, *(f"  {n} stay eager: {reason}" for reason, n in self.refusals.most_common())])


def run(
    seed: int,
    count: int,
    *,
    folder: Path = Path("."),
    most_steps: int = 14,
    checked: Callable[[Program], Outcome] = check,
    tally: Tally | None = None,
) -> Tally:
    """Checks `count` programs drawn from `seed`; stops at the first that fails, once it is as small as it gets.

    Args:
        seed: the same seed draws the same programs.
        count: how many.
        folder: where a failure's script goes.
        most_steps: steps that a program may have.
        checked: compares fused and eager; raises where they differ.
        tally: counts to go on from.
    """
    tally = tally or Tally()
    smallest: list[tuple[Program, Exception]] = []

    @seeded(seed)
    @settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink], print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    @given(programs(most_steps))
    def every(program: Program) -> None:
        try:
            outcome = checked(program)
        except Exception as error:
            smallest[:] = [(program, error)]
            raise
        if not smallest:  # what is tried while shrinking does not count
            tally.add(outcome)

    with quick():
        try:
            every()
        except Exception:
            if not smallest:
                raise
            program, error = smallest[0]
            tally.failures.append(write(program, f"{type(error).__name__}: {error}", folder))
    return tally
