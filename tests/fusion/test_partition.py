"""Regions of recordings: which calls are grouped, why others are not, and that the order computes the same."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.capture import islands
from fusion.capture.record import Recording, record
from fusion.decide.dependence import Step, dependence, schedule
from fusion.decide.partition import Partition, partition
from fusion.decide.refusal import CODES
from fusion.patterns import ops, symbols
from fusion.patterns.errors import GraphError, LoweringError
from fusion.patterns.graph import IslandNode, OpNode, RecordedGraph, Ref, SubGraph, TensorSpec, map_leaves
from fusion.patterns.match import match

ROWS, WIDTH = 6, 16


class Store:
    """An object with a Python effect: it keeps what it is given."""

    def __init__(self) -> None:
        self.total = torch.zeros(ROWS, WIDTH)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return self.total.add_(x)


class Views(Store):
    """A store that hands out views of what it keeps, each a new tensor."""

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return super().update(x)[:]


islands.register_island(Store, "update")
islands.register_island(Views, "update")


def recorded(fn: Callable[..., Any], *arguments: Any) -> Recording:
    """`fn` run once on `arguments` and recorded."""
    names = inspect.signature(fn).parameters
    recording = record(fn, dict(zip(names, arguments, strict=True)), lambda: fn(*arguments), {})
    assert recording.graph is not None, recording.refusal
    return recording


def divided(fn: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[RecordedGraph, Partition]:
    """The partition of `fn`'s recording, after its order is shown to compute what eager computed."""
    recording = recorded(fn, *arguments)
    assert recording.graph is not None
    parts = partition(recording.graph, values=recording.values, **options)
    check_complete(recording.graph, parts)
    if not any(isinstance(node, IslandNode) for node in recording.graph.nodes):
        check_values(recording, parts, parts.order)
    return recording.graph, parts


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def check_complete(graph: RecordedGraph, parts: Partition) -> None:
    """Every call is in a region or refused, never both; regions share views only; the order has each step once."""
    inside = [i for region in parts.regions for i in region.nodes]
    refused = [i for i, _ in parts.refusals]
    calls = {i for i, node in enumerate(graph.nodes) if isinstance(node, OpNode)}
    assert set(inside) | set(refused) == calls
    assert not set(inside) & set(refused)
    assert refused == sorted(set(refused))
    views = {i for i in calls if ops.kind_of(graph.nodes[i].op) is ops.Kind.VIEW}
    computing = [i for i in inside if i not in views]
    assert len(computing) == len(set(computing))
    assert len(set(parts.order)) == len(parts.order)
    for region in parts.regions:
        assert region.nodes[-1] not in views
        assert (region.inputs, region.outputs) == (region.subgraph.inputs, region.subgraph.outputs)
        assert region.subgraph.nodes == tuple(graph.nodes[i] for i in region.nodes)
        assert set(region.nodes) - views <= set(region.removed) <= set(region.nodes)
        assert all(("node", i) not in parts.order for i in region.removed)


def check_values(recording: Recording, parts: Partition, order: tuple[Step, ...]) -> None:
    """Runs the steps with eager operators; a region sees its inputs only and hands back its outputs only."""
    graph = recording.graph
    assert graph is not None
    outside = {name: recording.real[name].clone() for name in (*(i.name for i in graph.inputs), *graph.constants)}

    def run(node: OpNode, known: dict[str, torch.Tensor]) -> None:
        def leaf(x: Any) -> Any:
            if isinstance(x, Ref):
                return known[x.name]
            return symbols.evaluate(x, recording.values) if hasattr(x, "free_symbols") else x

        result = ops.resolve(node.op)(*map_leaves(leaf, node.args), **{k: map_leaves(leaf, v) for k, v in node.kwargs})
        made = result if isinstance(result, (tuple, list)) else (result,)
        known.update(zip(node.outputs, made, strict=True))

    for kind, k in order:
        if kind == "node":
            run(graph.nodes[k], outside)
            continue
        region = parts.regions[k]
        own = {name: outside[name] for name in region.inputs}
        for node in region.subgraph.nodes:
            run(node, own)
        outside.update((name, own[name]) for name in region.outputs)
    results = torch.utils._pytree.tree_leaves(recording.result)
    for ref, expected in zip(graph.outputs, results, strict=True):
        assert torch.equal(outside[ref.name], expected)


def names(graph: RecordedGraph, parts: Partition) -> list[str]:
    """The regions by what they compute: "mul add"."""
    return [
        " ".join(n.op.split(".")[1] for n in r.subgraph.nodes if ops.kind_of(n.op) is not ops.Kind.VIEW)
        for r in parts.regions
    ]


