"""What eager does beside values: errors it raises, signs of zeros, modes that a function switches inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fusion


def _fused(function: Callable[..., Any], *samples: tuple[Any, ...]) -> Any:
    """`function` under fusion, recorded and checked on `samples`; a plan has run."""
    made = fusion.fuse(function, {"profile": False})
    with torch.no_grad():
        for sample in samples:
            made(*sample)
    row = made.report().scopes[0]
    assert row.fused_calls > 0 and row.fused_ops > 0, row.reason
    return made


@pytest.mark.parametrize("bad", [5, -1, 3])
def test_a_class_outside_the_range_is_an_error(bad: int) -> None:
    fused = _fused(lambda t: F.one_hot(t, 3) * 2 + 1, *[(torch.arange(n) % 3,) for n in (4, 5, 6, 4)])
    with torch.no_grad():
        assert torch.equal(fused(torch.tensor([2, 0])), F.one_hot(torch.tensor([2, 0]), 3) * 2 + 1)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="Class values"):
                fused(torch.tensor([0, bad]))


KEEPS_ITS_SIGN = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp above": lambda x: x.clamp(min=0),
    "clamp above -0": lambda x: x.clamp(min=-0.0),
    "clamp below": lambda x: x.clamp(max=0),
    "clamp below -0": lambda x: x.clamp(max=-0.0),
    "clamp between": lambda x: x.clamp(0, 1),
    "clamp up to": lambda x: x.clamp(-1, 0),
    "hardtanh": lambda x: F.hardtanh(x, 0, 1),
    "in place": lambda x: x.clone().relu_(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KEEPS_ITS_SIGN)
def test_the_sign_of_zero(name: str, dtype: torch.dtype) -> None:
    """Sizes of less than a vector, of whole vectors, and of vectors with a rest."""
    operator = KEEPS_ITS_SIGN[name]
    fused = _fused(lambda x: operator(x) * 1, *[(torch.randn(n).to(dtype),) for n in (64, 65, 7, 64)])
    with torch.no_grad():
        for size in (1, 7, 37, 64, 1000):
            for values in ([-0.0], [0.0, -0.0], [-0.25, 0.0, -0.0, 0.3, torch.nan]):
                x = torch.tensor(values * size)[:size].to(dtype)
                found, expected = fused(x), operator(x) * 1
                assert torch.equal(torch.signbit(found[~x.isnan()]), torch.signbit(expected[~x.isnan()]))
                assert torch.equal(found.isnan(), expected.isnan())


def test_inference_mode_switched_off_inside() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False):
            return x.clone() * 2

    fused = fusion.fuse(function, {"profile": False})
    with torch.inference_mode():
        for _ in range(3):
            assert fused(torch.ones(2)).is_inference() == function(torch.ones(2)).is_inference() is False
    assert "inference mode" in fused.report().scopes[0].reason


def test_inference_mode_switched_on_inside() -> None:
    @torch.inference_mode()
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 2

    fused = fusion.fuse(function, {"profile": False})
    with torch.no_grad():
        for _ in range(3):
            assert fused(torch.ones(2)).is_inference() == function(torch.ones(2)).is_inference() is True


def test_gradients_switched_on_inside() -> None:
    weight = torch.ones(2, requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return torch.tanh(x * weight)

    def slope(x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (found,) = torch.autograd.grad((x * x).sum(), x)
        return found + 1

    for each in (function, slope):
        fused = fusion.fuse(each, {"profile": False})
        with torch.no_grad():
            for _ in range(3):
                found, expected = fused(torch.ones(2)), each(torch.ones(2))
                assert torch.equal(found, expected) and found.requires_grad == expected.requires_grad


@pytest.mark.parametrize(
    "recorded, later",
    [
        (lambda: torch.randn(14, 10)[::2, ::2].t(), lambda: torch.ones(1).expand(5, 7)),
        (lambda: torch.randn(3, 7)[:, :4].t(), lambda: torch.ones(6, 1).expand(6, 5)),
        (lambda: torch.randn(6, 9)[::2, ::3], lambda: torch.ones(3, 1).expand(3, 3)),
        (lambda: torch.randn(6, 9)[::2, ::3], lambda: torch.ones(1, 3).expand(3, 3)),
    ],
)
def test_a_stride_that_was_a_symbol_is_0(
    recorded: Callable[[], torch.Tensor], later: Callable[[], torch.Tensor]
) -> None:
    for function in (lambda x: x.clone() * 2, lambda x: x * 2):
        fused = _fused(function, *[(recorded(),) for _ in range(3)])
        with torch.no_grad():
            for _ in range(3):
                found, expected = fused(later()), function(later())
                assert torch.equal(found, expected) and found.stride() == expected.stride()
