"""What a plan must never do: answer a call that its recording does not hold for, or hide why it did not run."""

from __future__ import annotations

import copy
import functools
import pathlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from beside_eager import Stack, Store, pair, same, trust, values
from tiny import no_grad, planned, reason
from torch.autograd import forward_ad

import fusion
from fusion.choices import kernel_cache


class Plain:
    """An object with attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Activation(Plain):
    """An object with attributes that can be called, as a module's activation function can."""

    def __call__(self) -> int:
        return 1


def assert_never_planned(module: torch.nn.Module, *codes: str) -> None:
    """Every call ran eagerly, and the report says why."""
    assert set(planned(module).values()) == {0}
    found = reason(module)
    assert found is not None and found.code in codes, found
    (row,) = fusion.report(module).scopes
    assert row.state == "eager" and found.code in row.reason, row


# ---- guards


def written_rows(m: Any, x: torch.Tensor, extra: Any) -> torch.Tensor:
    y = x * 2
    y[:, :10] = 1.0
    return F.silu(y) * m.w


SLICES = {
    "rows": (lambda m, x, _: F.silu(x[:, :10]) * m.w, [(10,), (8,), (8,), (12,), (12,)]),
    "rows before an ellipsis": (lambda m, x, _: F.silu(x[..., :10, :]) * m.w, [(10,), (8,), (8,), (12,), (12,)]),
    "after a number": (lambda m, x, _: F.silu(x[0, :10]) * m.w, [(10,), (8,), (8,), (12,), (12,)]),
    "columns": (lambda m, x, _: F.silu(x[..., :16]) + 1, [(8, 16), (8, 12), (8, 12), (9, 24), (9, 24)]),
    "written rows": (written_rows, [(10,), (8,), (8,), (12,), (12,)]),
}


@pytest.mark.parametrize(("step", "sizes"), SLICES.values(), ids=SLICES)
def test_a_slice_that_took_all_of_a_dimension_cuts_a_longer_one(step: Any, sizes: Any, quick: Any) -> None:
    module, eager = pair(quick, step)
    for size in sizes:
        same(module, eager, values(*size))
        if size == sizes[2]:
            before = planned(module)["Module"]
    assert before >= 1, "no plan answered at the sizes that the slice took whole"


def test_a_layer_does_not_inherit_the_window_of_its_twin(quick: fusion.FusionConfig) -> None:
    eager = Stack().eval()
    module = fusion.enable(copy.deepcopy(eager), quick)
    for length in (12, 12, 12, 14, 14, 14, 9, 9):
        same(module, eager, values(length), Store(), steps=4)  # two kernels in each of two layers
    assert all(planned(module).values()), "every layer is to have a plan"


# ---- what a plan was recorded for has changed


class Asks(torch.nn.Module):
    """A layer with a parameter whose shape and dtype alone count."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x.to(self.w.dtype)) / self.w.shape[0] + 1


class Pair(torch.nn.Module):
    """Twins of `Asks`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Asks(), Asks()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("data", [torch.ones(8), torch.ones(16, dtype=torch.bfloat16)], ids=["shape", "dtype"])
def test_twins_that_only_ask_about_a_parameter(data: torch.Tensor, quick: fusion.FusionConfig) -> None:
    eager = Pair().eval()
    module = fusion.enable(copy.deepcopy(eager), quick)
    for length in (10, 10, 7, 7):
        same(module, eager, values(length), steps=4)  # a kernel and a division in each of two layers
    assert all(planned(module).values()), "every layer is to have a plan"
    for one in (module, eager):
        one.layers[1].w.data = data.clone()
    for length in (10, 10, 7):
        same(module, eager, values(length), steps=4)


def resized(m: Any) -> None:
    m.w.data = m.w.data[:8].clone()


def cast(m: Any) -> None:
    m.w.data = m.w.data.to(torch.bfloat16)


