"""Products that are computed once: the same operands, and no others, have a known result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from fusion.patterns import known_products
from fusion.patterns.known_products import KnownProducts, linear, remembered

X, WEIGHT, BIAS = torch.randn(64, 1024), torch.randn(1024, 1024), torch.randn(1024)


@pytest.fixture
def products() -> Iterator[KnownProducts]:
    with torch.no_grad(), remembered() as found:
        yield found


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an entry for each product that torch computes."""
    calls: list[int] = []
    native = torch._C._nn.linear

    def counted(x: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        calls.append(x.numel())
        return native(x, *rest)

    monkeypatch.setattr(torch._C._nn, "linear", counted)
    return calls


def test_the_same_operands_are_multiplied_once(products: KnownProducts, computed: list[int]) -> None:
    first = linear(X, WEIGHT, BIAS)
    again = linear(X.clone(), WEIGHT.view(1024, 1024), BIAS)
    assert len(computed) == 1 and torch.equal(first, again) and first.stride() == again.stride()
    assert products.seconds(WEIGHT) > 0 and products.seconds(X) == 0
    again.zero_()  # each caller has a tensor of its own
    assert torch.equal(linear(X, WEIGHT, BIAS), first)


OTHERS: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]] = {
    "another element": lambda: (X.clone().index_fill_(1, torch.tensor([7]), 0), WEIGHT, BIAS),
    "another weight": lambda: (X, WEIGHT.clone(), BIAS),
    "no bias": lambda: (X, WEIGHT, None),
    "another layout": lambda: (X.t().contiguous().t(), WEIGHT, BIAS),
    "another shape": lambda: (X.view(2, 32, 1024), WEIGHT, BIAS),
    "other signs of zero": lambda: (X * -0.0, WEIGHT, BIAS),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.usefixtures("products")
def test_other_operands_are_multiplied(other: str, computed: list[int]) -> None:
    linear(X, WEIGHT, BIAS)
    linear(X * 0.0, WEIGHT, BIAS)
    operands = OTHERS[other]()
    result = linear(*operands)
    assert len(computed) == 3
    torch.testing.assert_close(result, F.linear(*operands))


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("data", [False, True])
def test_a_weight_that_was_written_to_is_another(computed: list[int], data: bool) -> None:
    weight = WEIGHT.clone()
    linear(X, weight)
    (weight.data if data else weight)[3, 5] += 1  # through `data`, no version of it changes
    torch.testing.assert_close(linear(X, weight), F.linear(X, weight))
    weight.copy_(weight.flip(0))  # the same bits in other places
    torch.testing.assert_close(linear(X, weight), F.linear(X, weight))
    assert len(computed) == 3


@pytest.mark.usefixtures("products")
def test_small_products_and_other_dtypes_are_not_remembered(computed: list[int]) -> None:
    for operands in ((X[:2], WEIGHT), (X.double(), WEIGHT.double())):
        for _ in range(2):
            linear(*operands)
    assert len(computed) == 4


def test_results_take_no_more_memory_than_weights(products: KnownProducts, computed: list[int]) -> None:
    tall, slim = torch.randn(5000, 128), torch.randn(64, 128)
    for _ in range(2):
        linear(tall, slim)
    assert len(computed) == 2 and products.seconds(slim) > 0


def test_products_with_gradients_are_computed(computed: list[int]) -> None:
    weight = WEIGHT.clone().requires_grad_()
    with remembered():
        for _ in range(2):
            assert linear(X, weight).requires_grad
    assert len(computed) == 2


def test_each_thread_and_each_call_has_its_own(products: KnownProducts) -> None:
    with remembered() as inner:
        assert known_products.active() is inner
    assert known_products.active() is products
