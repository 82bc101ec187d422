"""What libraries hand to a model and leave in it: mappings, quantised weights, stacks of blocks, pipelines, hooks."""

from __future__ import annotations

import collections
import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import no_grad, planned, reason, scopes, transformer

import fusion
from fusion.jit.blocks import find_blocks
from fusion.patterns.errors import FusionError


class Gated(torch.nn.Module):
    """A block that fuses; `read` takes its input from what it is given."""

    def __init__(self, read: Any = lambda given: given) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear, self.read = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), read

    def forward(self, given: Any) -> torch.Tensor:
        x = self.read(given)
        return x + torch.tanh(self.linear(self.norm(x))) * torch.sigmoid(x)


def rows(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3 + i % 2, 8, generator=generator) for i in range(count)]


def check(module: torch.nn.Module, config: fusion.FusionConfig, give: Any = lambda x: x, calls: int = 6) -> None:
    """Enables a copy's twin and compares them over some calls."""
    eager = copy.deepcopy(module)
    fusion.enable(module, config)
    for x in rows(calls):
        torch.testing.assert_close(no_grad(module, give(x.clone())), no_grad(eager, give(x.clone())))


# ---- mappings


class Encoding(collections.UserDict):  # type: ignore[type-arg]
    """As tokenizers give: a mapping with attributes of its own, some of which no plan can look into."""

    unit_of_all = 3.0

    def __init__(self, data: dict[str, Any], unit: float = 2.0) -> None:
        super().__init__(data)
        self.unit = unit
        self.record = [object()]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: str) -> Encoding:
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self

    def scaled(self) -> torch.Tensor:
        return self["x"] * self.unit

    @property
    def first(self) -> Any:
        return self.record[0]


READS = {
    "item": lambda given: given["x"],
    "attribute": lambda given: given.x,
    "to": lambda given: given.to("cpu")["x"],
    "method": lambda given: given.scaled(),
    "get": lambda given: given.get("x") + sum(v for _, v in given.items()),
    "default": lambda given: given["x"] * getattr(given, "extra", 2.0),
}
REFUSED = {
    "property": lambda given: given["x"] * (2 if given.first is None else 3),
    "record": lambda given: given["x"] * len(given.record),
    "class attribute": lambda given: given["x"] * given.unit_of_all,
}


@pytest.mark.parametrize("name", READS)
def test_mappings_are_looked_into(name: str, quick: fusion.FusionConfig) -> None:
    module = Gated(READS[name]).eval()
    check(module, quick, lambda x: Encoding({"x": x}))
    assert planned(module)["Gated"] >= 3, fusion.report(module)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_mapping_holds_beside_its_items_is_refused(name: str, quick: fusion.FusionConfig) -> None:
    module = Gated(REFUSED[name]).eval()
    check(module, quick, lambda x: Encoding({"x": x}))
    assert reason(module).code == "opaque_argument" and "before the call" in reason(module).remedy
    assert "test_libraries.py" in reason(module).origin


def test_attributes_of_a_mapping_are_conditions(quick: fusion.FusionConfig) -> None:
    """A plain attribute that varies, and one that comes and goes."""
    check(Gated(READS["method"]).eval(), quick, lambda x: Encoding({"x": x}, float(len(x))))
    module = Gated(READS["default"]).eval()
    eager = copy.deepcopy(module)
    fusion.enable(module, quick)
    for i, x in enumerate(rows(8)):
        given = Encoding({"x": x})
        if i in (4, 6, 7):
            given.extra = 5.0
        torch.testing.assert_close(no_grad(module, given), no_grad(eager, given))


def test_a_mapping_that_is_changed(quick: fusion.FusionConfig) -> None:
    def change(given: Any) -> Any:
        given["y"] = given["x"] * 2
        given.unit = given.unit + 1
        return given["y"]

    module = Gated(change).eval()
    fusion.enable(module, quick)
    for x in rows():
        given = Encoding({"x": x})
        no_grad(module, given)
        assert list(given) == ["x", "y"] and torch.equal(given["y"], x * 2) and given.unit == 3.0


