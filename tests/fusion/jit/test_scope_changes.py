"""A module under fusion that is changed, shared, copied or switched off."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import normal as rand
from pair import Block, Norm, Pair, Stack
from tiny import close, no_grad, planned

import fusion

# ---- the module changes


def set_scale(m: Any) -> None:
    m.scale = 0.25


def set_eps(m: Any) -> None:
    m.norm.eps = 0.5


def new_parameter(m: Any) -> None:
    m.gate.weight = torch.nn.Parameter(rand(16, 16, seed=3))


def new_data(m: Any) -> None:
    m.gate.weight.data = rand(16, 16, seed=3)


def new_norm_data(m: Any) -> None:
    m.norm.weight.data = rand(16, seed=3)


def strided_data(m: Any) -> None:
    m.norm.weight.data = rand(32, seed=3)[::2]


def transposed_data(m: Any) -> None:
    m.gate.weight.data = rand(16, 16, seed=3).t()


def copied_in(m: Any) -> None:
    with torch.no_grad():
        m.norm.weight.copy_(rand(16, seed=3))


def loaded(m: Any) -> None:
    m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()})


def loaded_by_assignment(m: Any) -> None:
    m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}, assign=True)


def new_buffer(m: Any) -> None:
    m.shift = rand(16, seed=3)


def buffer_in_place(m: Any) -> None:
    m.shift.mul_(-2)


def new_submodule(m: Any) -> None:
    m.norm = Norm(eps=0.25)


def another_kind(m: Any) -> None:
    m.norm = torch.nn.LayerNorm(16)


def identity(m: Any) -> None:
    m.norm = torch.nn.Identity()


def deleted_and_added(m: Any) -> None:
    del m.norm
    m.add_module("norm", Norm(eps=0.75))


def with_bias(m: Any) -> None:
    m.gate = torch.nn.Linear(16, 16)
    m.gate.weight.data.fill_(0.1)
    m.gate.bias.data.fill_(0.2)


def bias_added(m: Any) -> None:
    m.gate.bias = torch.nn.Parameter(torch.full((16,), 0.3))


def inner_forward(m: Any) -> None:
    m.norm.forward = lambda x: x * 3


def class_attribute_shadowed(m: Any) -> None:
    m.norm.__dict__["eps"] = 0.5


def parametrized(m: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(m.gate)


CHANGES = [
    set_scale, set_eps, new_parameter, new_data, new_norm_data, strided_data, transposed_data, copied_in, loaded,
    loaded_by_assignment, new_buffer, buffer_in_place, new_submodule, another_kind, identity, deleted_and_added,
    with_bias, bias_added, inner_forward, class_attribute_shadowed, parametrized,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_changes_after_recording(pair: Pair, change: Callable[[Any], None]) -> None:
    x = rand(4, 16)
    old = pair(x)
    pair.change(change)
    new = pair(x)
    assert not torch.equal(old, new), "the change changes the result"
    for rows in (3, 4, 5, 4):
        pair(rand(rows, 16))
    assert pair.scope.statistics.fallbacks == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_after_recording(pair: Pair, dtype: torch.dtype) -> None:
    pair.change(lambda m: m.to(dtype))
    for rows in (3, 4, 5, 4):
        x = rand(rows, 16).to(dtype)
        eager = no_grad(pair.eager, x)
        found = no_grad(pair.fused, x)
        exact = no_grad(copy.deepcopy(pair.eager).double(), x.double())
        close(found, eager, exact, 2)
    pair.change(lambda m: m.float())
    pair(rand(4, 16))


def test_moved_to_meta_and_back(pair: Pair) -> None:
    pair.change(lambda m: m.to("meta"))
    assert no_grad(pair.fused, torch.empty(4, 16, device="meta")).device.type == "meta"
    pair.change(lambda m: m.to_empty(device="cpu"))
    pair.change(lambda m: m.load_state_dict(Block().state_dict()))
    pair.warm()


def test_the_class_forward_patched(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(rand(4, 16))
    monkeypatch.setattr(Norm, "forward", lambda self, x: x * 5)
    pair(rand(4, 16))
    monkeypatch.undo()
    pair(rand(4, 16))


def test_a_scope_that_keeps_changing_stays_right(pair: Pair) -> None:
    for step in range(14):
        pair.change(lambda m, step=step: setattr(m, "scale", float(step)))
        pair(rand(4, 16))
        pair(rand(4, 16))


def test_tied_parameters(quick: fusion.FusionConfig) -> None:
    def make() -> torch.nn.Module:
        block = Block()
        block.up.weight = block.gate.weight
        return block

    pair = Pair(quick, make)
    pair.warm()
    pair.change(lambda m: setattr(m.up, "weight", torch.nn.Parameter(rand(16, 16, seed=8))))
    pair.warm()


# ---- repeated blocks
def test_layers_that_differ_in_one_attribute(quick: fusion.FusionConfig) -> None:
    def make() -> Stack:
        stack = Stack(4)
        stack.layers[1].scale = 2.0
        stack.layers[2].norm.eps = 0.5
        stack.layers[3].gate = torch.nn.Linear(16, 16)
        stack.layers[3].gate.load_state_dict({"weight": torch.full((16, 16), 0.1), "bias": torch.full((16,), 0.2)})
        return stack

    pair = Pair(quick, make)
    for rows in (3, 4, 5, 4, 3):
        x = rand(rows, 16)
        torch.testing.assert_close(no_grad(pair.fused, x), no_grad(pair.eager, x), rtol=1e-5, atol=1e-6)
    assert all(count >= 2 for count in planned(pair.fused).values()), planned(pair.fused)


def test_a_layer_used_twice(quick: fusion.FusionConfig) -> None:
    def make() -> Stack:
        stack = Stack(3)
        stack.layers[2] = stack.layers[0]
        return stack

    pair = Pair(quick, make)
    for rows in (3, 4, 5, 4, 3):
        x = rand(rows, 16)
        torch.testing.assert_close(no_grad(pair.fused, x), no_grad(pair.eager, x), rtol=1e-5, atol=1e-6)
    before = dict(pair.fused.layers[0].__dict__)
    fusion.disable(pair.fused)
    assert "forward" in before and "forward" not in pair.fused.layers[0].__dict__


# ---- on and off


def test_disable_restores_exactly(quick: fusion.FusionConfig) -> None:
    model = Stack()
    model.eval()
    kept = [(m, list(m.__dict__.items())) for m in model.modules()]
    fusion.enable(model, quick)
    for rows in (3, 4, 5):
        no_grad(model, rand(rows, 16))
    assert any("forward" in m.__dict__ for m in model.modules())
    assert fusion.disable(model) is model
    for module, items in kept:
        assert list(module.__dict__) == [k for k, _ in items]
        assert all(module.__dict__[k] is v for k, v in items)
    fusion.disable(model)
    with pytest.raises(fusion.FusionError, match="not under fusion"):
        fusion.report(model)


def test_a_forward_of_the_models_own_is_kept(quick: fusion.FusionConfig) -> None:
    model = Block().eval()
    own = model.forward
    model.forward = lambda x: own(x) * 3  # type: ignore[method-assign]
    mine = model.__dict__["forward"]
    x = rand(4, 16)
    expected = no_grad(model, x)
    fusion.enable(model, quick)
    for _ in range(3):
        torch.testing.assert_close(no_grad(model, x), expected, rtol=1e-5, atol=1e-6)
    fusion.disable(model)
    assert model.__dict__["forward"] is mine and torch.equal(no_grad(model, x), expected)


def test_enable_twice_takes_the_second_config(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(Block().eval(), quick)
    no_grad(model, rand(3, 16))
    assert fusion.enable(model, quick.replace(max_fusions=0)) is model
    for rows in (3, 4, 3):
        no_grad(model, rand(rows, 16))
    assert {r.code for s in fusion.report(model).scopes for r in s.regions} == {"fuel"}
    fusion.disable(model)
    assert "forward" not in model.__dict__


def test_enabled_inside_an_enabled_model(quick: fusion.FusionConfig) -> None:
    model = Stack().eval()
    eager = copy.deepcopy(model)
    fusion.enable(model, quick)
    fusion.enable(model.layers[0], quick)
    for rows in (3, 4, 5, 3):
        x = rand(rows, 16)
        torch.testing.assert_close(no_grad(model, x), no_grad(eager, x), rtol=1e-5, atol=1e-6)
    fusion.disable(model)
    fusion.disable(model.layers[0])
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert torch.equal(no_grad(model, x), no_grad(eager, x))


def test_the_configs_switch(quick: fusion.FusionConfig) -> None:
    class Holder:
        enable_fusion = True

    model = Block().eval()
    model.config = Holder()
    fusion.enable(model, quick)
    for rows in (3, 4, 3):
        no_grad(model, rand(rows, 16))
    for _ in range(3):
        model.config.enable_fusion = False
        before = planned(model)
        no_grad(model, rand(3, 16))
        no_grad(model, rand(3, 16))
        assert planned(model) == before, "honoured at call time"
        model.config.enable_fusion = True
        for rows in (3, 4, 3, 4):
            no_grad(model, rand(rows, 16))
        assert planned(model)["Block"] > before["Block"]


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_are_plain_and_apart(pair: Pair, how: str) -> None:
    if how == "deepcopy":
        twin = copy.deepcopy(pair.fused)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(pair.fused))
    else:
        buffer = io.BytesIO()
        torch.save(pair.fused, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    x = rand(4, 16)
    assert torch.equal(no_grad(twin, x), no_grad(pair.eager, x))
    with torch.no_grad():
        twin.norm.weight.mul_(3)
        twin.gate.weight.mul_(2)
    fusion.disable(pair.fused)
    assert torch.equal(no_grad(pair.fused, x), no_grad(pair.eager, x))
    other = copy.deepcopy(pair.eager)
    with torch.no_grad():
        other.norm.weight.mul_(3)
        other.gate.weight.mul_(2)
    assert torch.equal(no_grad(twin, x), no_grad(other, x))
    fusion.enable(twin)
    torch.testing.assert_close(no_grad(twin, x), no_grad(other, x), rtol=1e-5, atol=1e-6)
    fusion.disable(twin)
    assert type(twin).forward is Block.forward and torch.equal(no_grad(twin, x), no_grad(other, x))


def test_a_dropped_model_is_freed(quick: fusion.FusionConfig) -> None:
    import gc
    import weakref

    model = fusion.enable(Stack().eval(), quick)
    for rows in (3, 4, 3):
        no_grad(model, rand(rows, 16))
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
