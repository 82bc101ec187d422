"""Lowering: the values a LoopNest stands for, its shape, and the graphs that are no kernel."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from evaluate import evaluate
from graphs import DYNAMIC, EXAMPLES, LENGTH, normal, rms_norm, swiglu, trace

from fusion.kernels import elements
from fusion.kernels.loops import Axis, LoopNest
from fusion.kernels.lower import check as check_only
from fusion.kernels.lower import given_symbols, lower
from fusion.patterns import reference, scalar, symbols
from fusion.patterns.errors import GraphError, LoweringError
from fusion.patterns.graph import OpNode, Ref, SubGraph, TensorSpec
from fusion.patterns.scalar import Apply, Constant, Load, Reduce, Reduced, Scan, Scanned, Select
from fusion.patterns.verify import accept

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
S0 = symbols.symbol("s0")


def check(graph: SubGraph, inputs: tuple[torch.Tensor, ...], *, numerics: str = "eager", given: Any = ()) -> LoopNest:
    """Lowers `graph`, compares what the kernel means with eager by the acceptance rule, and returns the nest."""
    check_only(graph)
    nest = lower(graph, numerics=numerics)
    before = [t.clone() for t in inputs]
    made = evaluate(nest, *inputs, given=given)
    named = dict(zip(graph.inputs, inputs, strict=True))
    sizes = dict(zip(given_symbols(nest), given, strict=True))
    eager, exact = reference.run(graph, named, sizes), reference.run_fp64(graph, named, sizes)
    for name, result in zip(graph.outputs, made, strict=True):
        verdict = accept(result, eager[name], exact[name])
        assert verdict.ok, verdict.reason
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    return nest


def example(name: str, dtype: torch.dtype = torch.float32) -> SubGraph:
    fn, inputs = EXAMPLES[name]
    return trace(fn, *inputs(dtype, LENGTH), dynamic=DYNAMIC)


def nest_of(fn: Callable[..., Any], *inputs: torch.Tensor, **options: Any) -> LoopNest:
    return check(trace(fn, *inputs, **options), inputs)


def refused(fn: Callable[..., Any], *inputs: torch.Tensor) -> LoweringError:
    with pytest.raises(LoweringError) as caught:
        lower(trace(fn, *inputs))
    with pytest.raises(LoweringError) as found:
        check_only(trace(fn, *inputs))
    assert str(found.value) == str(caught.value), "a check refuses what lowering refuses, in its words"
    return caught.value


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


# Refusals


def test_library_calls_are_not_fusable() -> None:
    assert refused(lambda x: torch.relu(x @ x), normal(4, 4)).code == "not_fusable"


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


# What `verify` turns down


def malformed(**changes: Any) -> str:
    """What is said of a kernel of a sum and a scan of it with changes."""
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    with pytest.raises(GraphError) as caught:
        dataclasses.replace(nest, **changes)
    return str(caught.value)


def test_malformed_reductions_and_scans() -> None:
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    scan, total = nest.reductions
    (store,) = nest.stores
    f32 = torch.float32
    assert scan.running and not total.running
    again = dataclasses.replace(total, name=scan.name)
    assert "two reductions are called" in malformed(reductions=(scan, total, again))
    assert "takes bools" in malformed(reductions=(scan, dataclasses.replace(total, body=Constant(torch.bool, True))))
    assert "is no scan" in malformed(reductions=(dataclasses.replace(scan, fn="max"), total))
    assert "is no reduction" in malformed(reductions=(scan, dataclasses.replace(total, fn="mean")))
    over_column = dataclasses.replace(total, extent=symbols.index_symbol("j"))
    assert "depends on the column" in malformed(reductions=(scan, over_column))
    assert "uses ['s9']" in malformed(reductions=(scan, dataclasses.replace(total, extent=symbols.symbol("s9"))))
    assert "before it is computed" in malformed(reductions=(total,))
    for wrong in (Reduced(f32, scan.name), Scanned(f32, total.name)):
        assert ", not so" in malformed(stores=(dataclasses.replace(store, value=wrong),))
    per_row = dataclasses.replace(store, value=Scanned(f32, scan.name), offset=0, per_row=True)
    assert "once per row but reads the scan" in malformed(stores=(per_row,))
    assert "beyond its 6 columns" in malformed(column=Axis("j", 7))
    nested = Reduce(f32, "sum", total.body, 6)
    assert "not hoisted" in malformed(stores=(dataclasses.replace(store, value=nested),))
    nested = Scan(f32, "sum", total.body, 6)
    assert "not hoisted" in malformed(stores=(dataclasses.replace(store, value=nested),))


def test_malformed_bounds_and_sizes() -> None:
    """Every size, index and bound of a kernel is made of sizes and indices that it has."""
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    (store,), (argument,), (output,) = nest.stores, nest.inputs, nest.outputs
    (row,) = nest.rows
    one, strange = Constant(torch.float32, 1.0), symbols.symbol("s9")
    j = symbols.index_symbol("j")

    def storing(value: scalar.Scalar) -> str:
        return malformed(stores=(dataclasses.replace(store, value=value),))

    unknown = "uses ['s9'], which are no index or size"
    assert unknown in storing(Select(torch.float32, j, (strange,), (one, one)))
    assert unknown in storing(Select(torch.float32, strange, (3,), (one, one)))
    assert "2 cases by 2 bounds" in storing(Select(torch.float32, j, (2, 3), (one, one)))
    assert unknown in storing(scalar.Size(torch.float32, strange))
    assert unknown in storing(Load(torch.float32, argument.name, strange, torch.float32))
    assert unknown in malformed(stores=(dataclasses.replace(store, offset=strange),))
    assert unknown in malformed(rows=(dataclasses.replace(row, extent=strange),))
    assert unknown in malformed(column=Axis("j", strange))
    assert unknown in malformed(inputs=(dataclasses.replace(argument, strides=(strange, 1)),))
    assert unknown in malformed(outputs=(dataclasses.replace(output, shape=(strange, 6)),))


def test_malformed_stores() -> None:
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    (store,), (argument,) = nest.stores, nest.inputs
    j = symbols.index_symbol("j")
    x = Load(torch.float32, argument.name, j, torch.float32)
    assert "stores nothing" in malformed(stores=())
    assert "'o9', which is no output" in malformed(stores=(dataclasses.replace(store, output="o9"),))
    assert "without a column axis" in malformed(column=None)
    nowhere = dataclasses.replace(x, argument="a9")
    assert "loads from 'a9', which is no input" in malformed(stores=(dataclasses.replace(store, value=nowhere),))
    per_row = dataclasses.replace(store, value=x, offset=0, per_row=True)
    assert "once per row but depends on the column" in malformed(stores=(per_row,))
    strange = dataclasses.replace(store, value=Apply(torch.float32, "sinc", (x,)))
    assert "applies 'sinc', which is no primitive" in malformed(stores=(strange,))


def test_reductions_of_rows_that_only_a_part_of_a_join_has() -> None:
    """Hoisted, such a reduction would run for every row, and read outside its operand for most."""

    def parts(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.cat((rms_norm(x, w), rms_norm(y, w)), 0)

    assert refused(parts, normal(4, 8), normal(5, 8), normal(8)).code == "reduction_in_join"
    nest_of(lambda x, y, w: rms_norm(torch.cat((x, y), 0), w), normal(4, 8), normal(5, 8), normal(8))


def test_regions_too_large_to_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "LIMIT", 16)
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