def codes(graph: RecordedGraph, parts: Partition) -> dict[str, str]:
    """Refusal codes by operator."""
    assert all(refusal.code in CODES and refusal.sentence for _, refusal in parts.refusals)
    return {graph.nodes[i].op.split(".")[1]: refusal.code for i, refusal in parts.refusals}


# ---- growing


def test_a_chain_is_one_region() -> None:
    graph, parts = divided(lambda x: (x * 2 + 1).relu(), tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["mul add relu"]
    assert parts.order == (("region", 0),)
    assert parts.regions[0].inputs == ("x0",)


def test_a_residual_through_a_linear_is_not_convex() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = (x * 2).relu()
        return (torch.nn.functional.linear(y, w) + y) * 3

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["mul relu", "add mul"]
    assert codes(graph, parts) == {"linear": "not_fusable"}


def test_a_value_read_outside_is_a_further_output() -> None:
    def fn(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> Any:
        total = x + r
        return torch.nn.functional.linear(total.tanh() * 2, w), total

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["add tanh mul"]
    last, first = parts.regions[0].outputs
    producer = dependence(graph).producer
    assert producer[first] < producer[last]
    assert first == graph.outputs[1].name


def test_a_value_read_through_a_view_outside_is_an_output_and_the_view_stays() -> None:
    def fn(x: torch.Tensor) -> Any:
        y = (x * 2).transpose(0, 1)
        return y.relu() + 1, y

    _, parts = divided(fn, tensor(ROWS, WIDTH))
    (region,) = parts.regions
    assert region.nodes == (0, 1, 2, 3)
    assert region.removed == (0, 2, 3)
    assert parts.order == (("region", 0), ("node", 1))


def test_a_further_output_over_other_indices_is_left_outside() -> None:
    def fn(x: torch.Tensor) -> Any:
        y = (x * 2).exp()
        return y[:, :4].relu() + 1, y

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["mul exp", "relu add"]


def test_views_at_the_top_are_pulled_in_by_every_reader_and_run_no_more() -> None:
    def fn(x: torch.Tensor, a: torch.Tensor, w: torch.Tensor) -> Any:
        t = x.transpose(0, 1)
        return (t * a).relu(), torch.nn.functional.linear((t + a).exp(), w)

    graph, parts = divided(fn, tensor(WIDTH, ROWS), tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["mul relu", "add exp"]
    assert all(0 in r.nodes and 0 not in r.removed and r.inputs == ("x0", "x1") for r in parts.regions)
    assert ("node", 0) not in parts.order
    # Should only one of them be used, the view has to run for the other.
    assert ("node", 0) in schedule(graph, parts.regions[:1])
    assert schedule(graph, ()) == tuple(("node", i) for i in range(len(graph.nodes)))


def test_trailing_views_and_lone_copies_stay_outside() -> None:
    graph, parts = divided(
        lambda x: ((x * 2).relu().view(-1), x.transpose(0, 1).contiguous()), tensor(ROWS, WIDTH), min_nodes=1
    )
    assert names(graph, parts) == ["mul relu"]
    assert codes(graph, parts) == {"view": "too_small", "transpose": "too_small", "contiguous": "too_small"}


def test_chunk_is_one_view_with_two_results() -> None:
    class Halves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = self.both(x).chunk(2, -1)
            return torch.nn.functional.silu(gate) * up

    module, x = Halves(), tensor(ROWS, WIDTH)
    graph = record(module.forward, {"x": x}, lambda: module(x), {"": module}).graph
    assert graph is not None
    parts = partition(graph, values={"s0": ROWS, "s1": WIDTH})
    assert parts.regions[0].nodes == (1, 2, 3)
    assert parts.order == (("node", 0), ("region", 0))


def test_softmax_with_a_mask() -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(2, 3)) * 0.25 + mask
        return torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)

    half = torch.bfloat16
    heads = tensor(2, 3, 5, 8, dtype=half)
    graph, parts = divided(fn, heads, heads.clone(), tensor(2, 1, 5, 5, dtype=half))
    assert names(graph, parts) == ["mul add softmax to"]


def test_the_value_per_row_is_a_further_output() -> None:
    def fn(x: torch.Tensor) -> Any:
        scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        return x * scale, scale

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["mul mean add rsqrt mul"]
    assert len(parts.regions[0].outputs) == 2


def test_two_regions_that_would_wait_for_each_other() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        a, b = x * 2, x * 3
        left = torch.nn.functional.linear(a, w) + b
        right = torch.nn.functional.linear(b, w) + a
        return left, right

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    # Either sum could take the other's product in, as each by itself is convex; both together would be a circle.
    assert names(graph, parts).count("mul add") <= 1


# ---- refusing


def test_a_value_that_is_broadcast_is_not_computed_again() -> None:
    def fn(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x + b.exp()) * 2

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH))
    assert names(graph, parts) == ["add mul"]
    assert codes(graph, parts) == {"exp": "broadcast_recompute"}


