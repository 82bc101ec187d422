"""Which nests are attention, and what part each axis plays."""

from __future__ import annotations

from typing import Any

import torch
from graphs import trace
from torch.nn.functional import scaled_dot_product_attention

from fusion.kernels.attention import AttentionNest, as_attention
from fusion.kernels.lower import lower


def attention(*inputs: torch.Tensor, **options: Any) -> AttentionNest | None:
    """The attention that a call of it is."""
    return as_attention(lower(trace(lambda *x: scaled_dot_product_attention(*x, **options), *inputs)))


def extents(axes: Any) -> list[Any]:
    """How far axes run."""
    return [axis.extent for axis in axes]


def test_each_axis_has_its_place() -> None:
    form = attention(torch.rand(2, 3, 5, 16), torch.rand(2, 3, 7, 16), torch.rand(2, 3, 7, 8))
    assert form is not None and form.head is None and form.end is None
    assert extents(form.batch) == [6] and extents(form.rows) == [5]
    assert (form.lane.extent, form.places, form.inner) == (8, 7, 16)


def test_heads_of_a_group_share_keys() -> None:
    form = attention(torch.rand(2, 6, 5, 16), torch.rand(2, 2, 7, 16), torch.rand(2, 2, 7, 16), enable_gqa=True)
    assert form is not None and form.head is not None
    assert (form.head.extent, form.group) == (6, 3) and extents(form.batch) == [2] and extents(form.rows) == [5]


def test_places_after_a_row_s_own_do_not_count() -> None:
    form = attention(torch.rand(1, 3, 5, 16), torch.rand(1, 3, 5, 16), torch.rand(1, 3, 5, 16), is_causal=True)
    assert form is not None and str(form.end) == "i1 + 1"


def test_other_nests_are_none() -> None:
    assert as_attention(lower(trace(lambda x: torch.softmax(x, -1), torch.rand(5, 8)))) is None
    assert as_attention(lower(trace(torch.mm, torch.rand(5, 8), torch.rand(8, 7)))) is None
