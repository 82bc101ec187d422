"""Samples of calls, for every view of the operator table."""

from __future__ import annotations

from sample_values import BOX, Sample, counted, sample

ONES = counted(1, 3, 1, 4)

VIEWS: dict[str, list[Sample]] = {
    "contiguous.default": [sample(BOX.transpose(0, 1))],
    "view.default": [sample(BOX, s) for s in ((6, 4), (2, 12), (24,), (2, 2, 6), (2, 3, 1, 4), (2, 3, 2, 2), (4, 6))],
    "reshape.default": [sample(BOX, (3, 8)), sample(BOX.transpose(0, 2), (4, 6)), sample(counted(1), ())],
    "_unsafe_view.default": [sample(BOX, (6, 4))],
    "flatten.using_ints": [sample(BOX), sample(BOX, 1), sample(BOX, 0, 1)],
    "unflatten.int": [sample(BOX, 2, (2, 2)), sample(BOX, -1, (4, 1))],
    "squeeze.default": [sample(ONES)],
    "squeeze.dim": [sample(ONES, 0), sample(ONES, 1), sample(ONES, -2)],
    "squeeze.dims": [sample(ONES, (0, 2)), sample(ONES, (1, 2))],
    "view_as.default": [sample(BOX, counted(6, 4))],
    "reshape_as.default": [sample(BOX, counted(3, 8))],
    "transpose.int": [sample(BOX, 0, 1), sample(BOX, -1, 0), sample(BOX, 1, 1)],
    "t.default": [sample(counted(3, 4)), sample(counted(5))],
    "numpy_T.default": [sample(counted(3, 4)), sample(BOX)],
    "mT.default": [sample(BOX)],
    "permute.default": [sample(BOX, (2, 0, 1)), sample(BOX, (-1, 1, 0))],
    "unsqueeze.default": [sample(BOX, d) for d in (0, 2, 3, -1, -4)],
    "expand.default": [sample(ONES, (5, 3, 2, 4)), sample(ONES, (-1, 3, 6, -1)), sample(counted(4), (2, 3, 4))],
    "expand_as.default": [sample(counted(4), BOX)],
    "broadcast_to.default": [sample(counted(3, 1), (2, 3, 4))],
    "slice.Tensor": [
        sample(BOX), sample(BOX, 2, 1, 3), sample(BOX, 2, 2, 2**63 - 1), sample(BOX, -1, None, 2),
        sample(BOX, 2, -2, 4), sample(BOX, 1, 0, 3, 2), sample(BOX, 2, 1, 4, 2), sample(BOX, 1, 3, 5),
    ],
    "select.int": [sample(BOX, 0, 1), sample(BOX, -1, 2), sample(BOX, 1, -1)],
    "narrow.default": [sample(BOX, 1, 1, 2), sample(BOX, -1, 0, 3), sample(BOX, 2, -2, 2)],
    "chunk.default": [sample(BOX, 2, 2), sample(BOX, 2, -2), sample(BOX, 2)],
    "unsafe_chunk.default": [sample(BOX, 2, 2)],
    "split.Tensor": [sample(BOX, 2, 1), sample(BOX, 1)],
    "split.sizes": [sample(BOX, (1, 3), -1)],
    "split.default": [sample(BOX, (1, 3), -1)],
    "split_with_sizes.default": [sample(BOX, (1, 3), 2), sample(BOX, (1, 1))],
    "unbind.int": [sample(BOX), sample(BOX, 1), sample(BOX, -1)],
}  # fmt: skip
VIEWS |= {
    "ravel.default": [sample(BOX)],
    "atleast_1d.default": [sample(counted(1).view(()))],
    "atleast_2d.default": [sample(counted(5))],
    "atleast_3d.default": [sample(counted(5)), sample(counted(5, 2))],
    "mH.default": [sample(BOX)],
    "adjoint.default": [sample(BOX)],
    "unsafe_split.Tensor": [sample(BOX, 2, 1)],
    "unsafe_split_with_sizes.default": [sample(BOX, (1, 3), 2)],
    "tensor_split.sections": [sample(BOX, 2, 1), sample(BOX, 3, -1)],
    "tensor_split.indices": [sample(BOX, (1, 3), 2), sample(BOX, (1, 9), 2), sample(BOX, (), 0)],
    "vsplit.int": [sample(BOX, 2)],
    "hsplit.int": [sample(BOX, 3), sample(counted(6), 2)],
    "dsplit.int": [sample(BOX, 2)],
    "vsplit.array": [sample(BOX, (1,))],
    "hsplit.array": [sample(BOX, (1, 2))],
    "dsplit.array": [sample(BOX, (1, 3))],
    "movedim.int": [sample(BOX, 0, 2), sample(BOX, -1, 0), sample(BOX, 1, 1)],
    "movedim.intlist": [sample(BOX, (0, 1), (1, 2)), sample(BOX, (2, 0), (0, -1))],
    "flip.default": [sample(BOX, (0,)), sample(BOX, (-1, 1)), sample(BOX, ())],
    "flipud.default": [sample(BOX)],
    "fliplr.default": [sample(BOX)],
    "repeat.default": [sample(BOX, (2, 1, 3)), sample(BOX, (2, 1, 1, 2)), sample(counted(3), (2, 2))],
    "tile.default": [sample(BOX, (2,)), sample(BOX, (2, 1, 1, 2)), sample(counted(3), (2, 2))],
    "repeat_interleave.self_int": [sample(BOX, 3, 1), sample(BOX, 2, -1), sample(BOX, 2)],
    "diagonal.default": [sample(BOX), sample(BOX, 1, 1, 2), sample(BOX, -1, 2, 0)],
    "unfold.default": [sample(BOX, 2, 2, 1), sample(BOX, 1, 3, 2), sample(counted(9), 0, 4, 2)],
}
for _name in ("alias", "detach", "clone", "lift_fresh", "positive"):
    VIEWS[f"{_name}.default"] = [sample(BOX), sample(BOX.transpose(0, 1))]
