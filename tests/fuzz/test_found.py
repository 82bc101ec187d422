"""Programs that the fuzzer found to go wrong, as small as they were made; each must agree with eager now."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fuzz_check import check
from fuzz_pass import quick
from fuzz_program import Group, Program, Step, Tensor

import fusion
from fusion import api
from fusion.kernels.backends.cpp.toolchain import find_toolchain

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler")]

SIZES = tuple((("B", b), ("N", n)) for b, n in ((2, 5), (3, 7), (2, 12)))


def program(inputs: dict[str, tuple[tuple[int | str, ...], torch.dtype]], *texts: str, **state: Tensor) -> Program:
    """A program that runs `texts` on `inputs` and returns what the last one makes."""
    steps = tuple(Step(text, ()) for text in texts)
    given = tuple(Tensor(name, shape, dtype) for name, (shape, dtype) in inputs.items())
    groups = tuple(Group(name, "plain", (name,)) for name in inputs)
    return Program(given, tuple(state.values()), groups, steps, texts[-1].split(" = ")[0], SIZES)


FLOAT, HALF, BOOL, WHOLE = torch.float32, torch.bfloat16, torch.bool, torch.int64

FOUND = {
    "a slice that starts behind the end": program(
        {"x0": (("N", 1), FLOAT)}, "v0 = x0[..., 3:5]", "v1 = torch.cat((v0, x0), -1) * 2"
    ),
    "a kernel's input that only lends its dtype": program(
        {"x0": (("B", 8, "N"), torch.float64), "x1": (("B", 8, "N"), WHOLE)},
        "v0 = F.relu(x0).flatten().float()",
        "v1 = v0.type_as(x1)",
    ),
    "a dtype lent by what has more dimensions": program(
        {"x0": (("B", "N"), FLOAT), "x1": ((3, "B", "N"), HALF)}, "v0 = x0 * 2", "v1 = v0.type_as(x1) + 1"
    ),
    "an argument that is lifted": program(
        {"x0": (("B", "N"), FLOAT)}, "v0 = torch.ops.aten.lift_fresh.default(x0)", "v1 = v0.tanh() * 2"
    ),
    "a negative bound of what has no sign": program(
        {"x0": (("B", "N"), torch.uint8)}, "v0 = x0 > -1", "v1 = torch.clamp(x0, -1, 1) + v0"
    ),
    "a mean of products over nothing": program(
        {"x0": (("B", "N", 0), HALF)},
        "v0 = x0 * 2",
        "v1 = v0.unflatten(1, (-1, 1))",
        "v2 = v0.prod(1)",
        "v3 = v2.mean()",
    ),
    "the double reference of a bool": program({"x0": ((1,), BOOL)}, "v0 = -1.5 / x0"),
    "a norm of a small power": program(
        {"x0": ((1,), WHOLE)},
        "v0 = x0 + torch.ones(1)",
        "v1 = torch.ops.aten.norm.ScalarOpt_dim_dtype(v0, 0.001, [-1], False, dtype=torch.float32)",
    ),
    "a bool squared": program({"x0": (("B", "N"), FLOAT)}, "v0 = x0 > x0.mean()", "v1 = v0.flip(0)", "v2 = v1**2"),
    "a list of one result": program(
        {"x0": ((1,), FLOAT)}, "v0 = torch.where(x0 * 2 > 0)[0]", "v1 = torch.sub(x0, x0, alpha=0.5)"
    ),
    "a tensor without dimensions beside one in half precision": program(
        {"x0": (("N", 8), HALF), "x1": ((), FLOAT)}, "v0 = x1 - x0", "v1 = v0.double()"
    ),
    "a sum over an empty dimension and another": program(
        {"x0": (("B", "N", 0), HALF)}, "v0 = torch.threshold(x0, 3, -1.5)", "v1 = v0.sum((-3, -1)) * 2"
    ),
    "numbers beside half precision": program(
        {"x0": (("N", 8), HALF)}, "v0 = x0 + 1.2345678", "v1 = (v0 - 0.3) * 1.2345678", "v2 = v1 ** 3"
    ),
    "a quotient in half precision that is cut off": program(
        {"x0": (("N", 8), HALF), "x1": ((), FLOAT)}, "v0 = torch.div(x1, x0, rounding_mode='trunc')", "v1 = v0 * 2"
    ),
    "a norm's weight of another shape": program(
        {"x0": (("B", 8, 1), HALF)},
        "v0 = x0.amax((0, 1), True) + 1",
        "v1, v2 = torch.ops.aten._fused_rms_norm.default(v0, v0.shape[-3:], x0, 0.0)",
        "v3 = v1 * 2",
    ),
    "a reduction of all of an empty tensor beside its elements": program(
        {"x0": (("B", "N", 0), FLOAT), "x1": (("N", 1), FLOAT)},
        "v0 = -x0.clamp(2)",
        "v1 = torch.add(v0, x1, alpha=-1.5)",
        "v2 = v0.all() | (x1 > 0)",
    ),
    "a negative fraction that became an integer": program(
        {"x0": (("N", 8), HALF)}, "v0 = (0 - x0).to(torch.int64)", "v1 = 7 / v0.to(torch.bfloat16).float()"
    ),
    "a write to an expanded argument": replace(
        program({"x0": (("N", 8), FLOAT), "x1": ((8,), FLOAT)}, "x0.masked_fill_(x1 > 0, 0)", "v0 = F.silu(x0) * x1"),
        inputs=(Tensor("x0", ("N", 8), FLOAT, "expanded"), Tensor("x1", (8,), FLOAT)),
    ),
    "half of a size that happens to be 1": replace(
        program(
            {"x0": (("B", "N", 8), BOOL)},
            "v0, v1 = torch.tensor_split(x0, 2, -3)",
            "v2 = torch.clamp(v1, -1, 1).sigmoid()",
            "v3 = v2 + (v0 + v0)",
        ),
        sizes=tuple((("B", b), ("N", n)) for b, n in ((3, 7), (2, 5), (3, 9))),
    ),
    "a scaled sum that cancels": program(
        {"x0": ((1,), FLOAT)}, "v0 = torch.sub(x0 * 3, x0, alpha=2.7)", "v1 = torch.addcmul(v0, x0, x0, value=-0.3)"
    ),
    "a function at the edge of where it is defined": program(
        {"x0": (("B", "N", 8), torch.float64)},
        "v0 = torch.ops.aten.logit.default(x0.softmax(1).cumsum(1))",
        "v1 = torch.cos(0.5 / v0)",
    ),
    "a float32 number as float64": program(
        {"x0": (("B", 8), FLOAT)}, "v0 = torch.full((x0.shape[0], 1), 0.001)", "v1 = v0.double() * 3"
    ),
    "a softmax over one element": program({"x0": ((8,), FLOAT)}, "v0 = x0.chunk(8, 0)[2]", "v1 = torch.softmax(v0, 0)"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_agrees_now(name: str) -> None:
    with quick():
        outcome = check(FOUND[name])
    assert outcome.planned > 0 and outcome.kernels > 0, outcome


def test_a_negative_number_from_data_is_a_condition() -> None:
    class Forward(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            n = y.sum().item()
            return x * 2 + n if n > 0 else (x - n) * 3

    module = fusion.enable(Forward().eval(), {"profile": False, "min_nodes": 1, "enable_cache": False})
    x = torch.rand(3, 5)
    with torch.no_grad():
        for number in (-3, -3, -3, 4, 4, -3, -5, 0):
            y = torch.tensor([number, 0])
            assert torch.equal(module(x, y), Forward()(x, y)), number
    (scope,) = (scope for _, scope in api._enabled(module)[""].scopes)
    assert scope.statistics.planned[0] > 0 and not scope.refused


@pytest.mark.parametrize("fill", [float("nan"), 0.0])
def test_a_value_that_equals_itself_not_or_another_one_is_a_condition(fill: float) -> None:
    """NaN is no other NaN's equal, and 0.0 is that of -0.0: neither may decide alone whether a plan is for a call."""

    class Forward(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x * 2 + math.copysign(1.0, y.max().item())

    module = fusion.enable(Forward().eval(), {"profile": False, "min_nodes": 1, "enable_cache": False})
    y = torch.full((4,), fill)
    with torch.no_grad():
        for other in (y, y, -y, -y, y):
            x = torch.rand(3, 5)
            assert torch.equal(module(x, other), Forward()(x, other))
    (scope,) = (scope for _, scope in api._enabled(module)[""].scopes)
    assert scope.statistics.planned[0] > 0 and all(known.refusal is None for known in scope.known)


@pytest.mark.parametrize("order", [0, 0.5, 1, 2, 3.5, -1, math.inf, -math.inf])
def test_the_norm_of_one_element_takes_no_power_of_it(order: float) -> None:
    """A power of a subnormal number is zero, and its root, too: torch gives the number."""

    def norms(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.linalg.vector_norm(x, order, -1) + 0, torch.linalg.vector_norm(x, order) + 0, x.norm(order, -1) * 1

    fused = fusion.fuse(norms, {"profile": False, "min_nodes": 1, "enable_cache": False})
    with torch.no_grad():
        for value in (2.9387e-39, -2.9387e-39, -1e-30, 1e30, 0.0, -0.0, math.inf, math.nan, -3.0):
            x = torch.tensor([value])
            for found, expected in zip(fused(x), norms(x), strict=True):
                assert torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True), (value, found, expected)
    assert fused.report().scopes[0].fused_calls > 1


def test_what_an_eager_module_writes_to_need_not_be_used_afterwards() -> None:
    """A plan is compared with eager by what its calls were given: by what that held before they wrote to it."""

    class Shift(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            y[..., 1:] = y[..., :-1] + 1
            return x[..., : int((x > 1.5).sum()) % 3 + 2]  # what data decides, call by call, is no part of a plan

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = Shift()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.shift(x, 3 / x)) + 1

    module = fusion.enable(Forward().eval(), {"profile": False, "min_nodes": 1, "enable_cache": False})
    with torch.no_grad():
        for rows in (4, 4, 9, 9, 3, 300, 4) * 2:
            x = torch.rand(rows, 8) + 1
            assert torch.equal(module(x), Forward()(x))
    scope = next(scope for _, scope in api._enabled(module)[""].scopes if "shift" not in scope.name)
    assert scope.statistics.planned[0] > 2 and all(known.refusal is None for known in scope.known)
