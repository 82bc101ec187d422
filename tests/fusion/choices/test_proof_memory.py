"""Proofs and recordings in little memory: what they hold, and that they miss nothing for it."""

import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from thorough import FULL

import fusion
from fusion.capture import released_memory
from fusion.choices import proof
from fusion.patterns.graph import SubGraph
from fusion.patterns.verify import accept, accept_parts

pytestmark = pytest.mark.slow
QUICK = {"profile": False, "min_nodes": 1, "min_tensor_elements": 0, "enable_cache": False}


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
    return F.silu((h * w).to(x.dtype))


def columns(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x.float() * w, 0).to(x.dtype) * 2


def everything(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x.float() * w + 1).pow(2).mean()


class Sizes:
    """How large the tensors are that double precision is asked for, and what is compared in the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.elements: list[int] = []
        run = proof.run_fp64

        def noting(graph: SubGraph, inputs: Any, sizes: Any) -> Any:
            self.elements.append(max(t.numel() for t in inputs.values()))
            return run(graph, inputs, sizes)

        monkeypatch.setattr(proof, "run_fp64", noting)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """Proofs that count 1 MiB as much."""
    monkeypatch.setattr(proof, "SLICE_BYTES", 1 << 20)
    monkeypatch.setattr(proof, "_WHOLE_BYTES", 1 << 20)
    monkeypatch.setattr(proof, "_KEEPS", 16)
    return Sizes(monkeypatch)


def proved(function: Callable[..., Any], x: torch.Tensor, w: torch.Tensor) -> Any:
    """The report's only region."""
    fused = fusion.fuse(function, QUICK)
    with torch.no_grad():
        torch.testing.assert_close(fused(x, w), function(x, w))
        torch.testing.assert_close(fused(x, w), function(x, w), rtol=2e-2, atol=1e-4)
    (region,) = fused.report().scopes[0].regions
    return region


@pytest.mark.parametrize(("function", "slices"), [(norm, True), (columns, True), (everything, False)])
def test_a_large_kernel_is_proved_on_slices_or_on_few_elements(
    little: Sizes, function: Callable[..., Any], slices: bool
) -> None:
    x, w = torch.randn(1111, 300).bfloat16(), torch.randn(300)
    assert proved(function, x, w).decision == "fused"
    assert max(little.elements) < x.numel() / 4
    assert (sum(little.elements) >= x.numel()) == slices  # slices are all of it


def judged(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], change: Callable[[torch.Tensor], None]
) -> tuple[str, str]:
    """What is decided on a kernel whose results, at full size, are changed."""
    prove = proof.prove

    def changed(graph: SubGraph, tensors: Any, values: Any, fused: Any, again: Any) -> Any:
        change(fused)
        return prove(graph, tensors, values, fused, again)

    monkeypatch.setattr("fusion.choices.heuristics.prove", changed)
    x, w = torch.randn(1111, 300).bfloat16(), torch.randn(300)
    region = proved(function, x, w)
    return region.decision, region.code


def _late(result: torch.Tensor) -> None:
    result.view(-1)[-1] += 0.5


def _nan(result: torch.Tensor) -> None:
    result.view(-1)[result.numel() // 2] = math.nan


@pytest.mark.parametrize("function", [norm, columns, everything])
@pytest.mark.parametrize("change", [_late, _nan])
def test_one_wrong_element_of_a_large_result_is_found(
    little: Sizes, monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], change: Callable[[torch.Tensor], None]
) -> None:
    assert judged(monkeypatch, function, change) == ("refused", "inaccurate")


