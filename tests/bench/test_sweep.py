"""The first architectures of the sweep: found by rule, equal to eager, and really answered by plans."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="the sweep's models need transformers; pip install 'opfusion[hf]'")

from bench.architectures import build, forward, names
from bench.equality import difference, errors
from bench.op_counts import count
from bench.options import Options
from bench.sweep import rows_of
from bench.sweep_one import measure
from fusion.kernels.backends.cpp.toolchain import find_toolchain

pytestmark = pytest.mark.slow
_SEVERAL = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    if find_toolchain() is None:
        pytest.skip("kernels for the CPU need a C++ compiler")
    cache = str(tmp_path_factory.mktemp("kernels"))
    found: dict[str, dict] = {}
    for name in names():
        found[name] = measure(name, ("equality", "fusion"), cache, quick=True)
        if sum("skipped" not in result for result in found.values()) == _SEVERAL:
            return found
    raise AssertionError(f"fewer than {_SEVERAL} architectures can be made tiny")


def measured(results: dict[str, dict]) -> list[dict]:
    return [result for result in results.values() if "skipped" not in result]


def test_architectures_are_equal_to_eager_in_forwards_and_decodes(results: dict[str, dict]) -> None:
    for name, result in results.items():
        if "skipped" not in result:
            assert result["equality"]["equal"], (name, result["equality"]["differences"])
    assert any(r["equality"]["float64"] == ["decode", "forward"] for r in measured(results)), "no float64 model worked"


def test_plans_with_kernels_answered_every_kind_of_call(results: dict[str, dict]) -> None:
    for result in measured(results):
        assert result["equality"]["planned"], result["equality"]["plans_run"]
        assert result["fusion"]["kernels"] > 0 and result["fusion"]["fused"] > 0
        assert result["fusion"]["launches_fused"] < result["fusion"]["launches_eager"]
        assert result["recompiled"]["kernels"] == 0 and result["recompiled"]["planned"] == result["recompiled"]["pairs"]


def test_rows_follow_from_the_results(results: dict[str, dict]) -> None:
    rows = rows_of(results, ("equality", "fusion"), Options())
    assert rows[0].value == 100 and rows[0].status == "met"
    shares = sorted(100 * r["fusion"]["share"] for r in measured(results))
    assert rows[1].value == pytest.approx(shares[len(shares) // 2])
    broken = {**results, "broken": {"error": "the process ended with -11"}}
    row = rows_of(broken, ("equality",), Options())[0]
    assert row.status == "missed" and row.facts["unequal"] == {"broken": ["the process ended with -11"]}


def test_the_same_architecture_is_built_the_same_twice() -> None:
    name = next(name for name in names() if _builds(name))
    first, second = build(name), build(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(float(p.std()) > 0 for p in first.parameters() if p.numel() > 1), "a parameter is constant"


# What a default configuration leaves out, or contradicts once it is small: kinds of rotary tables, a language, sizes of
# an index, a base handed to a part, heads that a state's size follows from, vocabularies of hashes, parts known by
# their default only, layers of two kinds, books of codes, widths that positions share out.
@pytest.mark.parametrize(
    "name",
    [
        "cohere_compass_text", "xmod", "qwen4_exp_text", "dbrx", "falcon_h1", "blt", "got_ocr2", "zamba", "musicgen",
        "reformer", "xlstm",
    ],
)  # fmt: skip
def test_rules_complete_what_default_configurations_leave_open(name: str) -> None:
    if name not in names():
        pytest.skip(f"this transformers has no {name}")
    model, ids = build(name), torch.randint(3, 100, (2, 5))
    with torch.inference_mode():
        first, second = forward(model, ids), forward(model, ids)
    assert first.shape[0] == 2 and first.isfinite().all() and torch.equal(first, second)


def _builds(name: str) -> bool:
    try:
        build(name)
    except RuntimeError:
        return False
    return True


def test_a_difference_is_found() -> None:
    exact = torch.linspace(-1, 1, 64, dtype=torch.float64)
    eager, none = exact.float(), RuntimeError("no float64 model")
    pair = ((eager, {"layers": [eager]}), (exact, {"layers": [exact]}))
    worst = errors([pair])
    assert worst.keys() == {"#", "#.layers.#"} and 0 < worst["#"] < 1e-7
    assert not list(difference((eager.clone(), {"layers": [eager.clone()]}), *pair, worst))
    off = eager.clone()
    off[7] += 1e-6
    (said,) = difference((eager, {"layers": [off]}), *pair, worst)
    assert said.startswith("1.layers.0: off by")
    assert not list(difference(off, eager, none, {})), "one part in a million, and nothing tells eager's own error"
    assert list(difference(eager + 1e-3, eager, none, {}))
    nan = eager.clone()
    nan[0] = torch.nan
    assert list(difference(nan, eager, exact, {"": 1.0})) == [": NaN or inf in other places"]
    assert not list(difference(nan.clone(), nan, none, {}))
    tokens = torch.arange(4)
    assert list(difference((tokens + 1,), (tokens,), (tokens,), {})) == ["0: 4 of 4 elements differ"]
    assert list(difference(eager, ValueError("no"), exact, {})) == ["eager: ValueError: no; fused: a result"]


def test_operators_are_counted_by_what_can_become_of_them() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 8)

    def call() -> torch.Tensor:
        y = torch.nn.functional.linear(x, weight).reshape(2, 2, 8)
        y = y.to(torch.float32)  # nothing: it is float32
        z = torch.softmax(y, -1).add_(1)
        z[0] = 0.0
        return z.transpose(0, 1).contiguous()

    counts = count(call)
    assert counts["fusable"] == {"softmax": 1, "add_": 1}
    assert counts["copy"].total() == 1, "contiguous moves data after a transpose; reshape does not"
    assert counts["library"].total() == 1 and counts["effect"].total() == 1
