"""Every row of the operator table means what torch's operator means.

The tests follow from the table: each row is looked up in torch, and its meaning is compared on the samples that
`row_samples` has for its operator. A row without a sample fails, so adding a row means adding one.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from evaluate import evaluate
from graphs import trace
from row_samples import SAMPLES, called, rows, samples_of, tensors_of, torch_result
from rows_in_numpy import BINARY, TOLERANCE, UNARY, assert_means, computed_in, element, expression_of
from sample_values import Sample

from fusion.kernels.lower import lower
from fusion.patterns import symbols
from fusion.patterns.leaves import Ref, leaves, map_leaves
from fusion.patterns.ops import TABLE, Call, Kind, Operator, Run, resolve
from fusion.patterns.scalar import (
    PRIMITIVES,
)
from fusion.patterns.specs import TensorSpec


def call(s: Sample, outputs: tuple[torch.Tensor, ...]) -> Call:
    """The sample as a row's functions see it."""
    tensors = tensors_of(s)

    def ref(leaf: Any) -> Any:
        return (
            Ref(f"x{next(i for i, t in enumerate(tensors) if t is leaf)}") if isinstance(leaf, torch.Tensor) else leaf
        )

    specs, results = ([TensorSpec(t.dtype, tuple(t.shape), t.stride()) for t in ts] for ts in (tensors, outputs))
    kwargs = {name: map_leaves(ref, value) for name, value in s.kwargs.items()}
    return Call(map_leaves(ref, s.args), kwargs, tuple(specs), tuple(results))


def test_the_evaluator_knows_every_primitive() -> None:
    rounding = {f"round_{t}" for t in ("bfloat16", "float16")} | {f"wrap_{t}" for t in ("int8", "int16", "uint8")}
    assert set(PRIMITIVES) == {*UNARY, *BINARY, *rounding, "where", "fma", "cast"}


@pytest.mark.parametrize("row", [pytest.param(row, id=op) for op, row in TABLE.items()])
def test_torch_has_the_operator(row: Operator) -> None:
    assert callable(resolve(row.op))


def test_a_row_without_a_sample_fails() -> None:
    with pytest.raises(AssertionError, match="no sample in pointwise_samples"):
        samples_of(Operator("aten.new_operator.default", Kind.POINTWISE))


@pytest.mark.parametrize("kind", list(SAMPLES))
def test_every_sample_belongs_to_a_row(kind: Kind) -> None:
    assert set(SAMPLES[kind]) <= {op.removeprefix("aten.") for op, row in TABLE.items() if row.kind is kind}


@pytest.mark.parametrize("row", rows(Kind.POINTWISE))
def test_pointwise_rows(row: Operator) -> None:
    for s in samples_of(row):
        (expected,) = torch_result(row, s)
        tensors: dict[str, np.ndarray] = {}
        node = expression_of(row, s, computed_in(s, row), tensors)
        assert_means(node, tensors, expected)


@pytest.mark.parametrize("row", rows(Kind.REDUCTION))
def test_reduction_rows(row: Operator) -> None:
    assert row.expression is not None and row.dims is not None
    for s in samples_of(row):
        expected = torch_result(row, s)
        c = call(s, expected)
        assert row.covers(c) is None
        dims = row.dims(c)
        first, *others = [x for x in ordered(s) if isinstance(x, torch.Tensor)]
        kept = [d for d in range(first.dim()) if d not in dims]
        tensors: dict[str, np.ndarray] = {}

        def along(x: torch.Tensor, kept: list[int] = kept, dims: tuple[int, ...] = dims) -> torch.Tensor:
            """The reduced dimensions last, as one."""
            return x.permute(*kept, *dims).reshape(*(x.shape[d] for d in kept), -1)

        x = element(tensors, along(first), None)
        position = element(tensors, torch.arange(along(first).shape[-1]), None)
        rest = tuple(element(tensors, along(o.expand(first.shape)), None) for o in others)
        run = Run(x, position, rest, along(first).shape[-1])
        for number, result in enumerate(expected):
            node = row.expression(c, run, number)
            full = row.keeps and number == 0
            assert_means(node, tensors, along(result) if full else result.reshape(*along(first).shape[:-1], 1))


def ordered(s: Sample) -> list[Any]:
    """The arguments in the order a recording keeps them: keywords by name."""
    return list(leaves((s.args, tuple(value for _, value in sorted(s.kwargs.items())))))


