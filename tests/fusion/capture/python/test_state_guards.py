"""What rules recording out, what a plan's snapshot watches, and when two looks at it say the same."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusion.capture.python.state_guards import alike, problems, unchanged, watched
from fusion.runtime.snapshots import PythonSnapshot

pytestmark = pytest.mark.usefixtures("without_gradients")


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * self.scale


class Outer(torch.nn.Module):
    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(Inner() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


def hook(*_: Any) -> None: ...


# ---- what rules recording out


def test_a_module_in_eval_mode_has_no_problem() -> None:
    assert problems({"": Outer().eval()}) is None


def test_training_mode_is_named_with_its_modules_and_its_remedy() -> None:
    found = problems({"": Outer(3)})
    assert found is not None and found.code == "training" and found.remedy == "call model.eval()"
    assert "the module (Outer), parts (ModuleList), parts.0 (Inner) and 2 more are in" in found.sentence


def test_one_part_in_training_mode_gets_a_remedy_of_its_own() -> None:
    model = Outer(2).eval()
    model.parts[1].train()
    found = problems({"": model})
    assert found is not None and found.sentence.startswith("parts.1 (Inner) is in training mode, though the module")
    assert found.remedy == "call eval() on parts.1, or once more on the model"


def test_an_exported_module_is_not_told_to_call_the_eval_that_raises() -> None:
    model = Outer()
    model.eval = hook  # type: ignore[method-assign,assignment]
    found = problems({"": model})
    assert found is not None and "set its `training` to False" in found.remedy


def test_hooks_of_parts_count_and_those_of_the_scope_itself_do_not() -> None:
    model = Outer().eval()
    model.register_forward_hook(hook)
    assert problems({"": model}) is None
    model.parts[0].register_forward_pre_hook(hook)
    found = problems({"": model})
    assert found is not None and found.code == "hook" and found.sentence.startswith("parts.0 (Inner) has")


def test_of_steps_only_the_hooks_count() -> None:
    model = Outer(2).eval()
    step = model.parts[0].train()
    assert problems({"": model}, [step]) is None
    step.register_forward_hook(hook)
    found = problems({"": model}, [step])
    assert found is not None and found.code == "hook" and found.sentence.startswith("a step (Inner) has")


# ---- what is watched

CHANGES: dict[str, Callable[[Outer, Any], Any]] = {
    "an attribute": lambda m, _: setattr(m.parts[0], "scale", 3.0),
    "another attribute": lambda m, _: setattr(m.parts[0], "further", 3.0),
    "a parameter": lambda m, _: setattr(m.parts[0], "weight", torch.nn.Parameter(torch.ones(2))),
    "a part": lambda m, _: m.parts.__setitem__(0, Inner().eval()),
    "a further part": lambda m, _: m.parts.append(Inner().eval()),
    "the mode": lambda m, _: m.parts[0].train(),
    "a hook of a part": lambda m, _: m.parts[0].register_forward_hook(hook),
    "an object beside": lambda _, config: setattr(config, "size", 2),
    "the switch of one": lambda _, config: setattr(config, "enable_fusion", False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_end_a_snapshot(name: str) -> None:
    model, config = Outer().eval(), SimpleNamespace(size=1)
    holds = PythonSnapshot(watched({"": model}, [config]))
    assert holds()
    CHANGES[name](model, config)
    assert not holds()


def _hooked() -> Callable[[], Any]:
    return torch.nn.modules.module.register_module_forward_hook(hook).remove


def _in_doubles() -> Callable[[], Any]:
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


def _deterministic() -> Callable[[], Any]:
    torch.use_deterministic_algorithms(True)
    return lambda: torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("change", [_hooked, _in_doubles, _deterministic])
def test_settings_of_torch_end_a_snapshot(change: Callable[[], Callable[[], Any]]) -> None:
    holds = PythonSnapshot(watched({"": Outer().eval()}))
    assert holds()
    put_back = change()
    try:
        assert not holds()
    finally:
        put_back()
    assert holds()


def test_a_class_with_another_forward_ends_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    holds = PythonSnapshot(watched({"": Outer().eval()}))
    monkeypatch.setattr(Inner, "forward", lambda self, x: x)
    assert not holds()


def test_steps_are_not_looked_into_but_for_hooks() -> None:
    model = Outer(2).eval()
    step = model.parts[0]
    holds = PythonSnapshot(watched({"": model}, (), [step]))
    step.scale = 3.0
    assert holds()
    step.register_forward_hook(hook)
    assert not holds()


# ---- two looks


def test_two_looks_at_the_same_state_say_the_same() -> None:
    model, config = Outer().eval(), SimpleNamespace(size=1, enable_fusion=True)
    before = watched({"": model}, [config])
    config.enable_fusion = False
    assert unchanged(before, watched({"": model}, [config])), "the switch is asked for in each call"
    model.parts[0].scale = float("2")
    assert unchanged(before, watched({"": model}, [config])), "another object, of the same value"
    model.parts[0].scale = 3.0
    assert not unchanged(before, watched({"": model}, [config]))


def test_lists_of_other_lengths_differ() -> None:
    held: dict[str, Any] = {"a": 1}
    entry = ("item", held, "a", 1)
    assert unchanged([entry], [entry]) and not unchanged([entry], [entry, entry])


@pytest.mark.parametrize(
    "one, other, same",
    [(1.5, float("1.5"), True), (1, True, False), (1, 1.0, False), ("a", "b", False), ([], [], False)],
)
def test_plain_values_are_compared_by_type_and_value(one: Any, other: Any, same: bool) -> None:
    held: dict[str, Any] = {}
    assert alike(("item", held, "a", one), ("item", held, "a", other)) is same
    assert not alike(("item", held, "a", one), ("item", {}, "a", one)), "of another object"
    assert not alike(("item", held, "a", one), ("item", held, "b", one)), "of another name"
    assert not alike(("item", held, "a", one), ("attribute", held, "a", one)), "another kind of entry"