def test_a_tokenizers_result(quick: fusion.FusionConfig) -> None:
    transformers = pytest.importorskip("transformers")
    for kind in (transformers.BatchEncoding, transformers.BatchFeature):
        module = Gated(READS["item"]).eval()
        check(module, quick, lambda x, kind=kind: kind({"x": x}))
        assert planned(module)["Gated"] >= 3, fusion.report(module)
    module = fusion.enable(Gated(lambda given: given["x"] * (2 if given.is_fast else 3)).eval(), quick)
    no_grad(module, transformers.BatchEncoding({"x": rows()[0]}))
    assert "BatchEncoding.is_fast" in reason(module).sentence and "register" not in reason(module).remedy


# ---- weights of other libraries


class Packed(torch.Tensor):
    """Whole numbers and a scale, which computes by `__torch_dispatch__` as if it was their product."""

    @staticmethod
    def __new__(cls, whole: torch.Tensor, scale: float) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, whole: torch.Tensor, scale: float) -> None:
        self.whole, self.scale = whole, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].whole, args[0].scale)
        plain = torch.utils._pytree.tree_map(lambda t: t.whole * t.scale if isinstance(t, Packed) else t, args)
        return func(*plain, **(kwargs or {}))

    def __deepcopy__(self, memo: Any) -> Packed:
        return type(self)(self.whole, self.scale)


