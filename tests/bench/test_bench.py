"""The benchmarks run, and their rows say what they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("transformers", reason="the benchmarks' models need transformers; pip install 'opfusion[hf]'")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FIELDS = {
    "benchmark", "measured", "value", "unit", "target", "status", "why", "spread", "microseconds", "facts", "command",
    "environment",
}  # fmt: skip
PROVENANCE = {"machine", "cores", "threads", "python", "opfusion", "torch", "triton", "date", "load_average"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def bench_here(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> Result:
    """The command in this process, for what measures nothing: starting another takes longer than it."""
    from bench.__main__ import app

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # which the command sets: it is taken back
    return CliRunner().invoke(app, arguments)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    for row in rows:
        assert set(row) == FIELDS
        assert set(row["environment"]) >= PROVENANCE
    return rows


def test_guards_writes_a_row_whose_value_follows_from_its_sides(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    done = bench("guards", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows_of(path)
    assert row["status"] in ("met", "missed") and not row["why"]
    assert row["command"] == "python -m bench guards --quick" and row["command"] in done.stdout
    assert row["facts"]["calls"] > 0, "the entry never passed its guards"
    sides = row["microseconds"]
    assert set(sides) == {"bare", "entry", "later guards"}
    low = sides["entry"]["p20"] - sides["bare"]["p80"]
    high = sides["entry"]["p80"] + sides["later guards"]["p80"]
    assert 0 < low <= row["value"] * 1.5 and row["value"] <= high * 1.5  # medians of rounds against all samples'


def test_gpu_says_why_it_measures_nothing_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    path = tmp_path / "rows.json"
    done = bench_here(monkeypatch, ["gpu", "--quick", "--json", str(path)])
    assert done.exit_code == 0 and "Nothing was measured on a GPU" in done.output
    assert rows_of(path) == []


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    done = bench_here(monkeypatch, ["speed"])
    assert done.exit_code == 2 and "kernels" in done.output
