"""Whole recordings: random programs, long ones, layers of real models; equal in every process."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import (
    ROWS,
    WIDTH,
    chain,
    check_complete,
    check_values,
    recorded,
    taken_apart,
    tensor,
)

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.capture.recorded_call import RecordedCall
from fusion.partition import cost_model
from fusion.partition.dependence import schedule
from fusion.partition.node_facts import Facts
from fusion.partition.partitioner import Partition, partition
from fusion.partition.regions import make_region
from fusion.patterns import ops
from fusion.patterns.errors import GraphError
from fusion.patterns.graph import SubGraph
from fusion.patterns.match import match
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph

# ---- whole


def test_equal_recordings_have_equal_partitions() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = torch.softmax(torch.nn.functional.linear((x * 2).relu(), w) + x, -1)
        return y, (y.sum(-1) * 2).exp()

    arguments = tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH)
    recording = recorded(fn, *arguments)
    again = recorded(fn, *arguments)
    parts, other = (partition(r.graph, values=r.values) for r in (recording, again))  # type: ignore[arg-type]
    assert parts == other
    assert parts.order == other.order


@pytest.mark.timeout(60)  # what is not near-linear in the number of calls takes minutes
@pytest.mark.parametrize("min_nodes", [2, 5000])
def test_a_long_chain(min_nodes: int) -> None:
    graph = chain(3000)
    asked: list[SubGraph] = []
    parts = partition(graph, values={}, min_nodes=min_nodes, judge=asked.append)  # type: ignore[arg-type]
    assert sum(len(r.nodes) for r in parts.regions) == (3000 if min_nodes == 2 else 0)
    assert all(len(r.nodes) <= cost_model.MOST_OPERATORS for r in parts.regions)
    assert len(parts.regions) <= 3000 // (cost_model.MOST_OPERATORS // 2)
    assert len(parts.refusals) == (0 if min_nodes == 2 else 3000)
    assert not asked  # that a chain of pointwise operators is one kernel needs no lowering


def test_regions_of_different_partitions_may_go_in_a_circle() -> None:
    graph = chain(3)
    facts = Facts(graph)
    with pytest.raises(GraphError, match="circle"):
        schedule(graph, [make_region(facts, nodes, (), ()) for nodes in ({0, 2}, {1})])


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """A straight-line program: each step an operation and the two values it reads."""
    steps = []
    for made in range(2, draw(st.integers(4, 14))):
        operation = draw(
            st.sampled_from(["add", "mul", "relu", "t", "linear", "norm", "softmax", "half", "row", "add_"])
        )
        steps.append((operation, draw(st.integers(0, made - 1)), draw(st.integers(max(0, made - 3), made - 1))))
    return steps


def run_program(steps: list[tuple[str, int, int]], x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    known = [x * 1, w + 0]
    for operation, i, j in steps:
        a, b = known[i], known[j]
        made = {
            "add": lambda a=a, b=b: a + b,
            "mul": lambda a=a, b=b: a * b,
            "relu": lambda b=b: b.relu(),
            "t": lambda b=b: b.transpose(0, 1),
            "linear": lambda a=a, b=b: torch.nn.functional.linear(a, b),
            "norm": lambda b=b: b * torch.rsqrt((b * b).mean(-1, keepdim=True) + 1),
            "softmax": lambda b=b: torch.softmax(b, -1),
            "half": lambda a=a, b=b: torch.cat((-b[:, 4:], a[:, :4]), -1),
            "row": lambda a=a, b=b: a + b[:1].exp(),
            "add_": lambda b=b: b.add_(1) if b is not x and b is not w else b + 1,
        }[operation]
        known.append(made())
    return known[-1], known[-2]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(programs(), st.data())
def test_any_choice_of_regions_computes_the_same(steps: list[tuple[str, int, int]], data: st.DataObject) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        return run_program(steps, x, w)

    recording = recorded(fn, tensor(8, 8), tensor(8, 8) / 4)
    assert recording.graph is not None
    parts = partition(recording.graph, values=recording.values)
    check_complete(recording.graph, parts)
    check_values(recording, parts, parts.order)
    chosen = tuple(r for r in parts.regions if data.draw(st.booleans()))
    some = Partition(chosen, (), ())
    check_values(recording, some, schedule(recording.graph, chosen))


# ---- real models


@contextlib.contextmanager
def recorded_layers(model: Any) -> Iterator[list[RecordedCall]]:
    """Records each decoder layer of `model` when it is called."""
    recordings: list[RecordedCall] = []

    def wrapped(layer: Any) -> Callable[..., Any]:
        original, signature = layer.forward, inspect.signature(layer.forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            recordings.append(
                record(original, ArgumentSnapshot(arguments), lambda: original(*args, **kwargs), {"": layer})
            )
            return recordings[-1].result

        return forward

    for layer in model.model.layers:
        layer.forward = wrapped(layer)
    yield recordings


def layer_recordings(family: str) -> list[RecordedCall]:
    """One decoder layer, recorded in prefill and in decode."""
    transformers = pytest.importorskip("transformers")
    from fusion.integrations import transformers as integration

    assert transformers.DynamicCache  # imports the module whose classes are registered
    integration.register()
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 16, "intermediate_size": 128, "vocab_size": 320}
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().bfloat16()
    tokens = torch.arange(13)[None]
    with torch.no_grad(), recorded_layers(model) as recordings:
        cache = transformers.DynamicCache(config=config)
        model(tokens, past_key_values=cache)
        model(tokens[:, :1], past_key_values=cache)
    assert len(recordings) == 2
    return recordings


@pytest.mark.parametrize(
    ("family", "rotated", "ops_inside"),
    [("Qwen3", "QK-norm+RoPE", 8 + 5), ("Llama", "RoPE", 5)],
)
def test_a_decoder_layer(family: str, rotated: str, ops_inside: int) -> None:
    for recording in layer_recordings(family):
        graph = recording.graph
        assert graph is not None, recording.refusal
        parts = partition(graph, values=recording.values)
        check_complete(graph, parts)
        regions = taken_apart(parts)
        assert sorted(str(match(r.subgraph)) for r in regions) == sorted(
            ["RMSNorm", rotated, rotated, "Add+RMSNorm", "SwiGLU", "None"]  # the last is the residual after the MLP
        )
        assert len(parts.regions) == len(regions) - 1
        assert f"{rotated} x2" in [match(r.subgraph) for r in parts.regions], "both rotations are one launch"
        by_name = {str(match(r.subgraph)): r for r in regions}
        computing = [n for n in by_name[rotated].subgraph.nodes if ops.kind_of(n.op) is not ops.Kind.VIEW]
        assert len(computing) == ops_inside
        assert len(by_name[rotated].outputs) == 1
        assert len(by_name["RMSNorm"].nodes) == 8
        assert len(by_name["Add+RMSNorm"].outputs) == 2
        assert {r.code for i, r in parts.refusals if not is_view_node(graph, i)} == {"not_fusable"}
        # The unsqueezed cosine and sine are inside of both rotations and run no more.
        unsqueezes = [i for i, n in enumerate(graph.nodes) if isinstance(n, OpNode) and "unsqueeze" in n.op]
        assert len(unsqueezes) == 2
        assert not {("node", i) for i in unsqueezes} & set(parts.order)


def is_view_node(graph: RecordedGraph, i: int) -> bool:
    return ops.kind_of(graph.nodes[i].op) is ops.Kind.VIEW  # type: ignore[union-attr]
