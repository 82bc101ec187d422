"""Made data: of the graph's structure, with what users' data lacks, the same each time."""

from __future__ import annotations

import pytest
import torch
from graphs import trace

from fusion.patterns.graph import SubGraph
from fusion.patterns.samples import Draw, draws, made_inputs


def program(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, x.clamp(-2.5, 6.0), x * torch.rsqrt(x * x + 1e-6))


GRAPH = trace(program, torch.randn(11, 17), torch.rand(11, 17) > 0.5)


def made(draw: Draw, graph: SubGraph = GRAPH) -> list[torch.Tensor]:
    return made_inputs(graph, {}, draw)


@pytest.mark.parametrize("draw", list(Draw))
def test_it_is_the_same_each_time_and_leaves_the_generator_alone(draw: Draw) -> None:
    before = torch.get_rng_state()
    first, second = made(draw), made(draw)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        assert a.shape == (11, 17)


def test_each_draw_holds_what_it_is_for() -> None:
    x, mask = made(Draw.SPECIAL)
    assert x.isnan().any() and x.isposinf().any() and x.isneginf().any() and ((x == 0) & x.signbit()).any()
    assert not mask.any() and made(Draw.EDGES)[1].all()
    rows, masks = made(Draw.ROWS)
    assert rows[0].isneginf().all() and (rows[1] == 0).all() and masks[0].all() and not masks[1].any()
    edges = made(Draw.EDGES)[0]
    near = (edges - 6.0).abs() < 1e-4
    assert {0.0, 6.0} < {float(v) for v in edges.unique()} and (edges[near] > 6.0).any() and (edges[near] < 6.0).any()
    assert 1e-7 < float(made(Draw.EPSILON)[0].square().mean()) < 1e-5
    assert float(made(Draw.LARGE)[0].abs().max()) > 200


def test_strides_and_shared_memory_are_the_graphs() -> None:
    graph = trace(lambda x, y: x * y, torch.randn(5, 7).t(), torch.randn(7, 1).expand(7, 5))
    x, y = made(Draw.PLAIN, graph)
    assert x.stride() == (1, 7) and y.stride() == (1, 0)
    assert x.unique().numel() == 35


def test_what_has_no_defined_result_is_not_made() -> None:
    quotient = trace(lambda i, k: i // k, torch.arange(1, 9), torch.arange(1, 9))
    for draw in draws(quotient):
        assert all(int(i.min()) > 0 and int(i.max()) < 8 for i in made(draw, quotient))
    negated = trace(lambda i: (i // -1) + 1, torch.arange(1, 9))
    assert all(int(i.abs().max()) <= 50 for draw in draws(negated) for i in made(draw, negated))
    converted = trace(lambda x: (x * 2).to(torch.int32), torch.randn(8))
    assert all(bool(((x >= -4) & (x <= 100)).all()) for draw in draws(converted) for x in made(draw, converted))


def test_integers_go_to_the_ends_of_their_range() -> None:
    graph = trace(lambda i: (i * 3 + 7) // 2, torch.arange(8))
    (i,) = made(Draw.LARGE, graph)
    assert torch.iinfo(torch.int64).min in i.tolist() and torch.iinfo(torch.int64).max in i.tolist()


def test_the_users_default_device_and_dtype_do_not_count() -> None:
    plain = made(Draw.PLAIN)[0]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = made(Draw.PLAIN)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plain, again)
