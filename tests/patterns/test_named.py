"""The named patterns as graphs: their signature, and that they compute what they are called after."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import EXAMPLES, trace

from fusion.patterns import PATTERNS, SubGraph, match, run, symbols
from fusion.patterns.named import (
    Pattern,
    create_add_layer_norm_pattern,
    create_add_rms_norm_pattern,
    create_bias_activation_pattern,
    create_causal_softmax_pattern,
    create_gated_rms_norm_pattern,
    create_geglu_pattern,
    create_gelu_pattern,
    create_interleaved_rope_pattern,
    create_layer_norm_pattern,
    create_min_p_pattern,
    create_qk_norm_rope_pattern,
    create_reglu_pattern,
    create_residual_scaling_pattern,
    create_rms_norm_add_pattern,
    create_rms_norm_pattern,
    create_rope_pattern,
    create_rotary_tables_pattern,
    create_router_scores_pattern,
    create_router_weights_pattern,
    create_soft_capping_pattern,
    create_softmax_pattern,
    create_state_space_decay_pattern,
    create_state_space_output_pattern,
    create_state_space_step_pattern,
    create_state_space_update_pattern,
    create_swiglu_pattern,
    create_top_k_pattern,
    create_top_p_pattern,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAUSAL = ("select", "fill", "add", "tril", "triu", "triangle")
CREATORS: tuple[Callable[..., SubGraph], ...] = (
    create_swiglu_pattern,
    create_geglu_pattern,
    functools.partial(create_geglu_pattern, "tanh"),
    create_add_rms_norm_pattern,
    functools.partial(create_add_rms_norm_pattern, scaling="offset"),
    create_rms_norm_pattern,
    functools.partial(create_rms_norm_pattern, scaling="offset"),
    functools.partial(create_rms_norm_pattern, scaling="none"),
    create_rope_pattern,
    create_qk_norm_rope_pattern,
    create_softmax_pattern,
    functools.partial(create_softmax_pattern, None, "fill"),
    functools.partial(create_softmax_pattern, 0.5, "none"),
    functools.partial(create_softmax_pattern, None, "keep"),
    functools.partial(create_softmax_pattern, cap=50.0),
    *(functools.partial(create_layer_norm_pattern, affine=a) for a in ("weight+bias", "weight", "none")),
    *(functools.partial(create_layer_norm_pattern, affine=a, written=True) for a in ("weight+bias", "weight", "none")),
    create_add_layer_norm_pattern,
    functools.partial(create_add_layer_norm_pattern, written=True),
    functools.partial(create_add_rms_norm_pattern, scale=0.5),
    functools.partial(create_gated_rms_norm_pattern, "before"),
    functools.partial(create_gated_rms_norm_pattern, "after"),
    create_rms_norm_add_pattern,
    functools.partial(create_rms_norm_add_pattern, scaling="offset", norms=False),
    create_gelu_pattern,
    functools.partial(create_state_space_step_pattern, clamp=True),
    functools.partial(create_interleaved_rope_pattern, rest=32),
    create_reglu_pattern,
    *(functools.partial(create_bias_activation_pattern, a) for a in ("gelu", "gelu_tanh", "silu", "relu")),
    functools.partial(create_rope_pattern, rest=32),
    functools.partial(create_rope_pattern, by_halves=True),
    create_interleaved_rope_pattern,
    functools.partial(create_interleaved_rope_pattern, angles="pairs"),
    create_rotary_tables_pattern,
    functools.partial(create_rotary_tables_pattern, scaling=1.5, layout="pairs", product=False),
    create_soft_capping_pattern,
    create_residual_scaling_pattern,
    functools.partial(create_residual_scaling_pattern, None),
    *(functools.partial(create_causal_softmax_pattern, mask=m) for m in CAUSAL),
    *(functools.partial(create_causal_softmax_pattern, mask=m, past=True) for m in CAUSAL[:3]),
    functools.partial(create_router_weights_pattern, "add", 2.5, "sigmoid"),
    functools.partial(create_router_weights_pattern, "clamp"),
    create_router_scores_pattern,
    functools.partial(create_state_space_decay_pattern, logarithm=True, clamp=True),
    functools.partial(create_state_space_decay_pattern, "softplus"),
    create_state_space_update_pattern,
    create_state_space_output_pattern,
    functools.partial(create_min_p_pattern, temperature=0.7),
    create_top_k_pattern,
)
MASKS: tuple[Callable[..., SubGraph], ...] = (  # their outputs are bool
    functools.partial(create_min_p_pattern, filters=False),
    *(functools.partial(create_top_p_pattern, order=o) for o in ("ascending", "descending", "crossing")),
)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("create", CREATORS)
def test_every_creators_graph_bears_the_name_it_matches(create: Callable[..., SubGraph], dtype: torch.dtype) -> None:
    graph = create(dtype=dtype)
    assert graph.pattern is not None
    assert match(graph) == graph.pattern
    assert {graph.spec[o].dtype for o in graph.outputs} == {dtype}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_every_registered_pattern_matches_itself_and_is_the_first_to(pattern: Pattern) -> None:
    assert match(pattern.graph) == pattern.name == pattern.graph.pattern


@pytest.mark.parametrize("create", [*CREATORS, *MASKS])
def test_the_specs_are_what_torch_makes(create: Callable[..., SubGraph]) -> None:
    """Every value's dtype, shape and strides, at sizes that tell the symbols apart."""
    graph = create(dtype=torch.bfloat16)
    sizes = dict(zip(graph.symbols, (3, 4, 6, 10), strict=False))
    everything = SubGraph(graph.inputs, graph.nodes, tuple(graph.producer), graph.specs)
    inputs = {}
    for name in graph.inputs:
        spec = graph.spec[name]
        shape = [symbols.evaluate(d, sizes) for d in spec.shape]
        inputs[name] = torch.ones(shape, dtype=spec.dtype)
    for name, value in run(everything, inputs).items():
        spec = graph.spec[name]
        assert value.dtype == spec.dtype
        assert list(value.shape) == [symbols.evaluate(d, sizes) for d in spec.shape]
        assert list(value.stride()) == [symbols.evaluate(d, sizes) for d in spec.strides], name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu(dtype: torch.dtype) -> None:
    graph = create_swiglu_pattern(dtype)
    assert (graph.inputs, graph.outputs) == (("gate", "up"), ("output",))
    gate, up = normal(3, 5, dtype=dtype), normal(3, 5, dtype=dtype, seed=1)
    assert torch.equal(run(graph, {"gate": gate, "up": up})["output"], F.silu(gate) * up)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_geglu(approximate: str) -> None:
    gate, up = normal(3, 5), normal(3, 5, seed=1)
    made = run(create_geglu_pattern(approximate), {"gate": gate, "up": up})["output"]
    assert torch.equal(made, F.gelu(gate, approximate=approximate) * up)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    graph = create_add_rms_norm_pattern(eps=1e-5, dtype=dtype)
    assert (graph.inputs, graph.outputs) == (("x", "residual", "weight"), ("output", "sum"))
    x, residual, weight = (normal(*s, dtype=dtype, seed=i) for i, s in enumerate(((3, 8), (3, 8), (8,))))
    made = run(graph, {"x": x, "residual": residual, "weight": weight})
    total = residual + x
    wide = total.float()
    assert torch.equal(made["sum"], total)
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype)
    assert torch.equal(made["output"], weight * normed)


