"""The acceptance rule, at its edges."""

from __future__ import annotations

import math

import pytest
import torch

from fusion.patterns.verify import EAGER_FACTOR, accept, accept_all, ulp

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


def exact(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def up(x: torch.Tensor, steps: int = 1) -> torch.Tensor:
    """`x`, `steps` representable numbers further from zero."""
    for _ in range(steps):
        x = torch.nextafter(x, torch.full_like(x, math.inf).copysign(x))
    return x


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_ulp_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    x = torch.cat([exact(500).exp() * 2.0**e for e in (-10, 0, 4)] + [exact(1) * 0 + v for v in (1.0, 2.0, info.tiny)])
    x = x.to(dtype)
    assert torch.equal(ulp(x.double(), dtype), up(x).double() - x.double())
    assert torch.equal(ulp(-x.double(), dtype), ulp(x.double(), dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_of_zero_and_subnormals_is_the_smallest_subnormal(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    assert ulp(torch.tensor([0.0, info.tiny / 4], dtype=torch.float64), dtype).tolist() == [info.tiny * info.eps] * 2


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (7, 33)])
def test_eager_itself_is_accepted(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    truth = exact(*shape)
    verdict = accept(truth.to(dtype), truth.to(dtype), truth)
    assert verdict.ok
    assert verdict.reason == ""
    assert verdict.error_fused <= EAGER_FACTOR * verdict.error_eager + verdict.ulp


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_neighbour_of_an_exact_eager_result_is_accepted_and_the_next_but_one_is_not(dtype: torch.dtype) -> None:
    eager = exact(100).to(dtype)
    truth = eager.double()  # eager is exact: only the ulp is left
    assert accept(up(eager), eager, truth).ok
    refused = accept(up(eager, 2), eager, truth)
    assert not refused.ok
    assert refused.error_eager == 0
    assert refused.error_fused == 2 * refused.ulp
    assert "plus one ulp of" in refused.reason


def test_a_faithfully_rounded_result_is_accepted_wherever_the_exact_value_lies() -> None:
    below = exact(1000).bfloat16()
    above = up(below)
    for share in (0.01, 0.49, 0.5, 0.51, 0.99):
        truth = below.double() + share * (above.double() - below.double())
        for fused in (below, above):
            for eager in (below, above):
                assert accept(fused, eager, truth).ok


def test_the_bound_is_one_and_a_half_times_eagers_worst_error_plus_one_ulp() -> None:
    truth = torch.full((4,), 1.0, dtype=torch.float64)
    eager = torch.tensor([1.0, 1.0, 1.0, 1.0 + 2**-10])
    bound = 1.5 * 2**-10 + 2**-23
    for error, accepted in ((bound, True), (bound + 2**-23, False)):
        assert accept(torch.tensor([1.0 + error, 1, 1, 1]), eager, truth).ok is accepted


def test_the_slack_of_a_large_element_does_not_cover_a_small_one() -> None:
    truth = torch.tensor([1.0, 2.0**20], dtype=torch.float64)
    eager = truth.float()
    far = torch.tensor([1.0 + 2**-10, 2.0**20])
    verdict = accept(far, eager, truth)  # 2**-10 is far below the ulp of 2**20, which is 2**-3
    assert not verdict.ok
    assert verdict.ulp == 2**-23
    assert "at [0]" in verdict.reason


def test_a_single_wrong_element_is_found_among_many() -> None:
    truth = exact(64, 65)
    eager, fused = truth.bfloat16(), truth.bfloat16()
    fused[40, 3] += 0.25
    verdict = accept(fused, eager, truth)
    assert not verdict.ok
    assert "[40, 3]" in verdict.reason


def test_a_wrong_scalar_is_refused() -> None:
    assert not accept(torch.tensor(1.5), torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64)).ok


def test_empty_tensors_are_accepted() -> None:
    empty = torch.empty(0, 5)
    assert accept(empty, empty, empty.double()).ok


SPECIALS = torch.tensor([math.nan, math.inf, -math.inf, 1.0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_inf_in_eagers_places_are_accepted(dtype: torch.dtype) -> None:
    assert accept(SPECIALS.to(dtype), SPECIALS.to(dtype), SPECIALS.double()).ok


@pytest.mark.parametrize(
    ("place", "wrong", "reason"),
    [(0, 1.0, "NaN"), (3, math.nan, "NaN"), (1, -math.inf, "inf"), (2, math.inf, "inf"), (1, 3.0e38, "inf")],
)
def test_nan_and_inf_elsewhere_are_refused(place: int, wrong: float, reason: str) -> None:
    fused = SPECIALS.clone()
    fused[place] = wrong
    verdict = accept(fused, SPECIALS, SPECIALS.double())
    assert not verdict.ok
    assert reason in verdict.reason


def test_wrong_values_beside_specials_are_refused() -> None:
    fused = SPECIALS.clone()
    fused[3] = 1.1
    verdict = accept(fused, SPECIALS, SPECIALS.double())
    assert not verdict.ok
    assert "at [3]" in verdict.reason


def test_where_eager_overflows_and_the_exact_value_does_not_eager_is_followed() -> None:
    truth = torch.tensor([70000.0, 1.0], dtype=torch.float64)
    eager = truth.half()
    assert eager[0] == math.inf
    assert accept(eager.clone(), eager, truth).ok
    finite = torch.tensor([65504.0, 1.0]).half()
    assert not accept(finite, eager, truth).ok


def test_where_only_the_exact_value_is_infinite_eager_stands_for_it() -> None:
    truth = torch.tensor([math.inf, math.nan, 1.0], dtype=torch.float64)
    eager = torch.tensor([2.0, 3.0, 1.0])
    assert accept(up(eager), eager, truth).ok
    assert not accept(eager * 1.1, eager, truth).ok


@pytest.mark.parametrize("values", [torch.tensor([1, 2, 3]), torch.tensor([True, False, True])])
def test_integers_and_bools_must_be_equal(values: torch.Tensor) -> None:
    assert accept(values.clone(), values, values).ok
    other = values.clone()
    other[1] = 1
    verdict = accept(other, values, values)
    assert not verdict.ok
    assert verdict.reason == "1 of 3 elements differ from eager's."


def test_shape_dtype_and_strides_must_be_eagers() -> None:
    x = torch.ones(2, 3)
    assert "shape" in accept(torch.ones(3, 2), x, x.double()).reason
    assert "found bfloat16" in accept(x.bfloat16(), x, x.double()).reason
    assert "strides" in accept(torch.ones(3, 2).t(), x, x.double()).reason
    assert accept(torch.ones(2, 3), x, x.double()).ok


def test_strides_of_single_elements_do_not_count() -> None:
    x = torch.ones(1, 3)
    assert accept(x.as_strided((1, 3), (77, 1)), x, x.double()).ok


def test_the_inputs_are_left_alone() -> None:
    tensors = [exact(5, seed=1).float(), exact(5, seed=2).float(), exact(5)]
    before = [t.clone() for t in tensors]
    accept(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    double = exact(5)
    accept(double, double, double)
    assert torch.equal(double, exact(5))


def test_accept_all_names_the_output_that_is_refused() -> None:
    x = torch.ones(3)
    verdict = accept_all({"output": (x, x, x.double()), "sum": (x + 1, x, x.double())})
    assert not verdict.ok
    assert verdict.reason.startswith("Output 'sum': ")


def test_accept_all_hands_back_the_verdict_closest_to_a_refusal() -> None:
    x = torch.ones(3)
    verdict = accept_all({"same": (x, x, x.double()), "next": (up(x), x, x.double())})
    assert verdict.ok
    assert verdict.error_fused == verdict.ulp == 2**-23
    assert accept_all({}).ok
