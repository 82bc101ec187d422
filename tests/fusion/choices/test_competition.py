"""Several kernels for one region: each is proved and timed, and the fastest that is accurate is used.

Times are given by the tests: none depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import EXAMPLES, trace
from numpy_backend import NumpyBackend, registered

import fusion
from fusion.choices import heuristics, kernel_cache
from fusion.choices.decision import Decision, Outcome, best
from fusion.choices.heuristics import FusionHeuristics
from fusion.kernels.backend import backend_named
from fusion.reporting.model import FusionReport
from fusion.reporting.rows import RegionReport
from fusion.runtime.measure import Comparison

needs_compiler = pytest.mark.skipif(backend_named("cpp").why_unavailable() is not None, reason="no C++ compiler")
pytestmark = pytest.mark.usefixtures("without_gradients")

EAGER = 100.0
Times = dict[str, float]


@pytest.fixture
def numpy() -> Iterator[NumpyBackend]:
    with registered(NumpyBackend()) as made:
        yield made


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def measuring(monkeypatch: pytest.MonkeyPatch, numpy: NumpyBackend, times: Times) -> list[str]:
    """Gives candidates these times, with 100 us for eager; the labels of those that are timed, as they are."""
    timed: list[str] = []
    several = len(numpy.passes) > 1

    def compare(first: Callable[[], object], second: Callable[[], object], **_: Any) -> Comparison:
        before = dict(numpy.calls)
        second()
        ran = [passes for passes in numpy.passes if numpy.calls.get(passes, 0) > before.get(passes, 0)]
        label = f"numpy {ran[0]}" if ran and several else "numpy" if ran else "cpp"
        timed.append(label)
        return Comparison(EAGER, times[label], EAGER, times[label], 0.0, 0.0)

    monkeypatch.setattr(heuristics, "compare", compare)
    return timed


def program(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x) * y + 1.0


def fused_by(tmp_path: Path, **config: Any) -> tuple[RegionReport, str]:
    """The row of `program`'s region, its results checked, and the backend of the kernel in use."""
    fused = fusion.fuse(program, {"cache_dir": tmp_path, **config})
    for rows in (3, 5, 4, 6):
        x, y = torch.randn(rows, 16), torch.randn(rows, 16)
        torch.testing.assert_close(fused(x, y), program(x, y), rtol=1e-6, atol=1e-6)  # roundings near 1
    (row,) = fusion.report(fused).scopes[0].regions
    return row, row.backend


def codes(row: RegionReport) -> dict[str, str]:
    return {outcome.candidate: outcome.code for outcome in row.candidates}


