"""Decisions on disk: what is kept for other processes, and what is believed of what is found."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import fusion
from fusion.choices import stored_decisions
from fusion.choices.decision import Decision
from fusion.choices.kernel_cache import Backends

KEY = "0" * 64
FASTER = Decision(True, "faster", "50% of eager's time", 2.0, 1.0, 100, 50, 1e-8, 1e-8)


def test_what_was_measured_comes_back() -> None:
    for decision in (FASTER, Decision(False, "slower", "2"), Decision(False, "inaccurate", "off", error_fused=0.5)):
        assert stored_decisions.lasts(decision)
        assert stored_decisions.read(asdict(decision)) == decision


@pytest.mark.parametrize(
    "decision",
    [
        Decision(False, "launch_error", "RuntimeError: [enforce fail] can't allocate memory"),
        Decision(False, "unproved", "the proof failed: MemoryError"),
        Decision(False, "compile_error", "The compiler g++ hangs"),
        Decision(False, "no_backend", "No C++ compiler that runs was found"),
        Decision(True, "unmeasured", "fused by rule; profile=False"),
        Decision(True, "faster", "50% of eager's time, lower quartiles on a noisy machine", 2.0, 1.0),
    ],
    ids=lambda d: d.code,
)
def test_what_says_nothing_of_the_kernel_is_not_kept(tmp_path: Path, decision: Decision) -> None:
    backends = Backends(fusion.FusionConfig(cache_dir=tmp_path / "cache"))
    backends.remember(KEY, decision)
    assert backends.store is not None
    assert backends.store.get_json(KEY) is None
    assert backends.remembered(KEY) == decision  # in this process it stands


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "change",
    [
        {"eager_us": NAN}, {"eager_us": INF}, {"eager_us": -1.0}, {"eager_us": "2"}, {"eager_us": 10**400},
        {"fused_us": [1.0]}, {"fused_us": True}, {"bytes_before": -1}, {"bytes_before": 1.5}, {"bytes_after": 10**30},
        {"error_fused": {}}, {"error_eager": NAN}, {"fused": 1}, {"fused": False}, {"code": "no such"}, {"code": 7},
        {"code": "fuel"}, {"reason": None}, {"reason": "x" * 10_000}, {"reason": "[red]\n"}, {"reason": [["x"]]},
        {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_well_signed_decision_with_absurd_fields_is_a_miss(tmp_path: Path, change: dict[str, Any]) -> None:
    backends = Backends(fusion.FusionConfig(cache_dir=tmp_path / "cache"))
    assert backends.store is not None
    backends.store.put_json(KEY, {**asdict(FASTER), **change})
    assert backends.remembered(KEY) is None


@pytest.mark.parametrize("value", [None, 1, "x", [], [[[[]]]], {}, {"fused": True}])
def test_what_is_no_decision_is_a_miss(tmp_path: Path, value: Any) -> None:
    backends = Backends(fusion.FusionConfig(cache_dir=tmp_path / "cache"))
    assert backends.store is not None
    backends.store.put_json(KEY, value)
    assert backends.remembered(KEY) is None


def test_what_an_earlier_process_measured_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = fusion.FusionConfig(cache_dir=tmp_path / "cache")
    Backends(config).remember(KEY, FASTER)
    later = Backends(config)
    known = later.remembered(KEY)
    assert known is not None and known.reason.endswith("; measured by an earlier process")
    assert later.store is not None
    monkeypatch.setattr(later.store, "put_json", lambda *_: pytest.fail("written again"))
    later.remember(KEY, known)