@pytest.mark.parametrize("scaling", ["weight", "offset", "none"])
def test_rms_norm(scaling: str) -> None:
    x, weight = normal(3, 8), normal(8, seed=1)
    graph = create_rms_norm_pattern(scaling=scaling)
    made = run(graph, {"x": x, "weight": weight} if "weight" in graph.inputs else {"x": x})["output"]
    factor = {"weight": weight, "offset": 1 + weight, "none": torch.ones(8)}[scaling]
    torch.testing.assert_close(made, F.rms_norm(x, (8,), factor, 1e-6))


def test_rope_is_a_rotation_of_pairs_half_a_head_apart() -> None:
    angle = normal(2, 5, 4).repeat(1, 1, 2)  # the same angle for both halves
    x = normal(2, 3, 5, 8)
    made = run(create_rope_pattern(8), {"x": x, "cos": angle.cos(), "sin": angle.sin()})["output"]
    turned = torch.polar(torch.ones(2, 1, 5, 4), angle[..., :4].unsqueeze(1)) * torch.complex(x[..., :4], x[..., 4:])
    torch.testing.assert_close(made, torch.cat((turned.real, turned.imag), -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_qk_norm_rope_is_the_recorded_example(dtype: torch.dtype) -> None:
    example = EXAMPLES["qk_norm_rope"]
    q, weight, cos, sin = example.inputs(dtype)
    graph = create_qk_norm_rope_pattern(weight.shape[0], dtype=dtype)
    made = run(graph, {"x": q, "weight": weight, "cos": cos, "sin": sin})["output"]
    assert torch.equal(made, example.fn(q, weight, cos, sin))


@pytest.mark.parametrize(("scale", "mask"), [(0.25, "add"), (None, "fill"), (0.5, "none")])
def test_softmax(scale: float | None, mask: str) -> None:
    scores = normal(2, 3, 4, 5)
    hidden = normal(2, 1, 4, 5, seed=1) > 0.5
    expected = scores * (scale or 1.0)
    inputs = {"scores": scores}
    if mask != "none":
        expected = expected.masked_fill(hidden, -math.inf)
        inputs["mask"] = hidden if mask == "fill" else torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)
    made = run(create_softmax_pattern(scale, mask), inputs)["output"]
    assert torch.equal(made, torch.softmax(expected, -1))


def test_patterns_survive_json() -> None:
    for pattern in PATTERNS:
        assert SubGraph.from_json(pattern.graph.to_json()) == pattern.graph


def test_the_pattern_is_the_recording_of_what_it_names() -> None:
    """The graph written by hand is, up to names and symbols, the one a recording makes."""
    gate, up = normal(3, 5), normal(3, 5)
    recorded = trace(lambda gate, up: F.silu(gate) * up, gate, up, dynamic={3: "s0", 5: "s1"})
    assert recorded == create_swiglu_pattern()