class PackedByFunction(Packed):
    """The same by `__torch_function__`, which looks inside the weight."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            return func(args[0], args[1].whole * args[1].scale, *args[2:])
        return super().__torch_function__(func, types, args, kwargs or {})


class Quantised(torch.nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        for i, linear in enumerate((self.first, self.second)):
            whole = torch.arange(64).reshape(8, 8) % (7 + i) - 3.0
            linear.weight = torch.nn.Parameter(kind(whole, 0.1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(self.first(self.norm(x) * 2)) * x
        return torch.tanh(self.second(y)) * torch.sigmoid(x)


@pytest.mark.parametrize("kind", [Packed, PackedByFunction])
def test_weights_that_only_their_library_computes_with(kind: Any, quick: fusion.FusionConfig) -> None:
    """The modules that hold them are eager steps, found at once; the rest is fused."""
    module = Quantised(kind).eval()
    check(module, quick, calls=8)
    report = {row.name: row for row in fusion.report(module).scopes}
    assert report["Quantised"].state == "fused" and report["Quantised"].recordings == 2
    assert "foreign_weight: first.weight is a tensor subclass" in report["first"].reason
    assert "its own library runs" in report["second"].reason and "pass it as an argument" not in str(report)


def test_a_weight_in_the_scopes_own_forward(quick: fusion.FusionConfig) -> None:
    class Direct(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(Packed(torch.ones(8, 8), 0.5), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(torch.nn.functional.linear(x, self.weight)) * 2

    module = Direct().eval()
    check(module, quick)
    assert reason(module).code == "foreign_weight" and scopes(module)["Direct"].statistics.recordings <= 2


def test_sparse_weights(quick: fusion.FusionConfig) -> None:
    class Sparse(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("pairs", torch.eye(8).to_sparse())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sparse.mm(self.pairs, x.T).T

    module = torch.nn.Sequential(Sparse(), Gated()).eval()
    check(module, quick)
    assert "torch.sparse_coo" in {row.name: row for row in fusion.report(module).scopes}["0"].reason


# ---- stacks


def stack() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))


STACKS = [
    (torch.nn.Sequential(Gated(), Gated(), Gated()), ["0", "1", "2"]),
    (torch.nn.Sequential(torch.nn.Linear(8, 8), stack(), stack(), torch.nn.Tanh()), ["1", "2"]),
    (torch.nn.Sequential(stack(), torch.nn.Sequential(Gated(), Gated())), ["1.0", "1.1"]),
    (torch.nn.Sequential(torch.nn.Sequential(Gated(), Gated()), torch.nn.Sequential(Gated(), Gated())), ["0", "1"]),
    (torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)), []),
    (torch.nn.Sequential(Gated()), []),
]


@pytest.mark.parametrize(("module", "blocks"), STACKS)
def test_stacks_of_equal_modules_are_blocks(
    module: torch.nn.Module, blocks: list[str], quick: fusion.FusionConfig
) -> None:
    assert list(find_blocks(module)) == blocks
    module = copy.deepcopy(module).eval()
    check(module, quick)
    states = {row.name: row.state for row in fusion.report(module).scopes}
    assert all(states[path] == "fused" for path in blocks), states


def test_blocks_of_a_stack_share_a_recording(followed: list[bool], quick: fusion.FusionConfig) -> None:
    module = torch.nn.Sequential(*(Gated() for _ in range(4))).eval()
    check(module, quick)
    assert followed == [True] * 3


# ---- pipelines


class Pipeline:
    """As diffusers has them: no module, but modules among its components."""

    def __init__(self) -> None:
        self.unet, self.vae, self.steps = Gated().eval(), Gated().eval(), 3

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet, "vae": self.vae, "same": self.vae, "steps": 3, "checker": None}

    def __call__(self, x: torch.Tensor) -> Any:
        return self.vae(self.unet(x))


class Wrapper:
    def __init__(self, model: Any) -> None:
        self.model, self.itself = model, self


def test_a_pipeline_is_enabled_by_its_components(quick: fusion.FusionConfig) -> None:
    pipeline, eager = Pipeline(), Pipeline()
    assert fusion.enable(pipeline, quick) is pipeline
    for x in rows():
        torch.testing.assert_close(no_grad(pipeline, x), no_grad(eager, x))
    report = fusion.report(pipeline)
    assert [(row.name.rpartition(".")[2], row.state) for row in report.scopes] == [("Gated", "fused")] * 2
    assert {row.name.partition(".")[0] for row in report.scopes} >= {"unet"} and report.totals.scopes == 2
    assert fusion.kernels_in_use(pipeline) and "unet.Gated" in str(report)
    fusion.disable(pipeline)
    assert "forward" not in vars(pipeline.unet) and "forward" not in vars(pipeline.vae)
    with pytest.raises(FusionError, match="not under fusion"):
        fusion.report(pipeline)


def test_a_report_finds_the_model_inside(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(Gated().eval(), quick)
    for outer in (Wrapper(model), Wrapper(Wrapper(model)), torch.nn.Sequential(model), Wrapper([model])):
        assert [row.name for row in fusion.report(outer).scopes] == ["Gated"]
    both = torch.nn.ModuleList([model, fusion.enable(Gated().eval(), quick)])
    assert [row.name for row in fusion.report(both).scopes] == ["0.Gated", "1.Gated"]


# ---- what is left in a model


def test_nothing_of_us_is_saved(quick: fusion.FusionConfig, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, eager = (transformer("llama", num_hidden_layers=1) for _ in range(2))
    fusion.enable(model, quick)
    ids = torch.arange(6)[None]
    for _ in range(3):
        no_grad(model, ids, use_cache=False)
    model.save_pretrained(tmp_path / "ours")
    eager.save_pretrained(tmp_path / "theirs")
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    assert list(model.state_dict()) == list(eager.state_dict()) and model.config.to_dict() == eager.config.to_dict()
    saved = io.BytesIO()
    torch.save(model, saved)
    assert b"fusion" not in saved.getvalue() and b"fusion" not in pickle.dumps(model)
    assert "forward" not in vars(copy.deepcopy(model).model.layers[0])


def test_hooks_that_collect_hidden_states(quick: fusion.FusionConfig) -> None:
    """transformers leaves hooks on all layers after the first call that asks for hidden states."""
    pytest.importorskip("transformers.utils.output_capturing")
    model, eager = (transformer("llama", num_hidden_layers=1) for _ in range(2))
    fusion.enable(model, quick)
    ids = torch.arange(6)[None]
    kept: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
    for ask in (False, False, True, False, False, False, True, True, False, False):
        kwargs = kept if ask else {"use_cache": False}
        found, wanted = no_grad(model, ids, **kwargs), no_grad(eager, ids, **kwargs)
        torch.testing.assert_close(found.logits, wanted.logits)
        assert len(found.hidden_states or ()) == len(wanted.hidden_states or ()) == (2 if ask else 0)
        for a, b in zip(found.hidden_states or (), wanted.hidden_states or (), strict=True):
            torch.testing.assert_close(a, b)
    assert any(layer._forward_hooks for layer in model.model.layers), "or transformers has another way by now"
    before = planned(model)
    for _ in range(3):
        no_grad(model, ids, use_cache=False)
    assert {name: planned(model)[name] - n for name, n in before.items()} == dict.fromkeys(before, 3)
    assert "collecting" in str(fusion.report(model)) and "hook:" not in str(fusion.report(model))


# ---- default devices
