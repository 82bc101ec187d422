"""Copies of modules under fusion that had a forward of their own, and calls while a module is being enabled."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import types
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fusion
from fusion.jit.signature import Signature
from fusion.patterns.errors import FusionError


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    def other(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x) * self.weight + 1


def free(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x) - 1


def pickled(module: torch.nn.Module) -> torch.nn.Module:
    loaded: torch.nn.Module = pickle.loads(pickle.dumps(module))
    return loaded


@pytest.mark.parametrize("way", [copy.deepcopy, pickled])
@pytest.mark.parametrize("bound", [True, False])
@torch.no_grad()
def test_a_forward_of_its_own_goes_with_copies(
    quick: fusion.FusionConfig, way: Callable[[torch.nn.Module], torch.nn.Module], bound: bool
) -> None:
    module = Scaled().eval()
    own = module.other if bound else free
    module.forward = own  # type: ignore[method-assign]
    fusion.enable(module, quick)
    x = torch.linspace(-1, 1, 4)
    twin = way(module)
    twin.weight.mul_(3)
    torch.testing.assert_close(twin(x), torch.exp(x) * 3 + 1 if bound else torch.exp(x) - 1)
    if bound:
        assert isinstance(twin.forward, types.MethodType) and twin.forward.__self__ is twin
    torch.testing.assert_close(module(x), torch.exp(x) + 1 if bound else torch.exp(x) - 1)
    fusion.disable(module)
    assert vars(module)["forward"] is own


@torch.no_grad()
def test_a_call_before_there_is_a_snapshot() -> None:
    entry = Signature(free).entry([], [], [0], free)
    x = torch.ones(2)
    assert torch.equal(entry(x), free(x))


class Pipeline:
    def __init__(self) -> None:
        self.unet, self.vae, self.steps = Scaled(), Scaled(), 3


def test_what_cannot_be_enabled_says_what_can() -> None:
    with pytest.raises(FusionError, match="unet, vae"):
        fusion.enable(Pipeline())  # type: ignore[arg-type]
    with pytest.raises(FusionError, match="For a function"):
        fusion.enable(free)  # type: ignore[arg-type]
    for made in (torch.jit.trace(Scaled().eval(), torch.ones(4)), torch.jit.script(torch.nn.SiLU())):
        with pytest.raises(FusionError, match="made from"):
            fusion.enable(made)


def test_a_wrapper_reports_what_is_enabled_inside(quick: fusion.FusionConfig) -> None:
    wrapper = torch.nn.Sequential(fusion.enable(Scaled().eval(), quick))
    assert [row.name for row in fusion.report(wrapper).scopes] == ["Scaled"]
    with pytest.raises(FusionError, match="not under fusion"):
        fusion.report(torch.nn.Sequential(Scaled()))


def replicated(module: torch.nn.Module) -> torch.nn.Module:
    """As torch.nn.DataParallel makes replicas; its parameters are then set one by one."""
    replica: torch.nn.Module = module._replicate_for_data_parallel()  # type: ignore[operator]
    for name, parameter in module._parameters.items():
        replica._parameters[name] = parameter
    return replica


class Factor(torch.nn.Module):
    """Multiplies by a plain attribute, which a copy may have another of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.factor = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiplied."""
        return torch.tanh(x * self.weight) * self.factor


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "replica": replicated,
    "average": lambda module: torch.optim.swa_utils.AveragedModel(module).module,
}


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("name", COPIES)
@torch.no_grad()
def test_a_copy_runs_itself(quick: fusion.FusionConfig, name: str, inner: bool) -> None:
    module = torch.nn.Sequential(Factor(), torch.nn.Tanh()).eval() if inner else Factor().eval()
    fusion.enable(module, quick)
    x = torch.linspace(-1, 1, 4)
    for _ in range(3):
        module(x)
    assert fusion.report(module).scopes[0].fused_calls > 0
    held = module[0] if inner else module
    twin = COPIES[name](held)
    twin.factor = 5.0
    assert torch.allclose(twin(x), torch.tanh(x) * 5)
    assert torch.allclose(held(x), torch.tanh(x) * 2)
    assert not any("fusion" in repr(value) for value in vars(twin).values())
    before = {**vars(held)}
    fusion.disable(module)
    assert set(before) - set(vars(held)) <= {
        "forward",
        "__getstate__",
        "_replicate_for_data_parallel",
        "__prepare_scriptable__",
    }
    assert torch.allclose(held(x), torch.tanh(x) * 2) and "forward" not in vars(held)


@torch.no_grad()
def test_a_copy_of_a_copy_can_be_enabled(quick: fusion.FusionConfig) -> None:
    first = fusion.enable(Factor().eval(), quick)
    second = fusion.enable(copy.copy(first), quick)
    second.factor = 3.0
    x = torch.linspace(-1, 1, 4)
    for _ in range(3):
        assert torch.allclose(first(x), torch.tanh(x) * 2) and torch.allclose(second(x), torch.tanh(x) * 3)
    assert fusion.report(second).scopes[0].fused_calls > 0
    fusion.disable(first)
    assert torch.allclose(second(x), torch.tanh(x) * 3)


@torch.no_grad()
def test_the_entry_is_a_function_like_the_forward(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Factor().eval(), quick)
    forward = module.forward
    assert isinstance(forward, types.MethodType) and forward.__self__ is module
    assert isinstance(forward.__func__, types.FunctionType)
    assert forward.__name__ == "forward" and forward.__doc__ == "Multiplied." and forward.__module__ == __name__
    assert inspect.signature(forward) == inspect.signature(Factor().forward)
    assert inspect.unwrap(forward) is Factor.forward
    assert typing.get_type_hints(forward) == typing.get_type_hints(Factor().forward)
    assert "torch.tanh" in inspect.getsource(forward)


def prepared(model: torch.nn.Module) -> torch.nn.Module:
    """What accelerate does to a model for mixed precision."""

    def cast(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs).float()

        return call

    model._original_forward = model.forward
    function = getattr(model.forward, "__func__", None)
    if function is None:
        model.forward = cast(torch.autocast("cpu", torch.bfloat16)(model.forward))
    else:
        method = types.MethodType(torch.autocast("cpu", torch.bfloat16)(function), model)
        model.forward = types.MethodType(cast(method.__func__), model)
    return model


def unwrapped(model: torch.nn.Module, bind: bool) -> torch.nn.Module:
    """What accelerate does to be rid of it; `bind` as its newer versions do."""
    forward: Any = model.forward
    original = model.__dict__.pop("_original_forward")
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
        if forward == original:
            break
    if bind or not isinstance(forward, types.MethodType):
        forward = types.MethodType(forward, model)
    model.forward = forward
    return model


@pytest.mark.parametrize("bind", [True, False])
@torch.no_grad()
def test_wrappers_that_are_taken_off_by_their_functions(quick: fusion.FusionConfig, bind: bool) -> None:
    eager, model = Factor().eval(), fusion.enable(Factor().eval(), quick)
    x = torch.linspace(-1, 1, 12).view(3, 4)
    for _ in range(3):
        torch.testing.assert_close(model(x), eager(x))
    for _ in range(3):
        torch.testing.assert_close(prepared(model)(x), prepared(eager)(x))
        unwrapped(model, bind), unwrapped(eager, bind)
        for rows in (1, 2, 3):
            torch.testing.assert_close(model(x[:rows]), eager(x[:rows]))
    fusion.disable(model)
    torch.testing.assert_close(model(x), eager(x))


class Named(torch.nn.Module):
    """Whose parameters' names leave none for the module itself."""

    def forward(this, x: torch.Tensor, /, y: float = 2.0, *rest: Any, self: float = 1.0, **more: Any) -> torch.Tensor:
        return torch.tanh(x) * y * self + len(rest) + len(more)


