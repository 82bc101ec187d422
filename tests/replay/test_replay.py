"""The replay harness: what differs has another digest and is named, what is equal has not, and runs are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from replay_cases import Case, cases
from replay_digests import Stored, differences, digests_of, write_texts
from replay_stages import STAGES, texts

ROOT = Path(__file__).resolve().parents[2]
FEW = (
    "writes",
    "remembers",
    "blocks_reading_data",
)  # in-place writes, opaque calls, a module called as it is


def gated(scale: float) -> Case:
    def function(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up * scale

    return replace(cases()["swiglu"], make=lambda: function)


def test_every_stage_has_a_text_and_kernels_take_part() -> None:
    found = texts(cases()["writes"])
    assert tuple(found) == STAGES
    assert "2 planned in the end" in found["scopes"] and " 0 fallbacks" in found["scopes"]
    assert "aten.copy_.default" in found["graph"] and "lasting writes (7, 8)" in found["graph"]
    assert "subgraph exp(v7)" in found["partition"] and "refused copy_" in found["partition"]
    assert all(f"---- {language}" in found["kernels"] for language in ("loops", "cpp", "triton"))
    assert " = kernel1(" in found["plan"] and "undo.before(" in found["plan"]
    assert "[torch.float32, [s0, s1], [s1, 1], 'cpu']" in found["plan"], "guards say what they check"


def test_a_changed_constant_is_seen_and_an_equal_run_is_not() -> None:
    one, again, other = (digests_of({"gated": texts(gated(scale))}) for scale in (2.0, 2.0, 3.0))
    assert differences(one, again) == {}
    assert differences(one, other) == {"gated": ["graph", "partition", "kernels", "plan"]}


def test_kernels_that_round_otherwise_differ_in_their_sources_alone() -> None:
    case = cases()["add_rms_norm"]
    rounded, wide = (texts(replace(case, config={"numerics": numerics})) for numerics in ("eager", "fp32"))
    assert differences(digests_of({"norm": rounded}), digests_of({"norm": wide})) == {"norm": ["kernels"]}


def test_differences_are_told_by_name_and_their_texts_are_written(tmp_path: Path) -> None:
    before = {"one": {"graph": "a", "plan": "b"}, "other": {"graph": "c", "plan": "d"}}
    after = {"one": {"graph": "a", "plan": "changed"}, "other": before["other"], "third": {"graph": "e"}}
    found = differences(digests_of(before), digests_of(after))
    assert found == {"one": ["plan"], "third": ["new"]}
    write_texts(after, tmp_path, found)
    written = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.txt")}
    assert written == {"one/plan.txt": "changed", "third/graph.txt": "e"}


def test_the_file_has_a_line_for_each_case_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    stored = Stored(Stored.empty().versions, digests_of({"b": {"graph": "x"}, "a": {"graph": "y", "plan": "z"}}))
    stored.write(path)
    assert Stored.read(path) == stored and stored.other_versions() == ""
    assert [line.strip()[:4] for line in path.read_text().splitlines()[3:5]] == ['"a":', '"b":']


def test_digests_of_another_torch_are_not_compared() -> None:
    said = Stored({**Stored.empty().versions, "torch": "1.0.0"}, {}).other_versions()
    assert "torch 1.0.0" in said and f"torch {torch.__version__.partition('+')[0]}" in said and "ACCEPT=1" in said


def test_every_case_is_stored() -> None:
    if Stored.read().other_versions():
        pytest.skip("the digests were made under other versions")
    assert sorted(Stored.read().digests) == sorted(cases())


def test_a_few_cases_have_their_stored_digests_whatever_the_hashes() -> None:
    if Stored.read().other_versions():
        pytest.skip("the digests were made under other versions")
    command = [sys.executable, "tests/replay", "--cases", "|".join(FEW)]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == f"replay: {len(FEW)} cases are equal\n"