def test_a_value_expanded_by_a_view_is_not_computed_again() -> None:
    def fn(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x + b.exp().unsqueeze(0).expand(ROWS, WIDTH)) * 2

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH))
    assert names(graph, parts) == ["add mul"]
    assert codes(graph, parts)["exp"] == "broadcast_recompute"


def test_memory_that_is_written_to_is_left_alone() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        before = y.relu() + 1
        y.add_(1)
        return before * y.relu().tanh()

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    written = {i for i, node in enumerate(graph.nodes) if "v1" in (*node.refs, *node.outputs)}
    assert len(written) == 4
    assert {i for i, refusal in parts.refusals if refusal.code == "aliased"} == written
    assert names(graph, parts) == ["add tanh mul"]


def test_too_small_and_few_elements() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), min_nodes=3)
    assert not parts.regions
    assert codes(graph, parts) == {"mul": "too_small", "relu": "too_small"}
    graph, parts = divided(fn, tensor(ROWS, WIDTH), min_elements=ROWS * WIDTH + 1)
    assert codes(graph, parts) == {"mul": "few_elements", "relu": "few_elements"}
    graph, parts = divided(fn, tensor(ROWS, WIDTH), min_elements=ROWS * WIDTH)
    assert names(graph, parts) == ["mul relu"]


def test_dtypes_and_uses_that_no_kernel_covers() -> None:
    def fn(x: torch.Tensor, c: torch.Tensor) -> Any:
        return torch.linalg.norm(x, 1, (0, 1)) * 2 + 1, (c * c) + c

    graph, parts = divided(fn, tensor(ROWS, WIDTH), torch.ones(ROWS, dtype=torch.complex64))
    assert names(graph, parts) == ["mul add"]
    assert [refusal.code for _, refusal in parts.refusals] == ["operator_use", "dtype", "dtype"]


# ---- the judge


def test_what_does_not_lower_is_cut() -> None:
    def judge(graph: SubGraph) -> Any:
        if "exp" in graph.ops:
            raise LoweringError("domain", "no exp here")

    graph, parts = divided(lambda x: (x.exp() + 1).relu().tanh() * 2, tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["add relu tanh mul"]
    assert codes(graph, parts) == {"exp": "different_domain"}
    graph, parts = divided(lambda x: (x + 1).relu().exp(), tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["add relu"]
    assert codes(graph, parts) == {"exp": "different_domain"}


def test_what_does_not_lower_is_tried_with_one_output() -> None:
    def judge(graph: SubGraph) -> Any:
        if len(graph.outputs) > 1:
            raise LoweringError("domain", "one output at most")

    def fn(x: torch.Tensor) -> Any:
        y = (x * 2).relu()
        return (y + 1).tanh(), y

    graph, parts = divided(fn, tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["mul relu", "add tanh"]


def test_the_judge_is_asked_once_per_digest() -> None:
    asked: list[str] = []

    def judge(graph: SubGraph) -> Any:
        asked.append(graph.digest)

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.nn.functional.linear((x * 2).relu(), w)
        return x

    _, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH), judge=judge)
    assert len(parts.regions) == 3
    assert len(asked) == len(set(asked)) == 1


# ---- effects


def test_regions_stay_on_their_side_of_an_island() -> None:
    def fn(x: torch.Tensor, store: Store) -> torch.Tensor:
        kept = store.update((x * 2).relu())
        return (kept + 1).tanh()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Store())
    assert names(graph, parts) == ["mul relu", "add tanh"]
    assert parts.order == (("region", 0), ("node", 2), ("region", 1))


def test_what_reads_an_islands_result_stays_before_the_next_island() -> None:
    def fn(x: torch.Tensor, store: Views) -> torch.Tensor:
        early = store.update(x)[:, :WIDTH] * 2  # reads memory that the second call writes to
        late = store.update(x)
        return (early.relu() + late).tanh()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Views())
    place = {step: k for k, step in enumerate(parts.order)}
    first, second = (i for i, node in enumerate(graph.nodes) if isinstance(node, IslandNode))
    reader = next(i for i, n in enumerate(graph.nodes) if isinstance(n, OpNode) and n.op == "aten.mul.Tensor")
    assert place["node", first] < place["node", reader] < place["node", second]
    assert names(graph, parts) == ["relu add tanh"]
    assert codes(graph, parts)["mul"] == "not_convex"


