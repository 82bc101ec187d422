"""What forwards compute of sizes: every expression gives eager's values at every size, and a plan runs."""

from __future__ import annotations

import fractions
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import PythonMod

import fusion
from fusion.patterns import symbols

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_gradients")]

Number = Callable[[Any, Any], Any]  # of two sizes

SIZES = [(3, 5), (7, 64), (1, 7), (7, 1), (3, 3), (0, 5), (3, 0)]

# Each is multiplied with a tensor.
NUMBERS: dict[str, Number] = {
    "scale": lambda n, m: m**-0.5 if m else 1.0,
    "root": lambda n, m: m**0.5,
    "math.sqrt": lambda n, m: math.sqrt(m),
    "math.pow": lambda n, m: math.pow(m + 1, -0.5),
    "share": lambda n, m: n / 3,
    "share of a share": lambda n, m: (1 - 0.1 * n) * (m * 0.1 + 0.5),
    "inverse": lambda n, m: 1.0 / max(m, 1),
    "int of a share": lambda n, m: int(n / 2),
    "int of a product": lambda n, m: int(n * 0.75),
    "int of a root": lambda n, m: int(n**0.5),
    "round": lambda n, m: round(n / 3),
    "round to digits": lambda n, m: round(n / 3, 2),
    "floor": lambda n, m: math.floor(n / 3),
    "ceil": lambda n, m: math.ceil(n / 3),
    "trunc": lambda n, m: math.trunc(n / 3),
    "half": lambda n, m: n // 2,
    "half of less": lambda n, m: (n - 7) // 2,
    "rounded up": lambda n, m: -(-m // 4) * 4,
    "by less than zero": lambda n, m: n // -3,
    "rest": lambda n, m: n % 3,
    "rest of less": lambda n, m: (n - 7) % 4,
    "rest by less than zero": lambda n, m: n % -3,
    "rest of a share": lambda n, m: n / 2 % 1,
    "divmod": lambda n, m: sum(divmod(n, 3)),
    "least": lambda n, m: min(n, 5, m),
    "most": lambda n, m: max((n, m)),
    "negative": lambda n, m: -n,
    "distance": lambda n, m: abs(n - 7),
    "square": lambda n, m: n**2 + m * n,
    "power of two": lambda n, m: 2.0**-n,
    "whole power of two": lambda n, m: 2 ** (n % 8),
    "shift": lambda n, m: (1 << m % 8) + (n >> 1),
    "bits": lambda n, m: (n & 3) + (n | 3) + (n ^ 3),
    "bit_length": lambda n, m: n.bit_length(),
    "log2": lambda n, m: int(math.log2(n + 1)),
    "float": lambda n, m: float(n),
    "comparison": lambda n, m: n > 4,
    "is_integer": lambda n, m: (n / 2).is_integer(),
    "chained": lambda n, m: 2 if 2 < n <= 7 else 3,
    "key": lambda n, m: {3: 1, 5: 2}.get(n, 9),
    "set": lambda n, m: len({n, m}),
    "format": lambda n, m: len(f"{n:04d}") + len(str(m)),
    "attributes": lambda n, m: n.real + n.numerator * n.denominator + n.conjugate(),
    "to_bytes": lambda n, m: n.to_bytes(2, "big")[1],
    "numpy": lambda n, m: float(numpy.sqrt(n)),
    "numpy product": lambda n, m: int(numpy.prod((n, m))),
    "fraction": lambda n, m: float(fractions.Fraction(int(n), 7)),
    "index": lambda n, m: [5, 6, 7, 8][n % 4],
    "operator.index": lambda n, m: operator.index(n),
    "gcd": lambda n, m: math.gcd(n, 6),
    "hypot": lambda n, m: math.hypot(n, m),
    "isinstance": lambda n, m: 2 if isinstance(n, int) else 3,
    "type": lambda n, m: 2 if type(n) is int else 3,
}

# Whose number becomes a size, a bound or an operand of another kind.
FORWARDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "attention's scale": lambda x: torch.softmax(x @ x.T * (x.size(-1) + 1) ** -0.5, -1),
    "full": lambda x: torch.full((x.shape[-1],), (x.shape[-1] + 1) ** -0.5) * x,
    "linspace": lambda x: torch.linspace(-1 + 1 / (x.shape[-1] + 1), 1, x.shape[-1]) * x,
    "arange": lambda x: torch.arange(0, 1, 1 / (x.shape[-1] + 1)) * 2,
    "alpha": lambda x: torch.add(x, x, alpha=(x.shape[-1] + 1) ** -0.5) * 2,
    "clamp": lambda x: x.clamp(-x.shape[-1] / 4, x.shape[-1] / 4) + 1,
    "zeros": lambda x: x.new_zeros(round(x.size(0) / 3), int(x.size(1) * 0.5)) + 1,
    "slice": lambda x: x[: int(x.shape[0] * 0.75), x.shape[1] // 2 :] * 2,
    "pad": lambda x: torch.nn.functional.pad(x, (0, -x.shape[-1] % 4)) * 2,
    "next power": lambda x: x.new_zeros(2 ** math.ceil(math.log2(x.shape[-1] + 1))) + 1,
    "tensor": lambda x: x + torch.tensor(x.shape[-1] / 2) + torch.scalar_tensor(x.shape[0]),
}

COMMON = ("scale", "root", "math.sqrt", "share", "int of a share", "half", "rounded up", "inverse")


def alike(found: Any, eager: Any) -> None:
    """The same nest of the same types, dtypes, shapes and values."""
    got, tree = pytree.tree_flatten(found)
    wanted, expected = pytree.tree_flatten(eager)
    assert tree == expected
    for one, other in zip(got, wanted, strict=True):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)
        else:
            assert one == other


