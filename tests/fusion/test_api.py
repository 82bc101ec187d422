"""fusion.record, start and stop, the scheduler by hand, and FusionHeuristics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import normal as rand
from tiny import assert_untouched, bits, close

import fusion
from fusion.frontend import manual_recording as recording_module
from fusion.patterns.errors import ConfigError, FusionError, RecordingError, StructureMismatch


@pytest.fixture(autouse=True)
def no_recording_left() -> Iterator[None]:
    """Every test ends without an active recording or mode."""
    yield
    assert not recording_module._ACTIVE
    assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def assert_swiglu(found: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
    close(found, swiglu(gate, up), swiglu(gate.double(), up.double()))


# ---- record


def test_a_block_by_name_and_position(quick: fusion.FusionConfig) -> None:
    gate, up = rand(4, 32), rand(4, 32, seed=1)
    was = bits(gate), bits(up)
    with fusion.record(gate=gate, up=up, config=quick) as recording:
        y = swiglu(gate, up)
    assert torch.equal(y, swiglu(gate, up)), "the block itself ran eagerly"
    assert_untouched(gate, was[0])
    assert_untouched(up, was[1])
    assert [s.pattern for s in recording.subgraphs] == ["SwiGLU"]
    assert recording.input_names == ("gate", "up")
    function = recording.compile()
    assert recording.compile() is function
    for rows in (4, 7, 4, 3):
        g, u = rand(rows, 32, seed=2), rand(rows, 32, seed=3)
        for found in (function(g, u), function(gate=g, up=u), function(g, up=u), recording.run(up=u, gate=g)):
            assert_swiglu(found, g, u)
    report = recording.report()
    (row,) = report.scopes
    assert row.state == "fused" and row.fused_calls >= 8 and row.fallbacks == 0
    assert {r.name for r in row.regions if r.decision == "fused"} == {"SwiGLU"}


def test_positional_inputs_have_names(quick: fusion.FusionConfig) -> None:
    a, b = rand(4, 8), rand(4, 8, seed=1)
    with fusion.record(a, b, config=quick) as recording:
        torch.exp(a) * 2 + b
    assert recording.input_names == ("arg0", "arg1")
    found = recording.compile()(b, a)
    torch.testing.assert_close(found, torch.exp(b) * 2 + a, rtol=1e-6, atol=1e-6)


def test_without_inputs_every_foreign_tensor_is_one(quick: fusion.FusionConfig) -> None:
    a, b = rand(4, 8), rand(4, 8, seed=1)
    with fusion.record(config=quick) as recording:
        y = torch.exp(a) * 2 + b
    assert len(recording.input_names) == 2
    torch.testing.assert_close(recording.run(a, b), y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recording.run(b, a), torch.exp(b) * 2 + a, rtol=1e-6, atol=1e-6)


def test_several_outputs_and_their_names(quick: fusion.FusionConfig) -> None:
    x, w = rand(4, 8), rand(8, seed=1)
    with fusion.record(x=x, w=w, config=quick) as recording:
        total = x * w + 1
        norm = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6)
        recording.output(normed=norm, total=total)
    for rows in (4, 5):
        new = rand(rows, 8, seed=7)
        found = recording.run(new, w)
        assert list(found) == ["normed", "total"]
        t = new * w + 1
        torch.testing.assert_close(found["total"], t, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            found["normed"], t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6), rtol=1e-5, atol=1e-6
        )
    with fusion.record(x=x, config=quick) as unnamed:
        a, b = torch.exp(x) + 1, torch.sin(x) * 2
    found = unnamed.run(x)
    assert list(found) == ["output0", "output1"]
    torch.testing.assert_close(found["output0"], a, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["output1"], b, rtol=1e-6, atol=1e-6)


def test_another_structure_is_an_error(quick: fusion.FusionConfig) -> None:
    gate, up = rand(4, 32), rand(4, 32, seed=1)
    with fusion.record(gate=gate, up=up, config=quick) as recording:
        swiglu(gate, up)
    function = recording.compile()
    for wrong in (
        (gate.double(), up.double()),
        (gate.bfloat16(), up.bfloat16()),
        (gate, up[0]),
        (gate[None], up[None]),
        (gate[:1], up[:1]),
        (gate, rand(32, 4).t()),
        (gate, rand(5, 32)),
    ):
        with pytest.raises(StructureMismatch, match="Record again"):
            function(*wrong)
    with pytest.raises((StructureMismatch, TypeError)):
        function(gate, None)
    with pytest.raises(StructureMismatch, match="each of them once"):
        function(gate)
    with pytest.raises(StructureMismatch, match="each of them once"):
        function(gate, up=up, down=up)
    assert_swiglu(function(gate, up), gate, up)


def test_under_autograd_it_still_computes(quick: fusion.FusionConfig) -> None:
    gate, up = rand(4, 32).requires_grad_(), rand(4, 32, seed=1)
    with fusion.record(gate=gate, up=up, config=quick) as recording:
        swiglu(gate, up)
    found = recording.run(gate, up)
    assert_swiglu(found, gate.detach(), up)


# ---- start and stop


def test_start_and_stop(quick: fusion.FusionConfig) -> None:
    gate, up = rand(4, 32), rand(4, 32, seed=1)
    fusion.start_recording(gate=gate, up=up, config=quick)
    y = swiglu(gate, up)
    graph = fusion.stop_recording(y=y)
    assert graph.subgraphs[0].pattern == "SwiGLU"
    found = graph.run(gate=up, up=gate)
    assert_swiglu(found["y"] if isinstance(found, dict) else found, up, gate)
    fusion.start_recording(config=quick)
    torch.exp(gate) + up
    assert len(fusion.stop_recording().input_names) == 2


def test_recording_in_a_recording_and_stop_without_start(quick: fusion.FusionConfig) -> None:
    with pytest.raises(RecordingError, match="No recording is active"):
        fusion.stop_recording()
    x = rand(4, 8)
    with fusion.record(x=x, config=quick) as outer:
        with pytest.raises(RecordingError, match="active already"):
            fusion.start_recording(x=x)
        with pytest.raises(RecordingError, match="active already"), fusion.record(x=x):
            pass
        y = torch.exp(x) * 2
    torch.testing.assert_close(outer.run(x), y, rtol=1e-6, atol=1e-6)
    with pytest.raises(RecordingError, match="over"), outer:
        pass


def test_a_recording_in_progress_has_no_graph(quick: fusion.FusionConfig) -> None:
    x = rand(4, 8)
    with fusion.record(x=x, config=quick) as recording:
        with pytest.raises(RecordingError, match="not over"):
            _ = recording.graph
        torch.exp(x) + 1
    assert recording.graph.nodes


def test_an_error_in_the_block_ends_the_recording(quick: fusion.FusionConfig) -> None:
    x = rand(4, 8)
    with pytest.raises(ZeroDivisionError), fusion.record(x=x, config=quick) as recording:
        torch.exp(x)
        raise ZeroDivisionError
    with pytest.raises(RecordingError):
        _ = recording.graph


def test_blocks_that_cannot_be_replayed_say_why(quick: fusion.FusionConfig) -> None:
    x, foreign = rand(4, 8), rand(8)
    with fusion.record(x=x, config=quick) as recording:
        y = x * x[0].tolist()[0]
    assert torch.equal(y, x * x[0, 0])
    with pytest.raises(RecordingError, match="data_read"):
        recording.compile()
    with fusion.record(x=x, config=quick) as recording:
        torch.exp(x) * foreign
    with pytest.raises(RecordingError, match="unknown_tensor"):
        _ = recording.graph
    with fusion.record(x=x, config=quick) as recording:
        x * 2
        x.unsqueeze_(0)
    with pytest.raises(RecordingError, match="outer_write"):
        _ = recording.graph
    x.squeeze_(0)
    with pytest.raises(RecordingError, match="no torch operator"), fusion.record(config=quick):
        pass
    with pytest.raises(RecordingError, match="takes tensors"):
        fusion.record(x=3)  # type: ignore[arg-type]


def test_an_enabled_model_inside_a_recording(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Sigmoid()).eval(), quick)
    x = rand(4, 8)
    with torch.no_grad():
        for _ in range(3):
            model(x)
    with fusion.record(x=x, config=quick) as recording:
        y = model(x) * 2
    torch.testing.assert_close(recording.run(x), y, rtol=1e-6, atol=1e-6)


# ---- values


def test_graphs_are_values(quick: fusion.FusionConfig) -> None:
    def subgraph(rows: int) -> fusion.SubGraph:
        gate, up = rand(rows, 32), rand(rows, 32, seed=1)
        with fusion.record(gate=gate, up=up, config=quick) as recording:
            swiglu(gate, up)
        return recording.subgraphs[0]

    first, second = subgraph(4), subgraph(6)
    assert first == second and hash(first) == hash(second) and first.digest == second.digest
    assert fusion.SubGraph.from_json(json.loads(json.dumps(first.to_json()))) == first
    with pytest.raises(AttributeError):
        first.nodes = ()  # type: ignore[misc]


@pytest.mark.slow
def test_digests_are_the_same_in_another_process(quick: fusion.FusionConfig) -> None:
    gate, up = rand(4, 32), rand(4, 32, seed=1)
    with fusion.record(gate=gate, up=up, config=quick) as recording:
        swiglu(gate, up)
    mine = [recording.subgraphs[0], fusion.create_swiglu_pattern(), fusion.create_add_rms_norm_pattern()]
    script = (
        "import json, sys, torch, fusion\n"
        "g, u = torch.ones(4, 32), torch.ones(4, 32)\n"
        "with fusion.record(gate=g, up=u) as r: torch.nn.functional.silu(g) * u\n"
        "print(r.subgraphs[0].digest, fusion.create_swiglu_pattern().digest,"
        " fusion.create_add_rms_norm_pattern().digest, fusion.SubGraph.from_json(json.loads(sys.argv[1])).digest)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps(mine[0].to_json())],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert run.stdout.split() == [*(g.digest for g in mine), mine[0].digest]


# ---- scheduler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dispatch_of_swiglu(dtype: torch.dtype, quick: fusion.FusionConfig) -> None:
    scheduler = fusion.FusionScheduler(quick)
    pattern = fusion.create_swiglu_pattern()
    for shape in ((4, 32), (6, 32), (4, 32), (2, 3, 16), (2, 5, 16), (64,)):
        gate, up = rand(*shape, dtype=dtype), rand(*shape, dtype=dtype, seed=1)
        for _ in range(3):
            found = scheduler.dispatch(pattern, {"up": up, "gate": gate})
            assert list(found) == ["output"]
            assert_swiglu(found["output"], gate, up)
    ((dispatcher, _),) = scheduler._dispatchers.values()
    statistics = dispatcher.scope.statistics
    assert statistics.planned[0] >= 6 and statistics.fallbacks == 0
    assert all(c.kernels for k in dispatcher.scope.known for c, _ in k.plans.values())
    with pytest.raises(StructureMismatch, match="gate"):
        scheduler.dispatch(pattern, {"gate": gate})
    with pytest.raises(StructureMismatch):
        scheduler.dispatch(pattern, {"gate": gate, "up": up, "down": up})
    with pytest.raises(FusionError):
        scheduler.dispatch("swiglu", {"gate": gate, "up": up})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dispatch_of_add_rms_norm(dtype: torch.dtype, quick: fusion.FusionConfig) -> None:
    scheduler = fusion.FusionScheduler(quick)
    pattern = fusion.create_add_rms_norm_pattern()
    assert len(pattern.outputs) == 2

    for rows in (4, 6, 4, 5):
        inputs = {}
        for seed, name in enumerate(pattern.inputs):
            rank = len(pattern.spec[name].shape)
            inputs[name] = rand(*((64,) if rank == 1 else (rows, 64)), dtype=dtype, seed=seed)
        for _ in range(2):
            found = scheduler.dispatch(pattern, inputs)
            assert tuple(found) == pattern.outputs
            x, residual, weight = (inputs[n] for n in sorted(inputs, key=lambda n: inputs[n].ndim, reverse=True))
            total = x + residual
            assert any(torch.equal(v, total) for v in found.values()), "the sum is one of the outputs"
            normed = next(v for v in found.values() if not torch.equal(v, total))
            wide = total.double()
            exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight.double()
            # three roundings to the dtype on the way: sum, normalised, weighted
            assert float((normed.double() - exact).abs().max()) <= 3 * torch.finfo(dtype).eps * float(exact.abs().max())
    ((dispatcher, _),) = scheduler._dispatchers.values()
    assert dispatcher.scope.statistics.planned[0] >= 3
    assert all(c.kernels for k in dispatcher.scope.known for c, _ in k.plans.values())


def test_dispatch_of_a_recording(quick: fusion.FusionConfig) -> None:
    scheduler = fusion.FusionScheduler(quick)
    gate, up = rand(4, 32), rand(4, 32, seed=1)
    with fusion.record(gate=gate, up=up, config=quick) as recording:
        swiglu(gate, up)
    assert_swiglu(scheduler.dispatch(recording, {"gate": gate, "up": up})["output"], gate, up)
    with pytest.raises(StructureMismatch):
        scheduler.dispatch(recording, {"gate": gate})


def test_cache_counts_and_clearing(tmp_path: Any) -> None:
    config = fusion.FusionConfig(profile=False, cache_dir=tmp_path)
    pattern = fusion.create_swiglu_pattern()
    inputs = {"gate": rand(4, 32), "up": rand(4, 32, seed=1)}
    first = fusion.FusionScheduler(config)
    assert first.cache_stats()["misses"] == first.cache_stats()["hits"] == 0
    for _ in range(3):
        first.dispatch(pattern, inputs)
    stats = first.cache_stats()
    assert (stats["hits"], stats["misses"], stats["kernels"], stats["decisions"]) == (0, 1, 1, 1)
    second = fusion.FusionScheduler(config)
    for _ in range(3):
        second.dispatch(pattern, inputs)
    assert (second.cache_stats()["hits"], second.cache_stats()["misses"]) == (1, 0)
    second.clear_cache()
    assert second.cache_stats()["kernels"] == second.cache_stats()["decisions"] == 0
    assert_swiglu(second.dispatch(pattern, inputs)["output"], inputs["gate"], inputs["up"])
    third = fusion.FusionScheduler(config)
    third.dispatch(pattern, inputs)
    assert third.cache_stats()["misses"] + third.cache_stats()["hits"] == 1


# ---- heuristics


def test_should_fuse_gives_its_reason() -> None:
    pattern = fusion.create_swiglu_pattern()
    assert fusion.FusionHeuristics().should_fuse(pattern).fused
    small = fusion.FusionHeuristics(fusion.FusionConfig(min_nodes=9)).should_fuse(pattern)
    assert (small.fused, small.code) == (False, "too_small") and "min_nodes=9" in small.reason
    sizes = dict.fromkeys(pattern.symbols, 8)
    few = fusion.FusionHeuristics(fusion.FusionConfig(min_tensor_elements=10**6)).should_fuse(pattern, sizes)
    assert (few.fused, few.code) == (False, "few_elements")
    yes = fusion.FusionHeuristics().should_fuse(pattern, sizes)
    assert yes.fused and yes.bytes_before > yes.bytes_after > 0


def test_profile_and_decide_measures_both(quick: fusion.FusionConfig) -> None:
    pattern = fusion.create_swiglu_pattern()
    dims = {name: len(pattern.spec[name].shape) for name in pattern.inputs}
    inputs = {n: rand(*[64] * d, dtype=pattern.spec[n].dtype, seed=i) for i, (n, d) in enumerate(dims.items())}
    measured = fusion.FusionHeuristics(quick.replace(profile=True))
    for given in (inputs, list(inputs.values())):
        decision = measured.profile_and_decide(pattern, given)
        assert decision.eager_us > 0 and decision.fused_us > 0 and decision.reason
        assert decision.code in ("faster", "slower") and decision.fused == (decision.code == "faster")
    assert measured.profile_and_decide(pattern, inputs, lambda *a: 1 / 0).code == "launch_error"
    wrong = measured.profile_and_decide(pattern, inputs, lambda *a: torch.zeros_like(a[0]))
    assert (wrong.fused, wrong.code) == (False, "inaccurate") and wrong.error_fused > wrong.error_eager
    first = next(iter(inputs))
    with pytest.raises(StructureMismatch):
        measured.profile_and_decide(pattern, {**inputs, first: inputs[first].long()})


def test_bad_configs_and_models_are_errors() -> None:
    with pytest.raises(ConfigError, match="fusion_ratio"):
        fusion.enable(torch.nn.Linear(2, 2), {"fusion_ration": 0.5})
    with pytest.raises(FusionError, match="Module"):
        fusion.enable(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(FusionError, match="not under fusion"):
        fusion.report(torch.nn.Linear(2, 2))
