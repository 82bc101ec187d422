"""What the report says where something does not run fused: what happened, on which line of the user, what to do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import line_of, no_grad, reason
from torch.overrides import BaseTorchFunctionMode

import fusion
from fusion.refusal import CODES, Refusal
from fusion.remedies import REMEDIES


def row_of(module: torch.nn.Module) -> Any:
    return fusion.report(module).scopes[0]


def test_every_code_has_a_remedy_in_words() -> None:
    assert set(REMEDIES) == set(CODES)
    assert all(len(remedy.split()) > 1 for remedy in REMEDIES.values())
    for code in CODES:
        assert str(Refusal(code, "it happened", "model.py:3")) == f"{code}: it happened (model.py:3); {REMEDIES[code]}"
    assert str(Refusal("guard", "it happened", "", "do this")) == "guard: it happened; do this"


class Opaque:
    def __init__(self) -> None:
        self.scale = 2.0

    def times(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Module(torch.nn.Module):
    """Runs a step; where it sits in a scope is not the step's affair."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.step = step
        self.count = 0
        self.kept: list[Any] = []
        self.weights = torch.linspace(0.5, 1.5, 8)

    def forward(self, x: torch.Tensor, *given: Any) -> Any:
        return self.step(self, torch.tanh(x) * 2, *given)


def counts(self: Module, y: torch.Tensor) -> Any:
    self.count += 1  # here
    return y


def prints(self: Module, y: torch.Tensor) -> Any:
    print("layer")  # here
    return y + 1


def reads(self: Module, y: torch.Tensor) -> Any:
    return y * y.sum().item() + y.tolist()[0][0]  # here


def leaves_torch(self: Module, y: torch.Tensor) -> Any:
    return y + torch.from_numpy(y.numpy())  # here


def switches(self: Module, y: torch.Tensor) -> Any:
    with torch.enable_grad():
        return y + 1  # here


def returns_object(self: Module, y: torch.Tensor) -> Any:
    return y, Opaque()


def asks_a_library(self: Module, y: torch.Tensor) -> Any:
    return y + torch.as_tensor(numbers_of(y))  # here


def numbers_of(y: torch.Tensor) -> Any:
    return y.shape[0] + y.tolist()[0][0]  # here


def draws(self: Module, y: torch.Tensor) -> Any:
    return y * random.random()


HIDDEN: dict[str, Any] = {}


TABLE: list[tuple[Callable[..., Any], str, str, bool]] = [
    (counts, "python_state", "outside the forward", True),
    (prints, "python_state", "outside the forward", True),
    (reads, "data_read", "torch.where", True),
    (leaves_torch, "numpy", "torch's operators", True),
    (switches, "active_mode", "around the call", True),
    (returns_object, "opaque_output", "return tensors", False),
    (asks_a_library, "data_read", "torch.where", True),
    (draws, "python_state", "outside the forward", False),
]


@pytest.mark.parametrize(("step", "code", "remedy", "line"), TABLE, ids=[row[0].__name__ for row in TABLE])
def test_a_reason_names_the_line_and_the_remedy(
    step: Any, code: str, remedy: str, line: bool, quick: fusion.FusionConfig
) -> None:
    module = fusion.enable(Module(step).eval(), quick)
    for _ in range(3):
        no_grad(module, torch.ones(3, 8))
    found = reason(module)
    assert found is not None and found.code == code, found
    assert remedy in found.remedy and found.remedy in row_of(module).reason
    assert found.origin.startswith("reporting/test_reasons.py:"), found
    assert not line or line_of(found.origin).endswith("# here"), found


def test_an_argument_that_cannot_be_looked_into(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Module(lambda self, y, held: held.times(y)).eval(), quick)
    no_grad(module, torch.ones(3, 8), Opaque())
    found = reason(module)
    assert found.code == "opaque_argument" and "'given' holds a Opaque" in found.sentence
    assert "test_reasons.py" in found.origin and "fusion.register_island" in found.remedy
    module = fusion.enable(Module(lambda self, y, held: y * held.random()).eval(), quick)
    no_grad(module, torch.ones(3, 8), random.Random(0))
    found = reason(module)
    assert "random.Random" in found.sentence and "register" not in found.remedy, "nobody can register Python's own"


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))

    def forward(self, x: torch.Tensor, k: Any = 1, name: str = "") -> torch.Tensor:
        return torch.tanh(self.inner(x) * k) * 2


def test_more_values_than_plans(quick: fusion.FusionConfig) -> None:
    """Seventeen values, then many calls: no plan takes them, and the report says which argument it is about."""
    module = fusion.enable(Scaled().eval(), quick.model_copy(update={"max_plans": 4}))
    eager = Scaled().eval()
    eager.load_state_dict(module.state_dict())
    x = torch.randn(3, 8)
    for k in (*range(2, 6), *[17] * 20, 2, 2):
        torch.testing.assert_close(no_grad(module, x, k), no_grad(eager, x, k))
    row = row_of(module)
    assert row.state == "fused" and row.recordings == 4 and row.eager_calls >= 20
    assert "too_many_plans: no plan takes the call, and max_plans=4 recordings are made" in row.reason
    assert "k varies: 2, 3, 4, 5; now 17" in row.reason and "test_reasons.py:" not in row.reason.split("(")[0]
    assert "pass k as a tensor, or raise max_plans" in row.reason
    assert "too_many_plans" in str(fusion.report(module))