def test_a_tensor_that_an_island_hands_out_again_counts_as_written_to() -> None:
    def fn(x: torch.Tensor, store: Store) -> torch.Tensor:
        early = store.update(x) * 2
        late = store.update(x)
        return (early.relu() + late).tanh() * 3

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Store())
    assert codes(graph, parts) == {"mul": "aliased", "add": "aliased", "relu": "too_small"}
    assert names(graph, parts) == ["tanh mul"]
    assert [k for kind, k in parts.order if kind == "node"] == [0, 1, 2, 3, 4]


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


def chain(length: int, op: str = "aten.relu.default") -> RecordedGraph:
    """A recording of one operator after another."""
    spec = TensorSpec.contiguous(torch.float32, (4, 8))
    value = [f"v{i}" for i in range(length + 1)]
    nodes = tuple(OpNode(op, (Ref(value[i]),), (), (value[i + 1],)) for i in range(length))
    specs = tuple((name, spec) for name in value)
    return RecordedGraph((), (("v0", "x"),), (), (), nodes, (Ref(value[-1]),), "*", specs, (), ())


@pytest.mark.timeout(60)  # what is not near-linear in the number of calls takes minutes
@pytest.mark.parametrize("min_nodes", [2, 5000])
def test_a_long_chain(min_nodes: int) -> None:
    graph = chain(3000)
    asked: list[SubGraph] = []
    parts = partition(graph, values={}, min_nodes=min_nodes, judge=asked.append)  # type: ignore[arg-type]
    assert [len(r.nodes) for r in parts.regions] == ([3000] if min_nodes == 2 else [])
    assert len(parts.refusals) == (0 if min_nodes == 2 else 3000)
    assert len(asked) == len(parts.regions)


def test_regions_of_different_partitions_may_go_in_a_circle() -> None:
    graph = chain(3)
    (all_of_it,) = partition(graph, values={}).regions

    def region(*nodes: int) -> Any:
        made = tuple(graph.nodes[i] for i in nodes)
        inputs = tuple(dict.fromkeys(r for n in made for r in n.refs if r not in {o for m in made for o in m.outputs}))
        known = {*inputs, *(o for n in made for o in n.outputs)}
        specs = tuple((name, spec) for name, spec in graph.specs if name in known)
        subgraph = SubGraph(inputs, made, tuple(o for n in made for o in n.outputs), specs)
        return type(all_of_it)(nodes, subgraph, inputs, subgraph.outputs, nodes)

    with pytest.raises(GraphError, match="circle"):
        schedule(graph, (region(0, 2), region(1)))


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
def recorded_layers(model: Any) -> Iterator[list[Recording]]:
    """Records each decoder layer of `model` when it is called."""
    recordings: list[Recording] = []

    def wrapped(layer: Any) -> Callable[..., Any]:
        original, signature = layer.forward, inspect.signature(layer.forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            recordings.append(record(original, arguments, lambda: original(*args, **kwargs), {"": layer}))
            return recordings[-1].result

        return forward

    for layer in model.model.layers:
        layer.forward = wrapped(layer)
    yield recordings


def layer_recordings(family: str) -> list[Recording]:
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
        assert sorted(str(match(r.subgraph)) for r in parts.regions) == sorted(
            ["RMSNorm", rotated, rotated, "Add+RMSNorm", "SwiGLU"]
        )
        by_name = {str(match(r.subgraph)): r for r in parts.regions}
        computing = [n for n in by_name[rotated].subgraph.nodes if ops.kind_of(n.op) is not ops.Kind.VIEW]
        assert len(computing) == ops_inside
        assert len(by_name[rotated].outputs) == 1
        assert len(by_name["RMSNorm"].nodes) == 8
        assert len(by_name["Add+RMSNorm"].outputs) == 2
        assert {refusal.code for _, refusal in parts.refusals} == {"not_fusable", "too_small"}
        lone = [i for i, refusal in parts.refusals if refusal.code == "too_small" and not is_view_node(graph, i)]
        assert lone == [len(graph.nodes) - 1]  # the residual after the MLP
        # The unsqueezed cosine and sine are inside of both rotations and run no more.
        unsqueezes = [i for i, n in enumerate(graph.nodes) if isinstance(n, OpNode) and "unsqueeze" in n.op]
        assert len(unsqueezes) == 2
        assert not {("node", i) for i in unsqueezes} & set(parts.order)


def is_view_node(graph: RecordedGraph, i: int) -> bool:
    return ops.kind_of(graph.nodes[i].op) is ops.Kind.VIEW  # type: ignore[union-attr]
