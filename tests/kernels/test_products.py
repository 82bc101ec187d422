"""Which nests are matrix products, and what part each axis plays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import trace

from fusion.kernels.lower import lower
from fusion.kernels.products import ProductNest, as_products
from fusion.patterns.errors import LoweringError


def products(fn: Callable[..., Any], *shapes: tuple[int, ...]) -> ProductNest | None:
    """The products that `fn` of tensors of such shapes is."""
    return as_products(lower(trace(fn, *(torch.rand(*shape) for shape in shapes))))


def places(form: ProductNest | None) -> tuple[list[Any], list[Any], list[Any], Any]:
    """Extents of the batch, row, outer and lane axes."""
    assert form is not None
    batch, rows, outer = ([a.extent for a in axes] for axes in (form.batch, form.rows, form.outer))
    return batch, rows, outer, form.lane.extent


@pytest.mark.parametrize(
    ("fn", "shapes", "wanted"),
    [
        (F.linear, ((5, 8), (7, 8)), ([], [5], [], 7)),
        (F.linear, ((2, 3, 8), (7, 8)), ([], [6], [], 7)),  # dense rows are one axis
        (F.linear, ((1, 1, 8), (7, 8)), ([], [], [], 7)),
        (F.linear, ((5, 8), (1, 8)), ([], [], [], 5)),  # of one output, the rows are the lanes
        (torch.mm, ((5, 8), (8, 7)), ([], [5], [], 7)),
        (torch.bmm, ((3, 5, 8), (3, 8, 7)), ([3], [5], [], 7)),
        (torch.matmul, ((3, 5, 8), (8, 7)), ([], [15], [], 7)),
        (torch.matmul, ((5, 8), (3, 8, 7)), ([], [5], [3], 7)),
        (lambda x, w: (F.linear(x, w) * 2).t(), ((5, 8), (7, 8)), ([], [5], [], 7)),
    ],
)
def test_each_axis_has_its_place(fn: Any, shapes: Any, wanted: Any) -> None:
    assert places(products(fn, *shapes)) == wanted


def test_products_of_one_activation_share_its_left_factors() -> None:
    form = products(lambda x, a, b: F.silu(F.linear(x, a)) * F.linear(x, b), (5, 8), (7, 8), (7, 8))
    assert form is not None and len(form.products) == 2 and len(form.lefts) == 1


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (lambda x: x.square().sum(-1), ((5, 8),)),  # both factors depend on the same axes
        (lambda x: x.sum(-1), ((5, 8),)),
        (lambda x, w: (x * w).amax(-1), ((5, 1, 8), (7, 8))),
        (lambda x: torch.softmax(x, -1), ((5, 8),)),
        (lambda x, w: x * w, ((5, 8), (5, 8))),
    ],
)
def test_other_nests_are_none(fn: Any, shapes: Any) -> None:
    assert products(fn, *shapes) is None


def test_a_product_in_a_row_reduction_is_no_kernel() -> None:
    from fusion.patterns.errors import LoweringError

    with pytest.raises(LoweringError) as refused:
        lower(trace(lambda x, w: F.linear(x, w).softmax(-1), torch.rand(5, 8), torch.rand(7, 8)))
    assert refused.value.code == "reduction_in_column"


@pytest.mark.parametrize(
    "equation", ["ij,jk", "ii,ij->j", "ij,jk,kl->il", "...j,jk->...k", "ij,kl->ijkl", "ijk,jkl->il", "ij,jk->k"]
)
def test_other_equations_stay_with_the_library(equation: str) -> None:
    operands = [torch.randn([4] * len(side.strip("."))) for side in equation.split("->")[0].split(",")]
    with pytest.raises(LoweringError):
        lower(trace(lambda *tensors: torch.einsum(equation, *tensors), *operands))