def test_calls_that_no_plan_takes_are_looked_at_now_and_then(quick: fusion.FusionConfig) -> None:
    """Each look costs several times the forward; one that a plan takes is taken at once."""
    module = fusion.enable(Scaled().eval(), quick.model_copy(update={"max_plans": 2}))
    x = torch.randn(3, 8)
    for k in (2, 3, *[17] * 200, 2):
        no_grad(module, x, k)
    row = row_of(module)
    assert row.eager_calls >= 200 and 8 <= row.guard_misses < 40
    assert row.fused_calls == 1 and "max_plans=2" in row.reason


def test_sizes_and_names_that_vary(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Scaled().eval(), quick.model_copy(update={"max_plans": 2}))
    for name in ("a", "b", "c", "c"):
        no_grad(module, torch.randn(3, 8), 2, name=name)
    assert "name varies: 'a', 'b'; now 'c'" in row_of(module).reason
    assert "as a tensor" not in row_of(module).reason, "a string is none"


class Unequal(float):
    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = float.__hash__


def test_an_argument_that_no_guard_holds_for(quick: fusion.FusionConfig) -> None:
    """It is recorded once, not in each call until there are as many recordings as there may be."""
    module = fusion.enable(Scaled().eval(), quick)
    for _ in range(6):
        no_grad(module, torch.ones(3, 8), Unequal(2.0))
    row = row_of(module)
    assert row.recordings == 1 and "the argument 'k' holds a Unequal" in row.reason, row


def test_modules_still_in_training_mode(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Scaled().eval(), quick)
    module.inner[1].train()
    no_grad(module, torch.randn(3, 8))
    reason_ = row_of(module).reason
    assert "inner.1 (Dropout) is in training mode, though the module around is not" in reason_
    assert "call eval() on inner.1" in reason_ and "test_reasons.py" not in reason_.split("(")[0]
    module.train()
    no_grad(module, torch.randn(3, 8))
    assert "the module (Scaled), inner (Sequential), inner.0 (Linear) and 1 more are in training mode" in (
        row_of(module).reason
    )
    assert "call model.eval()" in row_of(module).reason


def test_an_exported_module_whose_eval_raises(quick: fusion.FusionConfig) -> None:
    exported = torch.export.export(Scaled().eval(), (torch.randn(3, 8),)).module()
    fusion.enable(exported, quick)
    no_grad(exported, torch.randn(3, 8))
    found = reason(exported)
    if found is not None and found.code == "training":
        assert "set its `training` to False" in found.remedy


def test_modes_are_named(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Scaled().eval(), quick)
    x = torch.randn(3, 8)
    for _ in range(3):
        no_grad(module, x)
    with BaseTorchFunctionMode():
        no_grad(module, x)
    assert row_of(module).state == "fused" and "mode BaseTorchFunctionMode is" in row_of(module).reason
    module(x)
    assert "grad_enabled" in row_of(module).reason and "torch.no_grad()" in row_of(module).reason
    before = row_of(module).fused_calls
    no_grad(module, x)
    assert row_of(module).fused_calls == before + 1


def noting(module: torch.nn.Module, args: Any, output: Any) -> None:
    """A user's hook."""


def test_hooks_are_named(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Scaled().eval(), quick)
    module.inner[0].register_forward_hook(noting)
    no_grad(module, torch.randn(3, 8))
    assert "inner.0 (Linear) has the forward hook noting" in row_of(module).reason


def flips(self: Module, y: torch.Tensor) -> Any:
    return y + HIDDEN["iterator"]()


def test_two_runs_that_differ(quick: fusion.FusionConfig) -> None:
    """State that nothing can watch: the second run of the call gives another result."""
    calls = iter(range(100))
    HIDDEN["iterator"] = type("Counter", (), {"__call__": lambda self: next(calls)})()
    module = fusion.enable(Module(flips).eval(), quick)
    no_grad(module, torch.ones(3, 8))
    found = reason(module)
    if found.code == "plan_mismatch":
        assert "the call was made twice" in found.sentence and "counters" in found.remedy
    assert "when sizes are symbols" not in str(found)


def test_the_text_of_a_report_has_lines_and_remedies(quick: fusion.FusionConfig) -> None:
    class Mixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv(torch.tanh(x) * 0.1 + torch.eye(8) * 4).sum(-1) * 2

    module = fusion.enable(Mixed().eval(), quick.model_copy(update={"min_nodes": 9}))
    for _ in range(3):
        no_grad(module, torch.randn(8, 8))
    text = " ".join(str(fusion.report(module)).split())
    assert "aten.linalg_inv.default is a library call at reporting/test_reasons.py:" in text
    rows = fusion.report(module).regions
    assert all(row.remedy for row in rows if row.decision == "refused")
    assert fusion.reporting.model.FusionReport.from_json(fusion.report(module).to_json()).regions == rows
