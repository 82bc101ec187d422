"""The command line: what it prints, what it writes, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fusion import demo_model, doctor
from fusion.cli import app
from fusion.demo import DemoOptions, Timing, compare, tokens_within
from fusion.demo_model import build_model
from fusion.kernels.backend import Finding
from fusion.kernels.backends.cpp.backend import KERNELS as CPU_KERNELS
from fusion.kernels.backends.triton.backend import KERNELS as GPU_KERNELS
from fusion.patterns.errors import ConfigError
from fusion.reporting.model import FusionReport

pytest.importorskip("transformers", reason="the demo needs transformers; pip install 'opfusion[hf]'")

TINY = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 199,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return path


def call(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environ)


def error_line(result: Result) -> str:
    """The single line an error leaves on stderr."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0 and result.stdout == f"opfusion {doctor.version_of('opfusion')}\n"


def test_demo_runs_both_sides_and_writes_what_it_prints(tiny: Path, tmp_path: Path) -> None:
    written = tmp_path / "out.json"
    options = ["--config", str(tiny), "--prompt-len", "24", "--new-tokens", "6", "--dtype", "float32"]
    environ = {"FUSION_CACHE_DIR": str(tmp_path / "cache"), "FUSION_PROFILE": "0"}  # fuse whatever the times say
    result = call("demo", *options, "--json", str(written), **environ)
    assert result.exit_code == 0, result.output
    document = json.loads(written.read_text())
    report = FusionReport.from_json(json.dumps(document["report"]))
    assert sum(scope.fused_calls for scope in report.scopes) > 0, "the fused path did not run"
    assert sum(scope.eager_calls for scope in report.scopes) > 0
    assert {row.decision for row in report.regions} & {"fused"}
    assert document["agreement"]["steps"] == 6 and document["agreement"]["differences"] == []
    assert document["seconds"]["decode"]["fused"]["runs"] == 6
    # The acceptance rule is per kernel; over a whole model the bound is 1.5x eager's own error. One fp32 ulp of
    # the largest logit is added, because a tiny model's error is a few of them.
    assert document["agreement"]["reference"] == "float64"
    ulp = 2.0**-23
    assert document["agreement"]["fused_error"] <= 1.5 * document["agreement"]["eager_error"] + ulp
    for words in ("6 of 6 the same", "prefill, 24 tokens", "decode, one token", "Totals", str(written)):
        assert words in result.stdout