CHANGES = {
    "to": (lambda m, x, _: x.to(m.w.dtype) * 2 + 1, {}, lambda m: m.to(torch.bfloat16)),
    "data of another dtype": (lambda m, x, _: x.to(m.w.dtype) * 2 + 1, {}, cast),
    "data of another shape": (lambda m, x, _: F.silu(x) / m.w.shape[0] + m.w.sum(), {}, resized),
    "an attribute with an underscore": (
        lambda m, x, _: F.silu(x * m._scale) * m.w, {"_scale": 2.0}, lambda m: setattr(m, "_scale", 3.0),
    ),
    "an item of a list": (
        lambda m, x, _: F.silu(x * m.scales[0]) * m.w, {"scales": [2.0]}, lambda m: m.scales.__setitem__(0, 3.0),
    ),
    "an item of a dict": (
        lambda m, x, _: F.silu(x * m.d["a"]) * m.w, {"d": {"a": 2.0}}, lambda m: m.d.update(a=3.0),
    ),
    "an object of an object": (
        lambda m, x, _: F.silu(x * m.o.inner.k) * m.w, {"o": Plain(inner=Plain(k=2.0))},
        lambda m: setattr(m.o.inner, "k", 3.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("step", "attributes", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_module_after_trust_counts(step: Any, attributes: Any, change: Any, quick: Any) -> None:
    module, eager = pair(quick, step, **copy.deepcopy(attributes))
    trust(module, eager)
    change(module)
    change(eager)
    for length in (10, 10, 7):
        same(module, eager, values(length), steps=2)  # a sum and a kernel


def test_a_second_scheduler_proves_what_the_store_remembers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later process may make another kernel of the same region, and a wrong one."""
    config = fusion.FusionConfig(profile=False, cache_dir=tmp_path)
    module, eager = pair(config, lambda m, x, _: F.silu(x) * m.w * 3.25)
    trust(module, eager)
    make = kernel_cache.make_launcher
    ran = []

    def broken(kernel: Any) -> Any:
        launch = make(kernel)

        def zeros(*args: Any) -> Any:
            ran.append(kernel)
            return launch(*args) * 0

        return zeros

    monkeypatch.setattr(kernel_cache, "make_launcher", broken)
    later = fusion.enable(copy.deepcopy(eager), config)
    for length in (10, 7, 10):
        same(later, eager, values(length))
    assert ran, "the wrong kernel was never tried"
    assert {(r.decision, r.code) for r in fusion.report(later).scopes[0].regions} == {("refused", "inaccurate")}


# ---- forwards that keep state in Python


def counts_in_dict(m: Any, x: torch.Tensor, extra: Any) -> torch.Tensor:
    m.d["n"] += 1
    return F.silu(x) * m.w


def counts_in_object(m: Any, x: torch.Tensor, extra: Any) -> torch.Tensor:
    m.o.n += 1
    return F.silu(x) * m.w


def stores_tensor(m: Any, x: torch.Tensor, extra: Any) -> torch.Tensor:
    m.d["h"] = x * 2
    return F.silu(x) * m.w


STATEFUL = {
    "a dict of the module": (counts_in_dict, {"d": {"n": 0}}),
    "an object": (counts_in_object, {"o": Plain(n=0)}),
    "an object that can be called": (counts_in_object, {"o": Activation(n=0)}),
    "a tensor in a dict": (stores_tensor, {"d": {"h": None}}),
}


@pytest.mark.parametrize(("step", "attributes"), STATEFUL.values(), ids=STATEFUL)
def test_state_that_a_forward_keeps_is_right_on_every_call(step: Any, attributes: Any, quick: Any) -> None:
    module, eager = pair(quick, step, **copy.deepcopy(attributes))
    for length in (10, 10, 7, 7, 10):
        same(module, eager, values(length))
        for holder in attributes:
            mine, theirs = (vars(m)[holder] for m in (module, eager))
            mine, theirs = (list((h if isinstance(h, dict) else vars(h)).values()) for h in (mine, theirs))
            assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(mine, theirs, strict=True))
    assert_never_planned(module, "python_state")


# ---- forwards that see more of a size or a tensor than a recording can hold


@functools.lru_cache(None)
def table(length: int) -> float:
    return float(length)


def looked_up(m: Any, x: torch.Tensor, extra: Any) -> torch.Tensor:
    return F.silu(x) * (2.0 if x.shape in m.d else 3.0) * m.w


NUMBERS: dict[str, Any] = {
    "isinstance": lambda m, x, _: F.silu(x) * (2.0 if isinstance(x.shape[1], int) else 3.0) * m.w,
    "a dict by shape": looked_up,
    "a format": lambda m, x, _: F.silu(x) * len(f"{x.shape[1]:d}") * m.w,
    "lru_cache": lambda m, x, _: F.silu(x) * table(x.shape[1]) * m.w,
}


@pytest.mark.parametrize("step", NUMBERS.values(), ids=NUMBERS)
def test_python_that_tells_a_symbol_from_a_number(step: Any, quick: Any) -> None:
    """It is recorded with numbers: a plan for each size."""
    module, eager = pair(quick, step, d={(2, 7, 16): 1})
    for length in (10, 10, 10, 7, 7, 7, 12, 10, 7):
        same(module, eager, values(length), steps=2)  # two kernels' roundings: the factor is one of its own
    assert sum(planned(module).values()) >= 3


def test_an_offset_into_storage_is_read_on_every_call(quick: fusion.FusionConfig) -> None:
    module, eager = pair(quick, lambda m, x, _: F.silu(x) * (x.storage_offset() + 1) * m.w)
    memory = torch.randn(2 * 10 * 16 + 16, generator=torch.Generator().manual_seed(1))
    for offset in (0, 0, 3, 0, 5):
        x = memory.as_strided((2, 10, 16), (160, 16, 1), offset)
        assert torch.equal(no_grad(module, x), no_grad(eager, x))
    assert_never_planned(module, "data_read")


def test_forward_mode_differentiation_keeps_its_tangent(quick: fusion.FusionConfig) -> None:
    module, eager = pair(quick, lambda m, x, _: F.silu(x) * m.w)
    trust(module, eager)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(values(), torch.ones(2, 10, 16))
        found, wanted = (forward_ad.unpack_dual(m(dual)) for m in (module, eager))
    assert wanted.tangent is not None and found.tangent is not None
    assert torch.equal(found.tangent, wanted.tangent) and torch.equal(found.primal, wanted.primal)
