"""What a kernel may give on made data: any reference's result, and no other."""

from __future__ import annotations

import math

import pytest
import torch

from fusion.patterns.agree import References, disagreement, equal


def told(
    fused: list[float], eager: list[float], exact: list[float] | None = None, singly: list[float] | None = None
) -> str:
    exact_tensor = torch.tensor(exact or eager, dtype=torch.float64)
    among = References(torch.tensor(eager), exact_tensor, None if singly is None else torch.tensor(singly))
    return disagreement(torch.tensor(fused), among, 0.0, signs=True)


def test_any_reference_will_do_for_nan_and_infinities() -> None:
    assert not told([math.nan], [math.nan])
    assert not told([math.inf], [math.nan], singly=[math.inf])
    assert not told([2e30], [math.inf], exact=[2e30])
    assert "NaN or infinite" in told([math.nan], [math.inf], singly=[1.0])
    assert "NaN or infinite" in told([-math.inf], [math.inf])


def test_a_finite_result_where_all_references_are_infinite_is_wrong() -> None:
    assert "off by" in told([1.0], [math.inf])
    assert "off by" in told([1.0], [math.nan])


def test_errors_beyond_eagers_are_wrong() -> None:
    assert not told([1.0 + 2**-22], [1.0])
    assert "off by" in told([1.00001], [1.0])
    assert not told([1.00001], [1.0], exact=[1.000005])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_sign_of_a_zero_counts_where_the_references_agree_on_it(sign: float) -> None:
    zero = math.copysign(0.0, sign)
    assert not told([zero], [zero], singly=[zero])
    assert "other sign" in told([-zero], [zero], singly=[zero])
    assert not told([-zero], [zero], singly=[-zero])
    assert not told([-zero], [zero], exact=[-zero])


def test_integers_are_a_references() -> None:
    among = References(torch.tensor([1, 2]), torch.tensor([1, 3]))
    assert not disagreement(torch.tensor([1, 3]), among, 0.0, signs=True)
    assert disagreement(torch.tensor([1, 4]), among, 0.0, signs=True) == "1 of 2 elements differ from eager's."


def test_double_precision_has_a_few_ulp_of_the_largest() -> None:
    exact = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    assert not disagreement(exact + torch.tensor([0.0, 1e-15]), References(exact, exact), 0.0, signs=True)
    assert disagreement(exact + torch.tensor([0.0, 1e-12]), References(exact, exact), 0.0, signs=True)


def test_equal_is_of_bits() -> None:
    assert equal(torch.tensor([math.nan, -0.0]), torch.tensor([math.nan, -0.0]))
    assert not equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not equal(torch.tensor([0.0]), torch.tensor([0.0, 0.0]))