@pytest.mark.slow
def test_a_demo_whose_prefills_take_long_makes_one_of_each(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.demo.PREFILL_SECONDS", 0.0)
    written = tmp_path / "out.json"
    options = ["--config", str(tiny), "--new-tokens", "2", "--dtype", "float32", "--layers", "1"]
    result = call("demo", *options, "--json", str(written), FUSION_CACHE_DIR=str(tmp_path / "cache"))
    assert result.exit_code == 0, result.output
    seconds = json.loads(written.read_text())["seconds"]
    assert [seconds["prefill"][side]["runs"] for side in ("eager", "fused")] == [1, 1]
    assert result.stdout.count("ms (once)") == 2 and "2 of 2 the same" in result.stdout


def test_weights_of_a_checkpoint_folder_are_used(tmp_path: Path, tiny: Path) -> None:
    saved = build_model("qwen3", tiny, "float32", 2, 7)
    saved.save_pretrained(tmp_path / "checkpoint")
    loaded = build_model("qwen3", tmp_path / "checkpoint", "float32", None, 0)
    assert torch.equal(saved.model.embed_tokens.weight, loaded.model.embed_tokens.weight)


@pytest.mark.parametrize("name", sorted(demo_model.SHAPES))
def test_named_shapes_are_the_published_ones(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, **demo_model.SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # Qwen/Qwen3-0.6B and meta-llama/Llama-3.2-1B, tied embeddings counted once.
    assert sum(p.numel() for p in model.parameters()) == {"qwen3": 596_049_920, "llama": 1_235_814_400}[name]


def test_layers_and_seed_are_honoured(tiny: Path) -> None:
    one, two, same = (build_model("qwen3", tiny, "bfloat16", 2, seed) for seed in (0, 1, 0))
    weights = [m.model.embed_tokens.weight for m in (one, two, same)]
    assert len(one.model.layers) == 2 and weights[0].dtype is torch.bfloat16 and not one.training
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(("per_token", "tokens"), [(1e-4, 256), (0.04, 160), (0.11, 32), (3.0, 32)])
def test_a_slow_machine_has_a_short_prefill(per_token: float, tokens: int) -> None:
    assert tokens_within(7.0, per_token) == tokens


def test_a_differing_token_is_shown_with_its_distance(tiny: Path) -> None:
    model = build_model("qwen3", tiny, "float32", 2, 0)
    prompt = torch.arange(5)[None]
    with torch.inference_mode():
        exact = model(input_ids=prompt, logits_to_keep=1).logits[0]
        first, second = exact[0].topk(2).indices.tolist()
        wrong = exact.clone()
        wrong[0, second] = exact[0, first] + 1
        options = DemoOptions(dtype="float32", new_tokens=1)
        agreement = compare(model, options, prompt, torch.tensor([first]), {"eager": exact, "fused": wrong})
    (difference,) = agreement.differences
    gap = (exact[0, first] - exact[0, second]).item()
    assert (difference.step, difference.eager, difference.fused) == (0, first, second)
    # The reference is the fp64 run, `gap` the fp32 one: apart by fp32 error, below 64 * 2**-24 for logits below 1.
    assert difference.gap == pytest.approx(gap, abs=64 * 2**-24)
    assert agreement.reference == "float64" and not agreement.bit_equal
    assert agreement.fused_error == pytest.approx(gap + 1, abs=64 * 2**-24)


def test_timing_takes_percentiles() -> None:
    assert Timing.of([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == Timing(2.0, 3.5, 5.0, 6)
    assert Timing.of([1.0]) == Timing(1.0, 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "names no model_type"),
        ('{"model_type": "qwen33"}', "is no configuration of this transformers"),
        ('{"model_type": "clip"}', "No causal language model"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    line = error_line(call("demo", "--config", str(path), "--json", str(tmp_path / "out.json")))
    assert line.startswith("fusion demo: ") and words in line and len(line) < 500
    with pytest.raises(ConfigError, match=words):
        build_model("qwen3", path, "float32", None, 0)


def test_a_report_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    assert "--json" in error_line(call("demo", "--json", str(tmp_path / "missing" / "out.json")))


def test_an_unexpected_error_is_one_line_and_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(doctor, "examine", fail)
    assert "--debug doctor" in error_line(call("doctor"))
    result = call("--debug", "doctor")
    assert result.exit_code == 2 and "Traceback" in result.stderr


def test_a_bad_variable_is_one_line() -> None:
    line = error_line(call("doctor", FUSION_BACKND="cpp"))
    assert "FUSION_BACKND" in line and "Did you mean FUSION_BACKEND?" in line


def test_doctor_agrees_with_itself(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    result = call("doctor", FUSION_CACHE_DIR=str(folder))
    findings = doctor.examine(None)
    assert result.exit_code == (0 if doctor.main_job_works(findings) else 1)
    for words in ("python", torch.__version__, "C++ compiler", CPU_KERNELS, GPU_KERNELS, "cache folder"):
        assert words in result.stdout
    assert folder.name in result.stdout.replace("\n", "") and folder.is_dir()


def test_doctor_without_a_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    environ = {"PATH": str(tmp_path), "CXX": "", "FUSION_CACHE_DIR": str(tmp_path / "cache")}
    result = call("doctor", **environ)
    assert result.exit_code == 1
    assert "Install g++" in result.stdout and "run eagerly on this machine" in result.stdout


def test_doctor_refuses_a_foreign_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (found,) = [f for f in doctor.examine(doctor.FusionConfig(cache_dir=tmp_path / "link")) if f.name == "cache folder"]
    assert found.state == "missing" and "FUSION_CACHE_DIR" in found.remedy


@pytest.mark.parametrize(("cpu", "gpu", "torch_state", "works"), [
    ("works", "missing", "works", True),
    ("missing", "works", "works", True),
    ("missing", "missing", "works", False),
    ("works", "works", "missing", False),
])  # fmt: skip
def test_main_job_needs_torch_and_one_kind_of_kernel(cpu: Any, gpu: Any, torch_state: Any, works: bool) -> None:
    kernels = [Finding(CPU_KERNELS, cpu, "", kernels=True), Finding(GPU_KERNELS, gpu, "", kernels=True)]
    findings = [Finding("torch", torch_state, ""), Finding("a compiler", "works", ""), *kernels]
    assert doctor.main_job_works(findings) is works