@needs_compiler
@pytest.mark.parametrize("faster", ["numpy", "cpp"])
def test_the_faster_of_two_backends_is_used(
    faster: str, numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = {"cpp": 40.0, "numpy": 50.0} | {faster: 20.0}
    timed = measuring(monkeypatch, numpy, times)
    row, backend = fused_by(tmp_path)
    assert backend == faster
    assert timed == ["cpp", "numpy"]
    assert (row.code, row.eager_us, row.fused_us) == ("faster", EAGER, 20.0)
    assert {o.candidate: o.fused_us for o in row.candidates} == times
    assert codes(row) == {"cpp": "faster", "numpy": "faster"}
    assert all(o.error_fused is not None and o.error_eager is not None for o in row.candidates)


@needs_compiler
def test_a_faster_one_that_is_wrong_is_not_used(
    numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numpy.factor = 1.5
    measuring(monkeypatch, numpy, {"cpp": 60.0, "numpy": 1.0})
    row, backend = fused_by(tmp_path)
    assert (backend, row.fused_us) == ("cpp", 60.0)
    assert codes(row) == {"cpp": "faster", "numpy": "inaccurate"}
    assert row.candidates[1].fused_us is None


@needs_compiler
def test_one_that_fails_its_trial_leaves_the_region_to_the_other(
    numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = kernel_cache.make_launcher

    def broken(kernel: Any) -> Any:
        launch = make(kernel)
        return launch if kernel.target == "numpy" else lambda *args: launch(*args) * 2

    monkeypatch.setattr(kernel_cache, "make_launcher", broken)
    measuring(monkeypatch, numpy, {"numpy": 60.0})
    row, backend = fused_by(tmp_path)
    assert backend == "numpy"
    assert codes(row) == {"cpp": "inaccurate", "numpy": "faster"}
    assert "made data" in row.candidates[0].reason


def test_two_schedules_of_one_backend_compete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with registered(NumpyBackend(passes=(1, 2))) as numpy:
        timed = measuring(monkeypatch, numpy, {"numpy 1": 70.0, "numpy 2": 30.0})
        row, backend = fused_by(tmp_path, backend="numpy")
        assert (backend, row.fused_us, timed) == ("numpy", 30.0, ["numpy 1", "numpy 2"])
        assert codes(row) == {"numpy 1": "faster", "numpy 2": "faster"}


def test_none_is_used_where_eager_is_faster(
    numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measuring(monkeypatch, numpy, {"numpy": 90.0})
    fused = fusion.fuse(program, {"cache_dir": tmp_path, "backend": "numpy"})
    for rows in (3, 5, 4):
        fused(torch.randn(rows, 16), torch.randn(rows, 16))
    row = fusion.report(fused).scopes[0].regions[0]
    assert (row.decision, row.code, row.backend, row.candidates) == ("refused", "slower", "eager", ())


@needs_compiler
def test_a_later_process_proves_the_choice_and_times_nothing(
    numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = measuring(monkeypatch, numpy, {"cpp": 60.0, "numpy": 10.0})
    first, _ = fused_by(tmp_path)
    count = len(timed)
    again, backend = fused_by(tmp_path)
    assert backend == "numpy" and len(timed) == count
    assert "earlier process" in again.reason and again.candidates == first.candidates


@needs_compiler
def test_where_the_choice_is_wrong_in_a_later_process_the_others_compete(
    numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = measuring(monkeypatch, numpy, {"cpp": 60.0, "numpy": 10.0})
    assert fused_by(tmp_path)[1] == "numpy"
    numpy.factor = 1.5
    row, backend = fused_by(tmp_path)
    assert backend == "cpp" and timed == ["cpp", "numpy", "cpp"]
    assert codes(row) == {"cpp": "faster", "numpy": "inaccurate"}


@needs_compiler
def test_another_candidate_is_another_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    idle = NumpyBackend()
    timed = measuring(monkeypatch, idle, {"cpp": 60.0, "numpy": 10.0})
    assert fused_by(tmp_path)[1] == "cpp"
    with registered(idle):
        assert fused_by(tmp_path)[1] == "numpy"
    assert fused_by(tmp_path)[1] == "cpp"
    assert timed == ["cpp", "cpp", "numpy"]


@needs_compiler
def test_a_subgraph_that_is_decided_on_alone_has_the_same_candidates(
    numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measuring(monkeypatch, numpy, {"cpp": 60.0, "numpy": 10.0})
    inputs = EXAMPLES["swiglu"].inputs()
    graph = trace(EXAMPLES["swiglu"].fn, *inputs)
    decision = FusionHeuristics(fusion.FusionConfig(cache_dir=tmp_path)).profile_and_decide(graph, inputs)
    assert (decision.fused, decision.chosen, decision.fused_us) == (True, "numpy", 10.0)
    assert [outcome.candidate for outcome in decision.candidates] == ["cpp", "numpy"]


@needs_compiler
def test_the_report_shows_every_candidate(numpy: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measuring(monkeypatch, numpy, {"cpp": 60.0, "numpy": 10.0})
    fused = fusion.fuse(program, {"cache_dir": tmp_path})
    for rows in (3, 5, 4):
        fused(torch.randn(rows, 16), torch.randn(rows, 16))
    report = fusion.report(fused)
    assert "candidates: cpp faster 60.0 us, numpy faster 10.0 us" in str(report)
    assert FusionReport.from_json(report.to_json()) == report


# ---- the rule alone

SLOW = Decision(True, "faster", "80%", 100.0, 80.0)
FAST = Decision(True, "faster", "60%", 50.0, 30.0)
WRONG = Decision(False, "inaccurate", "off", error_eager=0.0, error_fused=float("inf"))
BY_RULE = Decision(True, "unmeasured", "profile=False")


def test_the_least_share_of_eagers_time_wins() -> None:
    assert best([("a", SLOW), ("b", FAST)]).chosen == "b"
    assert best([("b", FAST), ("a", SLOW)]).chosen == "b"
    assert best([("a", WRONG), ("b", SLOW)]).chosen == "b"


def test_without_times_the_first_that_is_accurate_wins() -> None:
    assert best([("a", WRONG), ("b", BY_RULE), ("c", BY_RULE)]).chosen == "b"


def test_where_none_is_usable_the_first_says_why() -> None:
    decision = best([("a", WRONG), ("b", Decision(False, "slower", "2"))])
    assert (decision.fused, decision.code, decision.chosen) == (False, "inaccurate", "")
    assert decision.candidates[0] == Outcome("a", "inaccurate", "off", error_eager=0.0)


def test_a_decision_on_no_candidate_has_no_candidates() -> None:
    assert best([("", Decision(False, "no_backend", "none"))]).candidates == ()
