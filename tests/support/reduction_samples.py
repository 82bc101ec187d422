"""Samples of calls, for every reduction row of the operator table."""

from __future__ import annotations

import math
from typing import Any

import torch
from sample_values import ROW, SPECIAL, YES, Sample, X, real, sample

MASKED = X.masked_fill(YES, -math.inf)  # rows with some -inf
OVER_ROWS = [X, X[:, :1], MASKED, torch.full((2, 3), -math.inf, dtype=torch.float64), real(2, 3, 5), X * 300]
SOLID = real(3, 4, 5, seed=4)
TIES = (real(3, 4, 5, seed=5) * 2).round()
MASK = TIES > 0
WEIGHT, BIAS = real(5, seed=6), real(5, seed=7)
PLANE = real(4, 5, seed=8)


def over_rows(dim: Any, *rest: Any, **kwargs: Any) -> list[Sample]:
    return [sample(x, dim, *rest, **kwargs) for x in OVER_ROWS]


def by_dimension(*rest: Any, one: bool = False, **kwargs: Any) -> list[Sample]:
    """Over the last dimension of rows with special values, and over others of a box."""
    dims: tuple[Any, ...] = (0, 1, -1) if one else ((0,), (-2,), (0, 2), (0, 1, 2), (-1,))
    last: Any = -1 if one else (-1,)
    return [*over_rows(last, *rest, **kwargs), *(sample(SOLID, d, *rest, **kwargs) for d in dims)]


def without_dimension(*rest: Any, **kwargs: Any) -> list[Sample]:
    return [sample(x, *rest, **kwargs) for x in (X, ROW, SOLID, SPECIAL)]


_EXTREMES = [*over_rows(-1), *(sample(TIES, d) for d in (0, 1, -1)), sample(TIES.long(), 1), sample(MASK, 0)]
_TRUTHS = [sample(TIES, 1), sample(MASK, 0), sample(MASK, -1, True), sample(SPECIAL.view(2, 5), 1)]
_NORMS = [sample(SOLID, p, d) for p in (2, 1, 0, math.inf, -math.inf, 3, 0.5) for d in (1, (0, 2), -1)]
_OF_LAYER = [
    sample(SOLID, (5,)), sample(SOLID, (5,), WEIGHT), sample(SOLID, (5,), WEIGHT, BIAS),
    sample(SOLID, (5,), None, BIAS), sample(SOLID, (4, 5), PLANE, None, 0.1),
    sample(SOLID, (5,), weight=WEIGHT, bias=BIAS, eps=0.5),
]  # fmt: skip

