"""Running SubGraphs with torch's operators, and binding their size symbols."""

from __future__ import annotations

import pytest
import torch
from graphs import DYNAMIC, EXAMPLES, LENGTH, trace

from fusion.patterns import symbols
from fusion.patterns.errors import GraphError, StructureMismatch, UnsupportedOperator
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.named import create_qk_norm_rope_pattern, create_swiglu_pattern
from fusion.patterns.nodes import OpNode
from fusion.patterns.reference import bind_symbols, run, run_fp64
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import symbol

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_run_repeats_eager_at_other_sizes(name: str, dtype: torch.dtype) -> None:
    example = EXAMPLES[name]
    graph = trace(example.fn, *example.inputs(dtype), dynamic=DYNAMIC)
    inputs = example.inputs(dtype, LENGTH + 6)
    expected = example.fn(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    made = run(graph, dict(zip(graph.inputs, inputs, strict=True)))
    assert tuple(made) == graph.outputs
    for have, want in zip(made.values(), expected, strict=True):
        assert torch.equal(have, want)
        assert have.stride() == want.stride()
        assert have.dtype == want.dtype


def swiglu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x) * y


def softmax_there_and_back(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1, dtype=torch.float32).to(torch.bfloat16).sum(-1, dtype=torch.float32)


def conversions(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return (x.float().half() * keep.float()).to(torch.float32) + keep.sum(-1, keepdim=True)


X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def test_double_precision_rounds_nowhere() -> None:
    half = X.bfloat16()
    y = half.flip(0).contiguous()
    made = run_fp64(trace(swiglu, half, y), {"x0": half, "x1": y})
    (value,) = made.values()
    assert value.dtype == torch.float64
    assert torch.equal(value, swiglu(half.double(), y.double()))


def test_dtype_arguments_and_conversions_become_double() -> None:
    half = X.bfloat16()
    (value,) = run_fp64(trace(softmax_there_and_back, half), {"x0": half}).values()
    assert value.dtype == torch.float64
    assert torch.equal(value, torch.softmax(half.double(), -1).sum(-1))


def test_integers_and_bools_stay_what_they_are() -> None:
    keep = X > 0
    (value,) = run_fp64(trace(conversions, X, keep), {"x0": X, "x1": keep}).values()
    assert torch.equal(value, X.double() * keep + keep.sum(-1, keepdim=True))


def test_a_half_to_float_softmax_has_a_double() -> None:
    spec = TensorSpec.contiguous(torch.float16, (3, 5))
    node = OpNode("aten._softmax.default", (Ref("x"), -1, True), (), ("y",))
    graph = SubGraph(("x",), (node,), ("y",), (("x", spec), ("y", TensorSpec.contiguous(torch.float32, (3, 5)))))
    assert torch.equal(run_fp64(graph, {"x": X.half()})["y"], torch.softmax(X.half().double(), -1))


def test_reinterpreted_bits_have_no_double() -> None:
    spec = TensorSpec.contiguous(torch.float32, (3, 5))
    node = OpNode("aten.view.dtype", (Ref("x"), torch.int32), (), ("y",))
    graph = SubGraph(("x",), (node,), ("y",), (("x", spec), ("y", spec)))
    with pytest.raises(UnsupportedOperator, match="reinterprets bits"):
        run_fp64(graph, {"x": X})


def test_operators_with_several_results() -> None:
    both = torch.arange(24.0).view(3, 8)
    example = EXAMPLES["chunk_swiglu"].fn
    graph = trace(example, both)
    assert torch.equal(next(iter(run(graph, {"x0": both}).values())), example(both))


def test_inputs_that_require_gradients() -> None:
    made = run(create_swiglu_pattern(), {"gate": X.clone().requires_grad_(), "up": X})
    assert not made["output"].requires_grad


def test_symbols_are_bound_and_expressions_solved() -> None:
    graph = create_qk_norm_rope_pattern(head_dim=4)
    inputs = {
        "x": torch.ones(2, 3, 20),
        "weight": torch.ones(4),
        "cos": torch.ones(2, 3, 4),
        "sin": torch.ones(2, 3, 4),
    }
    assert bind_symbols(graph, inputs) == {"s0": 2, "s1": 3, "s2": 5}


def test_symbols_of_strides() -> None:
    spec = TensorSpec(torch.float32, (symbol("s0"), 5), (symbol("s1"), 1))
    graph = SubGraph(("x",), (), ("x",), (("x", spec),))
    assert bind_symbols(graph, {"x": torch.ones(3, 8)[:, :5]}) == {"s0": 3, "s1": 8}


def test_sizes_that_no_input_tells() -> None:
    spec = TensorSpec.contiguous(torch.float32, (8,))
    made = TensorSpec.contiguous(torch.float32, (symbols.as_dim(8 - symbol("s0")),))
    node = OpNode("aten.slice.Tensor", (Ref("x"), 0, symbol("s0"), 8), (), ("y",))
    graph = SubGraph(("x",), (node,), ("y",), (("x", spec), ("y", made)))
    x = torch.arange(8.0)
    assert torch.equal(run(graph, {"x": x}, {"s0": 3})["y"], x[3:])
    with pytest.raises(GraphError, match="s0"):
        run(graph, {"x": x})


def swiglu_inputs(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"gate": torch.ones(2, 3), "up": torch.ones(2, 3), **changes}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"gate": torch.ones(2, 3)}, "Expected the inputs ['gate', 'up'], found ['gate']"),
        (swiglu_inputs(more=torch.ones(1)), "found ['gate', 'more', 'up']"),
        (swiglu_inputs(up=torch.ones(2, 3).half()), "'up': expected dtype torch.float32, found torch.float16"),
        (swiglu_inputs(gate=torch.ones(2, 3, 1)), "'gate': expected rank 2 (float32[s0, s1]), found rank 3 [2, 3, 1]"),
        (
            swiglu_inputs(up=torch.ones(2, 4)),
            "'up': expected size 3 (s1, as the other sizes tell) in dimension 1, found 4",
        ),
        ({"gate": 1, "up": torch.ones(2, 3)}, "'gate': expected a tensor, found int"),
    ],
)
def test_inputs_of_another_structure(inputs: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(StructureMismatch) as caught:
        run(create_swiglu_pattern(), inputs)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_a_size_that_solves_no_expression() -> None:
    inputs = {"x": torch.ones(2, 3, 21), "weight": torch.ones(4)}
    inputs |= {"cos": torch.ones(2, 3, 4), "sin": torch.ones(2, 3, 4)}
    with pytest.raises(StructureMismatch, match="which no s2 gives"):
        bind_symbols(create_qk_norm_rope_pattern(head_dim=4), inputs)


def test_empty_inputs() -> None:
    inputs = {"x": torch.ones(2, 3, 0), "weight": torch.ones(4)}
    inputs |= {"cos": torch.ones(2, 3, 4), "sin": torch.ones(2, 3, 4)}
    assert run(create_qk_norm_rope_pattern(head_dim=4), inputs)["output"].shape == (2, 0, 3, 4)


def test_static_sizes() -> None:
    spec = TensorSpec.contiguous(torch.float32, (4,))
    graph = SubGraph(("x",), (), ("x",), (("x", spec),))
    with pytest.raises(StructureMismatch, match="expected size 4 in dimension 0, found 5"):
        bind_symbols(graph, {"x": torch.ones(5)})
