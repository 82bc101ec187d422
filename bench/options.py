"""What the command line asks of every benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    Attributes:
        quick: few rounds and fewer layers: shows that a benchmark runs, not a number to keep.
        compiled: measure torch.compile too, where it is not measured anyway.
        skip_compile: leave it out of the cold start, where it takes minutes.
        device: "cpu" or "cuda".
    """

    quick: bool = False
    compiled: bool = False
    skip_compile: bool = False
    device: str = "cpu"

    def command(self, benchmark: str) -> str:
        """What reproduces a row of a benchmark."""
        flags = {"--quick": self.quick, "--compile": self.compiled, "--skip-compile": self.skip_compile}
        name = "gpu" if self.device == "cuda" else benchmark
        return " ".join(["python -m bench", name, *(flag for flag, given in flags.items() if given)])

    def label(self, measured: str) -> str:
        """The name of a row: runs that are no result say so."""
        where = " on CUDA" if self.device == "cuda" else ""
        return f"{measured}{where}{' (quick)' if self.quick else ''}"