def test_a_region_that_only_looks_like_rows_is_proved_as_a_whole(little: Sizes) -> None:
    """A scan needs the rows before its own: slices do not agree, and what they say is not believed."""
    x, w = torch.randn(1200, 256).bfloat16(), torch.ones(256)

    def scans(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.flip(torch.tanh(x.float() * w), (0,)).to(x.dtype) + x

    assert proved(scans, x, w).decision == "fused"


def test_parts_are_judged_as_the_whole_is() -> None:
    eager = torch.randn(40, 30).bfloat16()
    exact = eager.double() + torch.randn(40, 30).double() * 1e-2
    exact[3] += 0.3  # eager is off by much in one part only: the rule counts its worst element of all
    for bad in (0.0, 0.2, 5.0):
        fused = (exact + bad * (torch.arange(40.0)[:, None] == 35)).bfloat16()
        parts = [tuple(t[k : k + 7] for t in (fused, eager, exact)) for k in range(0, 40, 7)]
        whole, pieces = accept(fused, eager, exact), accept_parts(parts)
        assert (whole.ok, whole.error_eager, whole.error_fused) == (pieces.ok, pieces.error_eager, pieces.error_fused)
        assert whole.ok == (bad < 1)


def test_comparing_in_pieces_names_the_same_element(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = torch.zeros(5, 1000)
    fused = eager.clone()
    fused[3, 701] = 1.0
    whole = accept(fused, eager, eager.double())
    monkeypatch.setattr("fusion.patterns.verify._MOST_ELEMENTS", 600)
    assert accept(fused, eager, eager.double()) == whole
    assert "[3, 701]" in whole.reason


# ---- recordings


def test_a_recording_lets_go_of_what_the_forward_has_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released_memory, "_LARGE", 1)
    left: list[set[int]] = []
    sweep = released_memory.Forgotten.sweep

    def counting(self: released_memory.Forgotten) -> None:
        sweep(self)
        left.append({t.untyped_storage()._cdata for n, t in self._real.items() if n[0] == "v" and not t.is_meta})

    monkeypatch.setattr(released_memory.Forgotten, "sweep", counting)

    def chain(x: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = torch.tanh(x) * 2
        kept = x.t()[1:]
        x = torch.sigmoid(x)
        return kept.t().sum(-1) + x.sum(-1)

    x = torch.randn(30, 40)
    function = fusion.fuse(chain, QUICK)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(function(x), chain(x))
    assert max(map(len, left)) <= 4
    assert function.report().scopes[0].state == "fused"


class Writes(torch.nn.Module):
    """Keeps views, writes to what it made, and reads both afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = torch.tanh(x) * 2
        view = made[1:]
        made.mul_(3)
        other = torch.zeros_like(made)
        other[:, :5] = view.sum(0)[:5]
        made = made + other
        del other
        parts = torch.empty(made.shape[0], 2 * made.shape[1])
        parts[:, : made.shape[1]] = made
        parts[:, made.shape[1] :] = torch.sigmoid(made)
        return torch.relu(parts).sum(-1) + view.sum()


def test_letting_go_leaves_results_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released_memory, "_LARGE", 1)
    model = torch.nn.ModuleList([Writes() for _ in range(3)]).eval()  # the second follows the first's recording
    for module in model:
        fusion.enable(module, QUICK)
    plain = Writes()
    with torch.no_grad():
        for rows in (4, 6, 4, 9):
            x = torch.randn(rows, 16)
            for module in model:
                torch.testing.assert_close(module(x), plain(x))


def test_memory_that_numpy_has_seen_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does not resize it any more."""
    monkeypatch.setattr(released_memory, "_LARGE", 1)
    real = {"v": torch.ones(8)}
    forgotten = released_memory.Forgotten(real, {id(real["v"]): "v"})
    forgotten.watch("v", real["v"])
    real["v"].numpy()
    forgotten.sweep()
    assert not forgotten._watched and real["v"].shape == (8,)


def test_what_a_plan_was_proved_on_is_gone_after_the_call() -> None:
    """At a new size, too, and without the garbage collector: 128 MB of it would not be there for the next call."""
    fused, rows = fusion.fuse(norm, QUICK), 4321
    w = torch.randn(16)

    def alive() -> list[Any]:
        return [t.shape for t in gc.get_objects() if type(t) is torch.Tensor and t.shape[:1] == (rows,)]

    with torch.no_grad():
        fused(torch.randn(3, 16).bfloat16(), w)
        gc.collect()
        gc.disable()
        try:
            fused(torch.randn(rows, 16).bfloat16(), w)
            assert not alive()
        finally:
            gc.enable()
    assert fused.report().scopes[0].state == "fused"


# ---- all of it

_PROGRAM = """
import sys, torch, fusion
from test_proof_memory import norm

def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) << 10

def peak(call):
    open("/proc/self/clear_refs", "w").write("5")  # the greatest size starts anew
    before = status("VmRSS")
    call()
    return status("VmHWM") - before

x, w = torch.randn(4096, 4096).bfloat16(), torch.randn(4096)
fused = fusion.fuse(norm, {"profile": sys.argv[1] == "profile", "enable_cache": False})
with torch.no_grad():
    norm(x[:8], w)
    eager = peak(lambda: norm(x, w))
    first = peak(lambda: fused(x, w))
print(eager, first, fused.report().scopes[0].state)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("profile", ["profile", "rule"] if FULL else ["profile"])
def test_the_first_call_with_a_large_activation_takes_little_more_than_eager(profile: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((os.path.dirname(__file__), *sys.path))}
    command = [sys.executable, "-c", _PROGRAM, profile]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    eager, first, state = done.stdout.split()
    assert state in ("fused", "unfused")  # by rule, or as it was measured
    # 96 MiB: what recording, compiling and measuring take once, whatever the activation; 25 to 70 were seen, by the
    # run. The fault took 6.8x.
    assert int(first) <= 1.3 * int(eager) + (96 << 20)
