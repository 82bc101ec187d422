"""Samples of calls, for every row of the operator table that makes elements from their indices."""

from __future__ import annotations

import math

import torch
from sample_values import BOX, FIRST, ROW, YES, Sample, X, Y, counted, sample

PIECES = [
    sample((counted(2, 3), counted(2, 2) + 50), 1),
    sample((BOX, BOX[:1] + 50, BOX + 90)),
    sample((BOX, BOX), -2),
    sample((YES, FIRST, X)),
]
LIKE = [sample(X), sample(FIRST.t()), sample(X, dtype=torch.float32)]

ELEMENTS: dict[str, list[Sample]] = {
    "cat.default": PIECES,
    "stack.default": [sample((BOX, BOX + 50)), sample((X, Y, X), 1), sample((X, Y, X), -1), sample((X,))],
    "pad.default": [sample(BOX, (1, 2)), sample(X, (0, 2, 3, 0), "constant", 0.5), sample(BOX, (-1, 1, 0, -1, 1, 0))],
    "constant_pad_nd.default": [sample(BOX, (1, 2, 3, 4), 7), sample(X, (-2, -1)), sample(YES, (1, 1), True)],
    "triu.default": [sample(m, k) for m in (BOX, X, YES) for k in (-5, -1, 0, 1, 2, 9)],
    "tril.default": [sample(m, k) for m in (BOX, X, YES) for k in (-5, -1, 0, 1, 2, 9)],
    "diff.default": [
        sample(X), sample(X, 1, 0), sample(YES, 1, -1), sample(X, 1, -1, Y[:, :2]), sample(X, 1, -1, None, Y),
        sample(X, 1, 1, append=Y[:, :1], prepend=Y[:, 1:2]),
    ],
    "roll.default": [
        sample(ROW, (2,)),
        *(sample(BOX, *moves) for moves in (((1,), (0,)), ((2, -1), (1, 2)), ((-9,), (2,)), ((1, 1), (2, 2)))),
    ],
    "glu.default": [sample(X), sample(X, 0)],
    "slice_scatter.default": [sample(X, Y[:, 1:3], 1, 2, 4), sample(X, Y[:2], 0, 1, 3), sample(X, Y[1:], 0, -3)],
    "select_scatter.default": [sample(X, Y[0], 0, 2), sample(X, Y[:, 0], 1, -1)],
    "zeros.default": [sample((2, 3)), sample((), dtype=torch.int64)],
    "ones.default": [sample((2, 3), dtype=torch.bool)],
    "full.default": [sample((2, 3), 2.5), sample((4,), 7), sample((2,), True), sample((2,), -math.inf)],
    "zeros_like.default": LIKE, "ones_like.default": LIKE, "zero.default": LIKE[:2],
    "full_like.default": [sample(X, 2.5), sample(FIRST, 3), sample(FIRST, 2.5, dtype=torch.float64)],
    "fill.Scalar": [sample(X, 2.5), sample(FIRST, 3)],
    "new_zeros.default": [sample(X, (2, 2))],
    "new_ones.default": [sample(FIRST, (3,)), sample(X, (3,), dtype=torch.bool)],
    "new_full.default": [sample(X, (3,), 1.5)],
    "scalar_tensor.default": [sample(1.5), sample(3, dtype=torch.int64)],
    "arange.default": [sample(7), sample(7.5), sample(5, dtype=torch.float64), sample(5, dtype=torch.int32)],
    "arange.start": [sample(2, 9), sample(-1.5, 3.0)],
    "arange.start_step": [sample(0, 9, 2), sample(9, 0, -3), sample(0.0, 1.0, 0.1), sample(0, 8, 2, dtype=X.dtype)],
    "eye.default": [sample(4), sample(3, dtype=torch.bool)],
    "eye.m": [sample(2, 5), sample(4, 3, dtype=torch.int64)],
    "linspace.default": [sample(-1.0, 3.0, 9), sample(0, 1, 4, dtype=torch.float64), sample(2.0, 5.0, 1)],
}  # fmt: skip