@pytest.mark.parametrize(
    ("op", "args", "inputs", "made", "reason"),
    [
        ("amax.default", ((0, 0),), ((4, 6),), torch.float32, "reduced over twice"),
        ("amax.default", ((0,),), ((0, 6),), torch.float32, "no elements"),
        ("sum.dim_IntList", ((0,),), ((4, 6),), torch.int8, "8 or 16 bit integers"),
        ("any.dims", ((),), ((4, 6),), torch.bool, "empty list"),
        ("cumsum.default", (0,), ((),), torch.float32, "without dimensions"),
        ("linalg_vector_norm.default", ("fro",), ((4, 6),), torch.float32, "order 'fro'"),
        ("linalg_norm.default", (2, (0, 1)), ((4, 6),), torch.float32, "norm of a matrix"),
        ("layer_norm.default", ((4, 6), Ref("w")), ((4, 6), (6,)), torch.float32, "another shape"),
        ("layer_norm.default", ((6,),), ((4, 6),), torch.int64, "several dtypes"),
        ("softmax.int", (0, torch.int32), ((0, 6),), torch.int32, "of integers"),
        ("log_softmax.int", (0, torch.int32), ((0, 6),), torch.int32, "of integers"),
    ],
)
def test_uses_that_reductions_do_not_cover(op: str, args: Any, inputs: Any, made: torch.dtype, reason: str) -> None:
    specs = tuple(TensorSpec.contiguous(torch.float32, shape) for shape in inputs)
    c = Call((Ref("x"), *args), {}, specs, (TensorSpec.contiguous(made, (4,)),))
    assert reason in (TABLE[f"aten.{op}"].covers(c) or "")


@pytest.mark.parametrize("row", rows(Kind.VIEW))
def test_view_rows(row: Operator) -> None:
    assert row.index is not None
    for s in samples_of(row):
        outputs = torch_result(row, s)
        c = call(s, outputs)
        assert row.covers(c) is None
        for number, out in enumerate(outputs):
            names = [f"i{d}" for d in range(out.dim())]
            index = tuple(symbols.index_symbol(name) for name in names)
            source = row.index(c, index, dict(zip(names, out.shape, strict=True)), number)
            assert len(source) == s.args[0].dim()
            grid = dict(zip(names, np.indices(out.shape), strict=True))
            at = tuple(np.broadcast_to(eval(symbols.print_python(d), {}, grid), out.shape) for d in source)
            taken = np.broadcast_to(s.args[0].numpy()[at], out.shape)
            assert np.array_equal(taken, out.numpy()), f"{s.args[1:]} maps {index} to {source}"


@pytest.mark.parametrize("row", rows(Kind.ELEMENT))
def test_element_rows(row: Operator) -> None:
    for s in samples_of(row):
        (expected,) = torch_result(row, s)
        tensors = tensors_of(s)
        graph = trace(functools.partial(called, row, s), *tensors)
        assert [node.op for node in graph.nodes] == [row.op]
        (found,) = evaluate(lower(graph), *tensors)
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def test_the_last_elements_are_a_slice_wherever_it_starts() -> None:
    row, size, start = TABLE["aten.slice.Tensor"], symbols.symbol("s0"), symbols.symbol("s1")
    at = (symbols.index_symbol("i"),)
    for begin, length in ((start, size - start), (-start, start), (-1, 1), (None, size)):
        shapes = TensorSpec.contiguous(torch.float32, (size,)), TensorSpec.contiguous(torch.float32, (length,))
        call = Call((Ref("x"), 0, begin, 2**63 - 1), {}, shapes[:1], shapes[1:])
        assert row.covers(call) is None
        assert row.index is not None
        assert row.index(call, at, {}, 0) == (at[0] + size - length,)


@pytest.mark.parametrize("start", [7, -7])
def test_a_slice_that_starts_outside_is_not_covered(start: int) -> None:
    spec = TensorSpec.contiguous(torch.float32, (4,))
    reason = TABLE["aten.slice.Tensor"].covers(Call((Ref("x"), 0, start, 9), {}, (spec,), (spec,)))
    assert reason == "a slice that starts outside the tensor"


def test_cat_with_a_legacy_empty_tensor_is_not_covered() -> None:
    empty, box = TensorSpec.contiguous(torch.float32, (0,)), TensorSpec.contiguous(torch.float32, (2, 3))
    reason = TABLE["aten.cat.default"].covers(Call(((Ref("x"), Ref("y")), 0), {}, (empty, box), (box,)))
    assert reason == "cat with a legacy empty tensor"
