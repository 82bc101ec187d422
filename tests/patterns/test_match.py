"""Naming by data flow: what matches, and what only looks alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import DYNAMIC, EXAMPLES, add_rms_norm, qk_norm_rope, rms_norm, rope, rotate_half, trace

from fusion.patterns import SubGraph, constants, contained, create_rms_norm_pattern, match

DTYPES = (torch.float32, torch.bfloat16)
NAMES = {
    "rms_norm": "RMSNorm",
    "add_rms_norm": "Add+RMSNorm",
    "swiglu": "SwiGLU",
    "chunk_swiglu": "SwiGLU",
    "rope": "RoPE",
    "qk_norm_rope": "QK-norm+RoPE",
    "masked_softmax": "masked softmax",
    "gelu_bias": "bias+GELU",
    "layer_norm": "LayerNorm",
    "rotary_tables": "rotary tables",
}

X, Y = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
W, SQUARE = torch.randn(16), torch.randn(2, 6, 6)
Q, COS, SIN = torch.randn(2, 4, 6, 16), torch.randn(2, 6, 16), torch.randn(2, 6, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dynamic", [None, DYNAMIC], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_recorded_examples(name: str, dynamic: dict[int, str] | None, dtype: torch.dtype) -> None:
    graph = trace(EXAMPLES[name].fn, *EXAMPLES[name].inputs(dtype), dynamic=dynamic)
    assert match(graph) == NAMES.get(name)


def mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def norm_with(variance: Callable[[torch.Tensor], torch.Tensor], scale: Any = torch.rsqrt) -> Callable[..., Any]:
    return lambda x, w: w * (x * scale(variance(x) + 1e-5))


SAME: dict[str, tuple[str, Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "swiglu, up first": ("SwiGLU", lambda g, u: u * F.silu(g), (X, Y)),
    "swiglu, x * sigmoid(x)": ("SwiGLU", lambda g, u: g * torch.sigmoid(g) * u, (X, Y)),
    "swiglu, sigmoid(x) * x": ("SwiGLU", lambda g, u: u * (torch.sigmoid(g) * g), (X, Y)),
    "swiglu in float32": ("SwiGLU", lambda g, u: (F.silu(g.float()) * u.float()).half(), (X.half(), Y.half())),
    "swiglu through views": ("SwiGLU", lambda g, u: (F.silu(g.view(12, 16)) * u.view(12, 16)).view(2, 6, 16), (X, Y)),
    "swiglu, silu then view": ("SwiGLU", lambda g, u: F.silu(g).view(12, 16) * u.view(12, 16), (X, Y)),
    "swiglu of split halves": ("SwiGLU", lambda x: F.silu(x.split(8, -1)[0]) * x.split(8, -1)[1], (X,)),
    "swiglu of sliced halves": ("SwiGLU", lambda x: F.silu(x[..., :8]) * x[..., 8:], (X,)),
    "swiglu with broadcast": ("SwiGLU", lambda g, u: F.silu(g) * u.expand(2, 6, 16), (X, Y[:1])),
    "geglu": ("GEGLU", lambda g, u: F.gelu(g) * u, (X, Y)),
    "geglu, tanh": ("GEGLU", lambda g, u: u * F.gelu(g, approximate="tanh"), (X, Y)),
    "norm, x * x": ("RMSNorm", norm_with(lambda x: (x * x).mean(-1, keepdim=True)), (X, W)),
    "norm, square": ("RMSNorm", norm_with(lambda x: x.square().mean(-1, keepdim=True)), (X, W)),
    "norm, sum / n": ("RMSNorm", norm_with(lambda x: x.pow(2).sum(-1, keepdim=True) / 16), (X, W)),
    "norm, sum * (1 / n)": ("RMSNorm", norm_with(lambda x: x.pow(2).sum(-1, keepdim=True) * (1 / 16)), (X, W)),
    "norm, sum / n, dropped": ("RMSNorm", norm_with(lambda x: (x.pow(2).sum(-1) / 16).unsqueeze(-1)), (X, W)),
    "norm, mean then unsqueeze": ("RMSNorm", norm_with(lambda x: x.pow(2).mean(-1).unsqueeze(-1)), (X, W)),
    "norm, mean of dim 2": ("RMSNorm", norm_with(lambda x: x.pow(2).mean(2, keepdim=True)), (X, W)),
    "norm, 1 / sqrt": ("RMSNorm", norm_with(mean_square, lambda v: 1.0 / torch.sqrt(v)), (X, W)),
    "norm, pow -0.5": ("RMSNorm", norm_with(mean_square, lambda v: v.pow(-0.5)), (X, W)),
    "norm, x / sqrt": ("RMSNorm", lambda x, w: x / torch.sqrt(mean_square(x) + 1e-5) * w, (X, W)),
    "norm, weight last": ("RMSNorm", lambda x, w: x * torch.rsqrt(1e-5 + mean_square(x)) * w, (X, W)),
    "norm, no weight": ("RMSNorm", lambda x: x * torch.rsqrt(mean_square(x) + 1e-5), (X,)),
    "norm, 1 + weight": ("RMSNorm", lambda x, w: x * torch.rsqrt(mean_square(x) + 1e-5) * (1.0 + w), (X, W)),
    "norm of heads": ("RMSNorm", lambda x, w: rms_norm(x.view(2, 6, 4, 4), w).transpose(1, 2), (X, W[:4])),
    "two norms side by side": ("RMSNorm", lambda x, y, w: (rms_norm(x, w), rms_norm(y, w)), (X, Y, W)),
    "add norm, sum not handed on": ("Add+RMSNorm", lambda x, r, w: add_rms_norm(x, r, w)[0], (X, Y, W)),
    "add norm, sum first": ("Add+RMSNorm", lambda x, r, w: add_rms_norm(x, r, w)[::-1], (X, Y, W)),
    "rope of one": ("RoPE", lambda q, c, s: rope(q, q, c, s)[0], (Q, COS, SIN)),
    "rope, sin first": ("RoPE", lambda q, c, s: s * rotate_half(q) + c * q, (Q, COS[:, None], SIN[:, None])),
    "rope after transpose": (
        "RoPE",
        lambda q, c, s: rope(q.transpose(1, 2), q.transpose(1, 2), c, s)[0],
        (Q.transpose(1, 2).contiguous(), COS, SIN),
    ),
    "rope by chunk": (
        "RoPE",
        lambda q, c, s: q * c + torch.cat((-q.chunk(2, -1)[1], q.chunk(2, -1)[0]), -1) * s,
        (Q, COS[:, None], SIN[:, None]),
    ),
    "queries and keys": (
        "QK-norm+RoPE",
        lambda q, k, w, v, c, s: (qk_norm_rope(q, w, c, s), qk_norm_rope(k, v, c, s)),
        (torch.randn(2, 6, 64), torch.randn(2, 6, 32), W, W.clone(), COS, SIN),
    ),
    "softmax, scores / c": ("masked softmax", lambda x, m: torch.softmax(x / 8.0 + m, -1), (Q, Q[:, :1])),
    "softmax, mask only": ("masked softmax", lambda x, m: torch.softmax(m + x, 3), (Q, Q[:, :1])),
    "softmax, filled": ("masked softmax", lambda x, m: torch.softmax(x.masked_fill(m, -1e9), -1), (Q, Q > 1)),
    "softmax, scaled": ("scaled softmax", lambda x: torch.softmax(x * 0.3, -1), (Q,)),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_ways_to_write_the_same(case: str) -> None:
    name, fn, inputs = SAME[case]
    assert match(trace(fn, *inputs)) == name


def wrong_rope(rotated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda q, c, s: q * c + rotated(q[..., :8], q[..., 8:]) * s


ROPE = (Q, COS[:, None], SIN[:, None])
OTHER: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "a silu and an unrelated mul": (lambda g, u, v: (F.silu(g), u * v), (X, Y, X + 1)),
    "a mul of the silu's input": (lambda g, u: (F.silu(g), g * u), (X, Y)),
    "silu squared": (lambda x: F.silu(x) * F.silu(x), (X,)),
    "silu times its own input": (lambda x: F.silu(x) * x, (X,)),
    "silu times silu": (lambda x, y: F.silu(x) * F.silu(y), (X, Y)),
    "silu of a product": (lambda g, u: F.silu(g * u), (X, Y)),
    "silu plus": (lambda g, u: F.silu(g) + u, (X, Y)),
    "silu times a number": (lambda g: F.silu(g) * 2.0, (X,)),
    "mish instead of silu": (lambda g, u: F.mish(g) * u, (X, Y)),
    "sigmoid of another value": (lambda g, u, v: g * torch.sigmoid(v) * u, (X, Y, X + 1)),
    "swiglu and more": (lambda g, u: F.silu(g) * u + 1.0, (X, Y)),
    "swiglu that hands on its silu": (lambda g, u: (F.silu(g) * u, F.silu(g)), (X, Y)),
    "norm over a wrong dimension": (norm_with(lambda x: x.pow(2).mean(1, keepdim=True)), (X, W)),
    "norm over two dimensions": (norm_with(lambda x: x.pow(2).mean((1, 2), keepdim=True)), (X, W)),
    "norm over a transposed dimension": (norm_with(lambda x: mean_square(x.transpose(1, 2))), (SQUARE, W[:6])),
    "norm, mean on another side": (norm_with(lambda x: mean_square(x).transpose(1, 2)), (SQUARE, W[:6])),
    "norm, mean unsqueezed elsewhere": (norm_with(lambda x: x.pow(2).mean(-1).unsqueeze(1)), (SQUARE, W[:6])),
    "norm without rsqrt": (norm_with(mean_square, lambda v: v), (X, W)),
    "norm with sqrt": (norm_with(mean_square, torch.sqrt), (X, W)),
    "norm without eps": (lambda x, w: w * (x * torch.rsqrt(mean_square(x))), (X, W)),
    "norm of the mean": (norm_with(lambda x: x.mean(-1, keepdim=True)), (X, W)),
    "norm of cubes": (norm_with(lambda x: x.pow(3).mean(-1, keepdim=True)), (X, W)),
    "norm, sum not mean": (norm_with(lambda x: x.pow(2).sum(-1, keepdim=True)), (X, W)),
    "norm, sum / another n": (norm_with(lambda x: x.pow(2).sum(-1, keepdim=True) / 15), (X, W)),
    "norm of another value": (lambda x, y, w: w * (x * torch.rsqrt(mean_square(y) + 1e-5)), (X, Y, W)),
    "norm, weight added": (lambda x, w: w + x * torch.rsqrt(mean_square(x) + 1e-5), (X, W)),
    "add norm of a difference": (lambda x, r, w: rms_norm(r - x, w), (X, Y, W)),
    "add norm of 2 * x": (lambda x, w: rms_norm(x + x, w), (X, W)),
    "add norm that hands on the variance": (lambda x, r, w: (rms_norm(r + x, w), mean_square(r + x)), (X, Y, W)),
    "rope, sign on the other half": (wrong_rope(lambda a, b: torch.cat((b, -a), -1)), ROPE),
    "rope, no sign": (wrong_rope(lambda a, b: torch.cat((b, a), -1)), ROPE),
    "rope, halves not swapped": (wrong_rope(lambda a, b: torch.cat((-a, b), -1)), ROPE),
    "rope, both signs": (wrong_rope(lambda a, b: torch.cat((-b, -a), -1)), ROPE),
    "rope, a quarter": (lambda q, c, s: q * c + torch.cat((-q[..., 4:], q[..., :4]), -1) * s, ROPE),
    "rope, minus": (lambda q, c, s: q * c - rotate_half(q) * s, ROPE),
    "rope, one angle": (lambda q, c: q * c + rotate_half(q) * c, ROPE[:2]),
    "rope of two values": (lambda q, k, c, s: q * c + rotate_half(k) * s, (Q, Q + 1, *ROPE[1:])),
    "rope, rotated along the heads": (lambda q, c, s: q * c + torch.cat((-q[:, 2:], q[:, :2]), 1) * s, ROPE),
    "rope, rotated and transposed": (lambda q, c, s: q * c + rotate_half(q.transpose(1, 2)).transpose(1, 2) * s, ROPE),
    "softmax over another dimension": (lambda x, m: torch.softmax(x * 0.1 + m, 2), (Q, Q[:, :1])),
    "log_softmax": (lambda x, m: torch.log_softmax(x * 0.1 + m, -1), (Q, Q[:, :1])),
    "softmax alone": (lambda x: torch.softmax(x, -1), (Q,)),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_look_alikes_have_no_name(case: str) -> None:
    fn, inputs = OTHER[case]
    assert match(trace(fn, *inputs)) is None


def test_gelu_is_not_swiglu_and_silu_is_not_geglu() -> None:
    assert match(trace(lambda g, u: F.gelu(g) * u, X, Y)) == "GEGLU"
    assert match(trace(lambda g, u: F.silu(g) * u, X, Y)) == "SwiGLU"


@pytest.mark.parametrize(
    ("fn", "inputs", "names"),
    [
        (lambda g, u: F.silu(g) * u + 1.0, (X, Y), ("SwiGLU",)),
        (lambda g, u, w: rms_norm(F.silu(g) * u, w), (X, Y, W), ("gated RMSNorm",)),
        (lambda x, y, v, w: rms_norm(F.silu(x) * y + v, w), (X, Y, X + 1, W), ("Add+RMSNorm", "SwiGLU")),
        (lambda x, r, w: add_rms_norm(x, r, w)[0] * 2.0, (X, Y, W), ("Add+RMSNorm",)),
        (lambda x, y, w: (rms_norm(x, w), F.silu(x) * y), (X, Y, W), ("RMSNorm", "SwiGLU")),
        (lambda x: F.silu(x) * F.silu(x), (X,), ()),
        (lambda g, u, v: (F.silu(g), u * v), (X, Y, X + 1), ()),
        (add_rms_norm, (X, Y, W), ("Add+RMSNorm",)),  # not the RMSNorm inside it
        (lambda x: x + 1.0, (X,), ()),
    ],
)  # fmt: skip
def test_patterns_inside_larger_regions(fn: Any, inputs: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> None:
    assert contained(trace(fn, *inputs)) == names


def test_constants_are_captured() -> None:
    assert constants(create_rms_norm_pattern(eps=3e-5)) == (3e-5,)
    assert constants(trace(lambda x, m: torch.softmax(x * 0.3 + m, -1), Q, Q[:, :1])) == (0.3,)
    assert constants(trace(lambda x: x + 1.0, X)) == ()


def test_names_do_not_depend_on_the_names_of_values() -> None:
    graph = trace(lambda g, u: F.silu(g) * u, X, Y)
    assert match(graph.canonical) == "SwiGLU"
    assert match(SubGraph.from_json(graph.to_json())) == "SwiGLU"


def test_a_graph_without_calls_has_no_name() -> None:
    graph = trace(lambda x: x, X)
    assert match(graph) is None
    assert contained(graph) == ()


def test_matching_is_quick() -> None:
    """A scan of every pattern over the largest region here; the best of many, as others share the machine."""
    graph = trace(EXAMPLES["qk_norm_rope"].fn, *EXAMPLES["qk_norm_rope"].inputs(torch.bfloat16), dynamic=DYNAMIC)
    assert len(graph.nodes) >= 16
    took = []
    for _ in range(10):
        start = time.perf_counter()
        match(graph)
        took.append(time.perf_counter() - start)
    assert min(took) < 5e-3


def test_operators_outside_the_table_do_not_match() -> None:
    assert match(trace(lambda x, w: torch.mm(x, w), X[0], X[0].t())) is None


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transformers_own_modules(family: str, dtype: torch.dtype) -> None:
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    prefix = {"qwen3": "Qwen3", "llama": "Llama"}[family]
    norm = getattr(modeling, f"{prefix}RMSNorm")(16).to(dtype)
    x, y, q, cos, sin = (t.to(dtype) for t in (X, Y, Q, COS, SIN))

    def with_weight(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    weight = norm.weight.detach()
    assert match(trace(with_weight, x, weight)) == "RMSNorm"
    assert match(trace(lambda x, y, w: (with_weight(s := y + x, w), s), x, y, weight)) == "Add+RMSNorm"
    assert match(trace(modeling.apply_rotary_pos_emb, q, q + 1, cos, sin)) == "RoPE"

    def query(x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = with_weight(x.view(2, 6, -1, 16), weight).transpose(1, 2)
        return modeling.apply_rotary_pos_emb(heads, heads, cos, sin)[0]

    hidden = torch.randn(2, 6, 64).to(dtype)
    graph = trace(query, hidden, weight, cos, sin)
    live = SubGraph(graph.inputs, _needed(graph), graph.outputs, graph.specs)  # the keys' half is dead here
    assert match(live) == "QK-norm+RoPE"


def _needed(graph: SubGraph) -> tuple[Any, ...]:
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            needed |= set(node.refs)
            kept.append(node)
    return tuple(reversed(kept))
