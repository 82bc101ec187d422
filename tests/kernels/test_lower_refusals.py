"""Lowering: the graphs that are no kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graphs import EXAMPLES, normal, rms_norm, trace
from lowered import nest_of, refused

from fusion.kernels import inline
from fusion.kernels.loops import Axis
from fusion.kernels.lower import lower
from fusion.patterns import scalar
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.scalar import Load
from fusion.patterns.specs import TensorSpec


def test_library_calls_are_not_fusable() -> None:
    assert refused(lambda x: torch.relu(torch.linalg.inv_ex(x)[0]), normal(4, 4)).code == "not_fusable"


def test_uses_the_table_does_not_cover() -> None:
    error = refused(lambda x: x * torch.linalg.norm(x, 1, (0, 1)), normal(4, 4))
    assert error.code == "operator_use" and "norm of a matrix" in str(error)


def test_dtypes_no_kernel_holds() -> None:
    assert refused(lambda x: x * x, torch.ones(4, dtype=torch.complex64)).code == "dtype"


def test_outputs_that_are_not_dense() -> None:
    assert refused(lambda x: x[:, :2], normal(4, 4)).code == "output_layout"
    assert refused(lambda x: (x + 1).expand(3, 4), normal(1, 4)).code == "output_layout"


def test_outputs_without_a_common_space() -> None:
    assert refused(lambda x, y: (x + 1, y + 1), normal(4, 6), normal(5, 6)).code == "domain"


def test_a_reduction_over_another_dimension_than_the_last() -> None:
    over_first = nest_of(lambda x: F.softmax(x, 0), normal(4, 6))
    assert over_first.rows == (Axis("i0", 6),) and over_first.column == Axis("j", 4)
    turned = nest_of(lambda x: F.softmax(x, -1).transpose(0, 1).contiguous(), normal(4, 6))
    assert turned.rows == (Axis("i0", 4),) and turned.column == Axis("j", 6)


def test_a_reduction_over_neighbouring_dimensions_steps_through_memory_as_one() -> None:
    nest = nest_of(lambda x: x - x.mean((-2, -1), keepdim=True), normal(3, 4, 5))
    assert nest.column == Axis("j", 20)
    assert {str(n.offset) for n in scalar.walk(*nest.roots) if isinstance(n, Load)} == {"20*i0 + j"}


def test_reductions_that_would_repeat_for_every_column() -> None:
    assert refused(lambda x: x - x.mean(0) - x.mean(1, keepdim=True), normal(4, 6)).code == "reduction_in_column"
    assert (
        refused(lambda x, y: x * y.sum(-1, keepdim=True), normal(3, 4, 6), normal(4, 6)).code == "reduction_in_column"
    )


def test_scans_that_are_not_read_along_the_column() -> None:
    assert refused(lambda x: x.cumsum(-1).flip(-1) * 2.0, normal(4, 6)).code in ("scan_index", "not_fusable")
    assert refused(lambda x: x.cumsum(-1)[:, 1:] * 2.0, normal(4, 6)).code == "scan_index"
    assert refused(lambda x: torch.cat((x.cumsum(-1), x), -1), normal(4, 6)).code == "scan_index"
    nest_of(lambda x: x.cumsum(-1)[:, :4] * 2.0, normal(4, 6))


def test_reductions_of_rows_that_only_a_part_of_a_join_has() -> None:
    """Hoisted, such a reduction would run for every row, and read outside its operand for most."""

    def parts(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.cat((rms_norm(x, w), rms_norm(y, w)), 0)

    assert refused(parts, normal(4, 8), normal(5, 8), normal(8)).code == "reduction_in_join"
    nest_of(lambda x, y, w: rms_norm(torch.cat((x, y), 0), w), normal(4, 8), normal(5, 8), normal(8))


def test_regions_too_large_to_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "LIMIT", 16)
    lower(trace(lambda x: x + 1.0, normal(4)))
    assert refused(EXAMPLES["rope"].fn, *EXAMPLES["rope"].inputs()).code == "too_large"


def test_chains_too_deep_to_inline() -> None:
    def chain(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2000):
            x = x + 1.0
        return x

    assert refused(chain, normal(4)).code == "too_large"


def test_values_on_two_devices() -> None:
    specs = [TensorSpec(torch.float32, (4,), (1,), device) for device in ("cpu", "cuda", "cuda")]
    node = OpNode("aten.add.Tensor", (Ref("x"), Ref("y")), (), ("z",))
    with pytest.raises(LoweringError) as caught:
        lower(SubGraph(("x", "y"), (node,), ("z",), tuple(zip("xyz", specs, strict=True))))
    assert caught.value.code == "device"
