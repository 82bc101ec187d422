"""Lowering: the values a LoopNest stands for, and its shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluate import evaluate
from graphs import DYNAMIC, EXAMPLES, LENGTH, normal, rms_norm, swiglu, trace
from lowered import check, nest_of

from fusion.kernels.loops import Axis
from fusion.kernels.lower import given_symbols, lower
from fusion.patterns import scalar, symbols
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.scalar import Apply, Load, Select
from fusion.patterns.specs import TensorSpec

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
S0 = symbols.symbol("s0")


def example(name: str, dtype: torch.dtype = torch.float32) -> SubGraph:
    fn, inputs = EXAMPLES[name]
    return trace(fn, *inputs(dtype, LENGTH), dynamic=DYNAMIC)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_mean_what_eager_computes_at_any_length(name: str, dtype: torch.dtype) -> None:
    graph = example(name, dtype)
    for length in (LENGTH, 3):
        check(graph, EXAMPLES[name].inputs(dtype, length))


@pytest.mark.parametrize("name", EXAMPLES)
def test_fp32_numerics_are_at_least_as_good(name: str) -> None:
    check(example(name, torch.bfloat16), EXAMPLES[name].inputs(torch.bfloat16, LENGTH), numerics="fp32")


def test_fp32_numerics_round_only_what_is_stored() -> None:
    nest = lower(example("add_rms_norm", torch.bfloat16), numerics="fp32")
    for store in nest.stores:
        assert isinstance(store.value, Apply) and store.value.fn == "round_bfloat16"
        below = scalar.walk(*store.value.args)
        assert not any(isinstance(n, Apply) and n.fn.startswith("round_") for n in below)
    with pytest.raises(ValueError, match="fp16"):
        lower(example("swiglu"), numerics="fp16")


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n not in ("cat_sizes", "pad_cat")])  # longer than their input
def test_zero_size(name: str) -> None:
    nest = lower(example(name))
    inputs = EXAMPLES[name].inputs(torch.float32, 0)
    for result, eager in zip(evaluate(nest, *inputs), _tuple(EXAMPLES[name].fn(*inputs)), strict=True):
        assert result.shape == eager.shape and eager.numel() == 0


def _tuple(results: Any) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def test_no_half_precision_kernel_differs_from_eager_where_both_round_alike() -> None:
    """Multiplications, additions and moves are correctly rounded in both, so the bits are equal."""
    for name in ("rope", "where_positive", "cat_sizes", "strided"):
        for dtype in (torch.bfloat16, torch.float16):
            inputs = EXAMPLES[name].inputs(dtype, LENGTH)
            eager = _tuple(EXAMPLES[name].fn(*inputs))
            for result, want in zip(evaluate(lower(example(name, dtype)), *inputs), eager, strict=True):
                assert torch.equal(result, want) and result.stride() == want.stride()


# The shape of kernels


def test_contiguous_pointwise_is_one_flat_loop() -> None:
    nest = lower(example("swiglu"))
    assert nest.rows == () and nest.column == Axis("j", 128 * S0)
    assert {n.offset for n in scalar.walk(*nest.roots) if isinstance(n, Load)} == {symbols.index_symbol("j")}


def test_permuted_but_dense_pointwise_is_one_flat_loop() -> None:
    nest = nest_of(lambda x: x.permute(2, 0, 1) * 2.0, normal(2, 7, 5), dynamic=DYNAMIC)
    assert nest.rows == () and nest.column == Axis("j", 10 * S0)
    assert nest.outputs[0].order == (1, 2, 0)


def test_rows_merge_around_a_reduction_and_a_broadcast_weight() -> None:
    nest = lower(example("add_rms_norm", torch.bfloat16))
    assert nest.rows == (Axis("i0", 2 * S0),) and nest.column == Axis("j", 64)
    assert [r.fn for r in nest.reductions] == ["sum"] and len(nest.stores) == 2


def test_rows_do_not_merge_across_a_broadcast() -> None:
    nest = lower(example("masked_fill"))
    assert [a.extent for a in nest.rows] == [2, S0] and nest.column == Axis("j", 64)


def test_rope_is_two_shifted_loads() -> None:
    nest = lower(example("qk_norm_rope", torch.bfloat16))
    assert nest.outputs[0].order == (0, 2, 1, 3)
    assert [a.extent for a in nest.rows] == [2 * S0, 4] and len(nest.reductions) == 1
    (select,) = [n for n in scalar.walk(*nest.roots) if isinstance(n, Select)]
    assert select.index == symbols.index_symbol("j") and select.bounds == (8,)
    assert not any(isinstance(n, Apply) and n.fn == "round_bfloat16" and n.args[0] is select for n in nest.roots)


def test_softmax_reductions_in_order() -> None:
    nest = lower(example("masked_softmax", torch.bfloat16))
    assert [r.fn for r in nest.reductions] == ["max", "sum"]
    assert [str(a.extent) for a in nest.rows] == ["8", "s0"] and nest.column == Axis("j", S0)


def test_per_row_results_need_no_column() -> None:
    nest = lower(example("row_statistics"))
    assert nest.column is None and all(s.per_row for s in nest.stores)


def test_a_row_value_for_each_element_of_the_result() -> None:
    nest = nest_of(lambda x, w: x.sum(-1).view(6, 4).transpose(0, 1) * w, normal(24, 16), normal(4, 1))
    assert nest.column is None and len(nest.rows) == 2 and len(nest.reductions) == 1


def test_equal_reductions_run_once() -> None:
    def two(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rms_norm(x, a), rms_norm(x, b)

    nest = nest_of(two, normal(3, 64), normal(64), normal(64, seed=1))
    assert len(nest.reductions) == 1


def test_row_values_beside_full_outputs() -> None:
    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        highest = x.amax(-1, keepdim=True)
        return highest.squeeze(-1), x - highest, highest

    nest = nest_of(both, normal(2, 5, 16))
    assert [s.per_row for s in nest.stores] == [True, False, True] and nest.column == Axis("j", 16)


def test_an_output_and_its_transposed_view_share_the_loops() -> None:
    def both(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = rms_norm(x, w)
        return y, y.transpose(1, 2) + 1.0

    nest = nest_of(both, normal(2, 3, 4, 16), normal(16))
    assert len(nest.reductions) == 1 and nest.outputs[1].order == (0, 2, 1, 3)


# Values: corners of operators


def test_softmax_read_at_another_column() -> None:
    nest_of(lambda x, y: torch.softmax(x, -1)[..., 3:7] * y, normal(5, 9), normal(5, 4))


def test_two_softmaxes_in_a_row() -> None:
    nest = nest_of(lambda x: torch.softmax(torch.softmax(x, -1) * 3.0, -1), normal(5, 9))
    assert [r.fn for r in nest.reductions] == ["max", "sum", "max", "sum"]


def test_reduction_over_more_columns_than_the_result_has() -> None:
    nest = nest_of(lambda x: x.view(6, 2, 8)[:, 1] * x.mean(-1, keepdim=True), normal(6, 16))
    assert nest.column == Axis("j", 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reduction_dtype_argument(dtype: torch.dtype) -> None:
    nest_of(lambda x: x.sum(-1, dtype=dtype), normal(5, 9, dtype=torch.bfloat16))


def test_scalars_and_vectors() -> None:
    zero_d = nest_of(lambda x: x * 2.0 + 1.0, torch.tensor(0.3))
    assert zero_d.rows == () and zero_d.column == Axis("j", 1)
    whole = nest_of(lambda x: x.sum(-1), normal(9))
    assert whole.rows == () and whole.column is None
    nest_of(lambda x, s: x * s, normal(4, 5, dtype=torch.bfloat16), torch.tensor(0.3))


def test_cat_boundary_inside_a_row() -> None:
    """A quotient of a shifted index: what is divided must not be negative, or truncation rounds it the wrong way."""

    def joined(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, y.transpose(0, 1).reshape(16), z)).view(3, 8) * 2.0

    nest_of(joined, normal(3), normal(8, 2), normal(5))


def test_cat_of_one_column_and_of_different_dtypes() -> None:
    nest_of(lambda x, y: torch.cat((x, y, x), -1) + 1.0, normal(4, 1), normal(4, 6, dtype=torch.bfloat16))
    nest_of(lambda x, y: torch.cat((x, y), 0)[2:] * 2.0, normal(2, 6), normal(5, 6))


@pytest.mark.parametrize(
    "fn",
    [
        lambda h, i, b: h > 0.1,  # 0.1 is rounded to bfloat16 before it is compared
        lambda h, i, b: h == 0.1,
        lambda h, i, b: i > 1.5,
        lambda h, i, b: i + h,  # 257 is no bfloat16
        lambda h, i, b: h * b,
        lambda h, i, b: b + b,
        lambda h, i, b: b * 3,
        lambda h, i, b: (i > 2) & b | (h < 0),
        lambda h, i, b: b.logical_not().logical_or(h),
        lambda h, i, b: i.to(torch.int32) * 3 - 1,
        lambda h, i, b: ~i,
        lambda h, i, b: i % 5,
        lambda h, i, b: (-i) % 5,
        lambda h, i, b: i / 4,
        lambda h, i, b: torch.where(b, h, 0.1),
        lambda h, i, b: h.masked_fill(b, 0.1),
        lambda h, i, b: h.clamp(-0.1, 0.3),
        lambda h, i, b: h.to(torch.float64) * 3.0,
        lambda h, i, b: h.type_as(i),
        lambda h, i, b: b.to(torch.float16),
        lambda h, i, b: h.to(torch.bool),
        lambda h, i, b: i.masked_fill(b, -7),
    ],
)
def test_dtypes_and_numbers_as_eager_treats_them(fn: Callable[..., torch.Tensor]) -> None:
    inputs = (
        torch.cat((normal(13, dtype=torch.bfloat16), torch.tensor([0.1, 0.0, float("nan")]).bfloat16())),
        torch.arange(16) * 17 - 15,
        torch.arange(16) % 3 == 0,
    )
    (made,) = evaluate(lower(trace(fn, *inputs)), *inputs)
    want = fn(*inputs)
    if not want.is_floating_point():
        want, made = want[:15], made[:15]  # NaN has no defined integer
    assert made.dtype == want.dtype and torch.equal(made.nan_to_num(7.5), want.nan_to_num(7.5))


def test_narrow_integers_wrap_where_they_are_computed() -> None:
    nest_of(lambda x, m: x.masked_fill(m == 0, 0.0), normal(4, 5), torch.randint(0, 2, (4, 5), dtype=torch.uint8))
    full = torch.tensor([-128, -1, 100, 127], dtype=torch.int8)
    (found,) = evaluate(nest_of(lambda m: (m + m) * 3 - 1, full), full)
    assert found.dtype is torch.int8 and torch.equal(found, (full + full) * 3 - 1)


# Sizes


def test_sizes_come_from_shapes_then_strides_then_the_caller() -> None:
    def grown(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.expand(11, -1) * y

    x, y = normal(1, 7), normal(7, 13)[:, :1].squeeze(-1)
    marks = {7: "s0", 13: "s1", 11: "s2"}
    graph = trace(grown, x, y, dynamic=marks)
    nest = lower(graph)
    assert [(s.symbol, s.source, s.argument, s.dim) for s in nest.sizes] == [
        ("s0", "shape", 0, 1), ("s1", "stride", 1, 0), ("s2", "given", 0, 0),
    ]  # fmt: skip
    assert given_symbols(nest) == ("s2",)
    for rows, columns, gap in ((11, 7, 13), (3, 4, 6)):
        x, y = normal(1, columns), normal(columns, gap)[:, 0]
        (made,) = evaluate(nest, x, y, given=(rows,))
        assert torch.equal(made, x.expand(rows, -1) * y)


def test_a_size_as_a_number() -> None:
    graph = SubGraph(
        ("x",),
        (OpNode("aten.div.Tensor", (Ref("x"), S0), (), ("y",)),),
        ("y",),
        tuple((n, TensorSpec.contiguous(torch.float32, (S0,))) for n in "xy"),
    )
    for n in (3, 5):
        check(graph, (normal(n),))


# Names


def test_names_hold_only_what_we_made() -> None:
    graph = trace(swiglu, normal(4, 6), normal(4, 6), pattern='SwiGLU "); rm -rf /\n#')
    nest = lower(graph)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", nest.name) and nest.name.startswith("swiglu")
    assert nest.subgraph == graph.digest and nest.name.endswith(graph.digest[:8])
    assert lower(trace(swiglu, normal(4, 6), normal(4, 6))).name.startswith("silu_mul_")
    assert len(lower(example("rope")).name) < 64


def test_origin_ends_no_comment() -> None:
    node = OpNode("aten.neg.default", (Ref("x"),), (), ("y",), origin='a*/"""\\\nmodel.py:3')
    spec = TensorSpec.contiguous(torch.float32, (4,))
    (origin,) = lower(SubGraph(("x",), (node,), ("y",), (("x", spec), ("y", spec)))).origin
    assert origin == "aten.neg.default @ a_/_____model.py:3"


def test_lowering_does_not_depend_on_names() -> None:
    graph = example("add_rms_norm", torch.bfloat16)
    renamed = SubGraph.from_json(graph.canonical.to_json())
    assert str(lower(renamed)) == str(lower(graph))


@pytest.mark.parametrize("number", [3.3, 1001, torch.tensor(0.1234567), torch.tensor(3.3, dtype=torch.float64)])
@pytest.mark.parametrize("fn", [torch.add, torch.sub, torch.mul, torch.div, torch.pow])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_to_half_precision_where_eager_rounds_them(
    fn: Callable[..., torch.Tensor], dtype: torch.dtype, number: Any
) -> None:
    """Before a sum, not before a product: in half precision the results are the same bits."""
    x = (normal(50).abs() + 0.1).to(dtype)
    inputs = (x, number) if isinstance(number, torch.Tensor) else (x,)
    (found,) = evaluate(nest_of(lambda x, y=number: fn(x, y), *inputs), *inputs)
    assert torch.equal(found, fn(x, number))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_empty_dimensions_of_known_size(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    (found,) = evaluate(nest_of(lambda x: x * 2.0 + 1.0, x), x)
    assert found.shape == shape