@torch.no_grad()
def test_a_method_takes_any_names(quick: fusion.FusionConfig) -> None:
    eager, model = Named().eval(), fusion.enable(Named().eval(), quick)
    x = torch.linspace(-1, 1, 12).view(3, 4)
    assert inspect.signature(model.forward) == inspect.signature(eager.forward)
    for call in (lambda m: m(x), lambda m: m.forward(x, 3.0, 1, self=4.0, m=2), lambda m: m(x, y=1.5, this=0, x=1)):
        for _ in range(3):
            torch.testing.assert_close(call(model), call(eager))


@torch.no_grad()
def test_a_wrapper_of_the_users_around_ours_stays(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Factor().eval(), quick)
    ours = module.forward

    @functools.wraps(ours)
    def wrapper(x: torch.Tensor) -> torch.Tensor:
        return ours(x) + 1

    module.forward = wrapper  # type: ignore[method-assign]
    fusion.disable(module)
    x = torch.ones(4)
    assert vars(module)["forward"] is wrapper and torch.allclose(module(x), torch.tanh(x) * 2 + 1)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@torch.no_grad()
def test_torch_takes_a_module_under_fusion(quick: fusion.FusionConfig) -> None:
    """Scripted, traced, exported and compiled, whatever torch makes of it, and the module is as before."""
    module = torch.nn.Sequential(Factor(), Factor()).eval()
    fusion.enable(module, quick)
    x = torch.linspace(-1, 1, 4)
    for _ in range(3):
        expected = module(x)
    inside, planned = list(module), fusion.report(module).scopes[0].fused_calls
    assert torch.allclose(torch.jit.script(module)(x), expected)
    assert torch.allclose(torch.jit.trace(module, x)(x), expected)
    assert torch.allclose(torch.export.export(module, (x,)).module()(x), expected)
    compiled = torch.compile(module, backend="eager")
    for _ in range(3):
        assert torch.allclose(compiled(x), expected)
    assert fusion.report(module).scopes[0].fused_calls > planned  # its plan ran inside
    planned = fusion.report(module).scopes[0].fused_calls
    assert list(module) == inside and torch.allclose(module(x), expected)
    assert fusion.report(module).scopes[0].fused_calls > planned


@torch.no_grad()
def test_a_compiled_module_inside_and_compiling_before(quick: fusion.FusionConfig) -> None:
    """Enabled before or after compiling, and with a compiled part inside: the results are eager's."""
    x = torch.linspace(-1, 1, 4)
    expected = torch.tanh(torch.tanh(x) * 2) * 2
    module = torch.nn.Sequential(Factor(), Factor()).eval()
    compiled = torch.compile(module, backend="eager")
    assert torch.allclose(compiled(x), expected)
    fusion.enable(module, quick)
    for _ in range(4):
        assert torch.allclose(compiled(x), expected) and torch.allclose(module(x), expected)
    fusion.disable(module)
    assert torch.allclose(compiled(x), expected)
    parts = torch.nn.Sequential(Factor(), torch.compile(Factor(), backend="eager")).eval()
    fusion.enable(parts, quick)
    for _ in range(4):
        assert torch.allclose(parts(x), expected)
    function = fusion.fuse(torch.compile(lambda x: torch.tanh(x) * 2, backend="eager"), quick)
    for _ in range(4):
        assert torch.allclose(function(x), torch.tanh(x) * 2)
