"""What the command line asks of every benchmark."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    Attributes:
        quick: few rounds and fewer layers: shows that a benchmark runs, not a number to keep.
        compiled: measure torch.compile too, where it is not measured anyway.
        skip_compile: leave it out of the cold start, where it takes minutes.
        device: "cpu" or "cuda".
        only: sweep: the one part to measure, of "equality", "fusion" and "time"; None measures all.
        models: sweep: a regular expression for the whole name of the model types to measure; None measures all.
        jobs: sweep: architectures measured at a time; more than one spoils times.
    """

    quick: bool = False
    compiled: bool = False
    skip_compile: bool = False
    device: str = "cpu"
    only: str | None = None
    models: str | None = None
    jobs: int = 1

    def command(self, benchmark: str) -> str:
        """What reproduces a row of a benchmark."""
        flags = {"--quick": self.quick, "--compile": self.compiled, "--skip-compile": self.skip_compile}
        name = "gpu" if self.device == "cuda" else benchmark
        given = [flag for flag, given in flags.items() if given]
        given += [f"--only {self.only}"] if self.only else []
        given += [f"--models {shlex.quote(self.models)}"] if self.models else []
        return " ".join(["python -m bench", name, *given])

    def label(self, measured: str) -> str:
        """The name of a row: runs that are no result say so."""
        where = " on CUDA" if self.device == "cuda" else ""
        return f"{measured}{where}{' (quick)' if self.quick else ''}"
