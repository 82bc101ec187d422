"""One real run with a symbolic shadow: what a recording holds, and what it depends on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import line_of

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.capture.recorded_call import RecordedCall


def recorded(call: Callable[..., Any], modules: Any = None, **arguments: Any) -> RecordedCall:
    with torch.no_grad():
        recording = record(call, ArgumentSnapshot(arguments), lambda: call(**arguments), modules or {})
    assert recording.refusal is None, recording.refusal
    assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
    return recording


def operators(recording: RecordedCall) -> list[str]:
    return [node.op.split(".")[1] for node in recording.graph.nodes]


def test_sizes_are_symbols_and_zero_and_one_are_numbers() -> None:
    graph = recorded(lambda x: torch.exp(x) + 1, x=torch.rand(1, 3, 5)).graph
    first, *rest = graph.spec[graph.inputs[0].name].shape
    assert first == 1 and len({str(d) for d in rest}) == 2 and not any(isinstance(d, int) for d in rest)
    assert [s.kind for s in graph.symbols] == ["shape", "shape"] and graph.guards == ()


@pytest.mark.slow
def test_a_recording_does_not_wait_for_torchs_exporter() -> None:
    """torch looks for the line a size or guard comes from, for its logs, and imports its exporter to do so."""
    script = (
        "import sys, torch, fusion\n"
        "with fusion.record(x=torch.ones(3, 4)) as run:\n"
        "    x = run._inputs['x']\n"
        "    y = torch.exp(x) if x.shape[0] > 2 else x\n"
        "print(len(run.graph.symbols), len(run.graph.guards), 'torch.export._trace' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1", "False"]


def test_equal_sizes_are_not_taken_for_the_same_unless_they_must_be() -> None:
    apart = recorded(lambda x, y: (torch.exp(x), torch.exp(y)), x=torch.rand(3), y=torch.rand(3)).graph
    joined = recorded(lambda x, y: torch.exp(x) + y, x=torch.rand(3), y=torch.rand(3)).graph
    assert len(apart.symbols) == 2 and len(joined.symbols) == 1


def test_python_branches_on_sizes_leave_guards() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x) + 1 if x.shape[0] > 4 else torch.sin(x) + 1

    long, short = recorded(call, x=torch.rand(6)).graph, recorded(call, x=torch.rand(3)).graph
    assert "exp" in str(long.nodes) and "sin" in str(short.nodes)
    assert len(long.guards) == len(short.guards) == 1 and long.guards != short.guards


@pytest.mark.parametrize(
    "fixes",
    [lambda x: len(x), lambda x: int(x.shape[0]), lambda x: range(x.shape[0])[-1], lambda x: float(x.size(0))],
    ids=["len", "int", "range", "float"],
)
def test_a_size_that_becomes_a_number_is_fixed(fixes: Callable[..., Any]) -> None:
    with torch.no_grad():
        x = torch.rand(6, 4)
        recording = record(fixes, ArgumentSnapshot({"x": x}), lambda: torch.exp(x) * fixes(x), {})
    assert torch.equal(recording.result, torch.exp(x) * fixes(x))
    if recording.refusal is None:  # then no other size may match
        shape = recording.graph.spec["x0"].shape
        assert shape[0] == 6 or recording.graph.guards


def test_sizes_in_arithmetic_stay_symbolic() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), dim=-1).view(x.shape[0] * x.shape[1], -1)

    recording = recorded(call, x=torch.rand(3, 5, 8))
    assert len(recording.graph.symbols) == 3
    assert type(recording.result) is torch.Tensor and recording.result.shape == (15, 8)


def test_results_hold_real_numbers() -> None:
    recording = recorded(lambda x: (torch.exp(x), x.shape[0], x.numel()), x=torch.rand(3, 4))
    assert recording.result[1:] == (3, 12) and all(type(n) is int for n in recording.result[1:])


def test_contiguous_that_did_nothing_is_kept() -> None:
    call = lambda x: torch.exp(x.transpose(0, 1).contiguous()) + 1  # noqa: E731
    assert "contiguous" in operators(recorded(call, x=torch.rand(1, 4))) or len(
        recorded(call, x=torch.rand(1, 4)).graph.symbols
    )
    moved = recorded(call, x=torch.rand(3, 4))
    assert {"clone", "contiguous"} & set(operators(moved))


def test_linear_and_attention_stay_whole() -> None:
    layer = torch.nn.Linear(8, 8)

    def call(x: torch.Tensor) -> torch.Tensor:
        y = layer(x)[None, None]
        return torch.nn.functional.scaled_dot_product_attention(y, y, y)

    recording = recorded(call, {"layer": layer}, x=torch.rand(4, 8))
    assert {"linear", "scaled_dot_product_attention"} <= set(operators(recording))
    assert sorted(path for _, path in recording.graph.parameters) == ["layer.bias", "layer.weight"]


def test_every_operator_knows_the_users_line() -> None:
    recording = recorded(lambda x: torch.exp(x) + 1, x=torch.rand(3))  # the line
    assert all(line_of(node.origin).endswith("# the line") for node in recording.graph.nodes)


def test_constants_made_in_the_forward() -> None:
    recording = recorded(lambda x: x * torch.tensor([1.0, 2.0]) + 1, x=torch.rand(3, 2))
    (constant,) = recording.bound.constants.values()
    assert constant.tolist() == [1.0, 2.0]


def test_the_run_leaves_its_arguments_alone() -> None:
    x = torch.rand(3, 4).t()
    before = (x.clone(), x.stride(), x._version, dict(x.__dict__))
    recording = recorded(lambda x: torch.exp(x) + 1, x=x)
    assert torch.equal(x, before[0]) and (x.stride(), x._version, x.__dict__) == before[1:]
    assert torch.equal(recording.result, torch.exp(x) + 1) and recording.result.stride() == (torch.exp(x) + 1).stride()


def test_equal_calls_have_equal_graphs() -> None:
    call = lambda x: torch.exp(x) * 2 + 1  # noqa: E731
    first, second, other = (recorded(call, x=torch.rand(n, 4)).graph for n in (3, 7, 1))
    assert first.digest == second.digest != other.digest