def outcome(call: Callable[..., Any], x: torch.Tensor) -> Any:
    """A call's result, or its error in words."""
    try:
        return call(x)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def check(forward: Callable[[torch.Tensor], Any], config: fusion.FusionConfig, sizes: list[tuple[int, int]]) -> Any:
    """Calls `forward` under fusion several times at each size, and gives its scope."""
    fused = fusion.fuse(forward, config)
    for shape in sizes:
        x = torch.linspace(-2, 2, shape[0] * shape[1]).view(shape)
        for _ in range(3):
            alike(outcome(fused, x), outcome(forward, x))
    assert not fused.scope.refused, fused.scope.refused
    assert fused.scope.statistics.planned[0] >= len(sizes)
    assert fused.scope.statistics.fallbacks == 0
    return fused.scope


def times(number: Number) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * number(x.shape[0], x.size(-1)) + 1


@pytest.fixture(scope="module")
def unfused() -> fusion.FusionConfig:
    """Plans without kernels, which cost no compiler's time."""
    return fusion.FusionConfig(min_tensor_elements=1 << 30, profile=False, enable_cache=False)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_made_of_sizes(name: str, unfused: fusion.FusionConfig) -> None:
    check(times(NUMBERS[name]), unfused, SIZES)


@pytest.mark.parametrize("name", FORWARDS)
def test_a_use_of_a_number_made_of_sizes(name: str, unfused: fusion.FusionConfig) -> None:
    check(FORWARDS[name], unfused, SIZES)


@pytest.mark.parametrize("name", COMMON)
def test_the_common_ones_run_inside_kernels(name: str, quick: fusion.FusionConfig) -> None:
    scope = check(times(NUMBERS[name]), quick, [(3, 5), (7, 5), (9, 6)])
    assert all(compiled.kernels for known in scope.known for compiled, _ in known.plans.values())


@pytest.mark.parametrize(
    "name", ["rounded up", "half of less", "by less than zero", "rest of less", "rest by less than zero"]
)
def test_quotients_below_zero_round_down_in_kernels_too(name: str, quick: fusion.FusionConfig) -> None:
    check(times(NUMBERS[name]), quick, [(3, 5), (4, 6), (5, 7), (6, 8)])


def test_printed_quotients_of_sizes_are_pythons() -> None:
    n = symbols.symbol("s0")
    for dim in (
        symbols.floor_div(-n, 4),
        symbols.floor_div(n - 7, 3),
        PythonMod(n - 7, 4),
        symbols.floor_div(n, 4),
    ):
        for value in (2, 3, 5, 9):
            assert eval(symbols.print_python(dim), {"s0": value}) == symbols.evaluate(dim, {"s0": value})
    assert symbols.print_c(symbols.floor_div(n, 4)) == "(s0 / 4)"


# ---- results that hold sizes


@dataclass
class Sized:
    value: torch.Tensor
    shape: torch.Size
    rows: int


@dataclass(frozen=True, slots=True)
class Frozen:
    value: torch.Tensor
    parts: tuple[int, ...]


RESULTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "shape": lambda x: (x * 2, x.shape),
    "shape alone": lambda x: x.shape,
    "made shape": lambda x: ((x * 2).T.shape, x.shape[:1]),
    "size": lambda x: {"y": x * 2, "rows": x.size(0), "shape": x.size()},
    "list": lambda x: [x * 2, list(x.shape), [x.shape], x.numel(), x.stride()],
    "computed": lambda x: (x * 2, x.shape[0] // 2, x.size(-1) ** 0.5, x.shape[0] / 2, x.shape[0] > 3, -x.shape[1]),
    "dataclass": lambda x: Sized(x * 2, x.shape, x.shape[0]),
    "frozen dataclass": lambda x: Frozen(x * 2, tuple(x.shape)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_holds_sizes(name: str, unfused: fusion.FusionConfig) -> None:
    forward = RESULTS[name]
    fused = fusion.fuse(forward, unfused)
    for shape in SIZES:
        x = torch.linspace(-2, 2, shape[0] * shape[1]).view(shape)
        for _ in range(3):
            found, eager = fused(x), forward(x)
            assert repr(found) == repr(eager) and type(found) is type(eager)
            assert "Sym" not in repr(pytree.tree_map(type, vars(found) if isinstance(found, Sized) else found))
    assert fused.scope.statistics.planned[0] >= len(SIZES), fused.scope.statistics.last_reason