REDUCTIONS: dict[str, list[Sample]] = {
    "sum.default": [*without_dimension(), sample(MASK), sample(TIES.int())],
    "sum.dim_IntList": [
        *by_dimension(), *by_dimension(True), sample(ROW, None), sample(SOLID, ()), sample(MASK, (1,)),
        sample(TIES.long(), (0,)), sample(MASK, (1,), dtype=torch.float64),
    ],
    "mean.default": without_dimension(),
    "mean.dim": [*by_dimension(), *by_dimension(True), sample(X, (1,)), sample(MASK, (0,), dtype=torch.float64)],
    "nansum.default": [*by_dimension(), sample(SPECIAL)],
    "prod.default": [*without_dimension(), sample(TIES[0].long())],
    "prod.dim_int": [*by_dimension(one=True), sample(MASK, 1)],
    "count_nonzero.default": [sample(TIES), sample(MASK), sample(TIES, 1), sample(SPECIAL)],
    "count_nonzero.dim_IntList": [sample(TIES, (0, 2)), sample(MASK, (1,))],
    "max.default": [*without_dimension(), sample(TIES.int()), sample(MASK)],
    "min.default": [*without_dimension(), sample(TIES.int()), sample(MASK)],
    "max.dim": _EXTREMES,
    "min.dim": [*_EXTREMES, sample(TIES, 1, True)],
    "amax.default": [*by_dimension(True), sample(ROW), sample(SOLID, ()), sample(MASK, (0, 2))],
    "amin.default": [*by_dimension(True), sample(X, (1,)), sample(TIES.int(), (1,))],
    "argmax.default": [*_EXTREMES[:-1], sample(TIES), sample(SPECIAL)],
    "argmin.default": [*_EXTREMES[:-1], sample(TIES, 1, True), sample(TIES)],
    "aminmax.default": [sample(SOLID), sample(SOLID, dim=1), sample(SPECIAL, dim=0, keepdim=True), sample(MASK, dim=2)],
    "any.default": [sample(TIES), sample(MASK), sample(SPECIAL[:2])],
    "any.dim": _TRUTHS,
    "any.dims": [sample(MASK, (0, 2)), sample(TIES, None)],
    "all.default": [sample(TIES), sample(MASK), sample(SPECIAL[2:])],
    "all.dim": _TRUTHS,
    "all.dims": [sample(MASK, (0, 2)), sample(TIES, None)],
    "linalg_vector_norm.default": [*_NORMS, sample(SOLID), sample(SPECIAL, math.inf)],
    "linalg_norm.default": [sample(SOLID), sample(SOLID, None, (1,)), sample(SOLID, 1, 1), sample(SOLID, 3, (-1,))],
    "norm.Scalar": [sample(SOLID), sample(SOLID, 1)],
    "norm.ScalarOpt_dtype": [sample(SOLID, None, dtype=torch.float64), sample(SOLID, 3, dtype=torch.float64)],
    "norm.ScalarOpt_dim": [*_NORMS, sample(SOLID, None, (1,), True)],
    "norm.ScalarOpt_dim_dtype": [sample(SOLID, 2, (1,), True, dtype=torch.float64)],
    "logsumexp.default": [*by_dimension(), *by_dimension(True)],
    "softmax.int": [*by_dimension(one=True), sample(X, 1, torch.float64), sample(TIES.long(), 1, torch.float64)],
    "_softmax.default": by_dimension(False, one=True),
    "special_softmax.default": by_dimension(one=True),
    "_safe_softmax.default": [*by_dimension(one=True), sample(torch.full((2, 3), -math.inf, dtype=torch.float64), 1)],
    "log_softmax.int": by_dimension(one=True),
    "_log_softmax.default": by_dimension(False, one=True),
    "special_log_softmax.default": by_dimension(one=True),
    "layer_norm.default": _OF_LAYER,
    "native_layer_norm.default": [
        sample(SOLID, (5,), WEIGHT, BIAS, 1e-5), sample(SOLID, (4, 5), None, None, 0.1),
        sample(SOLID, (5,), None, BIAS, 0.1),
    ],
    "rms_norm.default": [
        sample(SOLID, (5,)), sample(SOLID, (5,), WEIGHT, 0.1), sample(SOLID, (4, 5), PLANE),
        sample(SOLID, (5,), eps=0.1, weight=WEIGHT),
    ],
    "_fused_rms_norm.default": [sample(SOLID, (5,), WEIGHT, 0.1), sample(SOLID, (4, 5), None, None)],
    "cumsum.default": [*over_rows(-1), *(sample(SOLID, d) for d in (0, 1)), sample(MASK, 1), sample(TIES.int(), 2)],
    "cumprod.default": [*over_rows(-1), *(sample(SOLID, d) for d in (0, 1)), sample(TIES.int(), 2)],
}  # fmt: skip
for _name in ("var", "std", "var_mean", "std_mean"):
    REDUCTIONS[f"{_name}.default"] = [*without_dimension()[:3], sample(SOLID, False)]
    REDUCTIONS[f"{_name}.dim"] = [*by_dimension(), sample(SOLID, (1,), False), sample(SOLID, (0, 2), True, True)]
    REDUCTIONS[f"{_name}.correction"] = [
        *by_dimension(correction=0), *by_dimension(correction=2.5), sample(SOLID), sample(X, (1,), correction=None),
        sample(SOLID, (1,), keepdim=True),
    ]  # fmt: skip
