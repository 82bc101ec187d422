"""Uses of what a forward finds inside objects that no read of one item tells of: none is a plan's, none does harm."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import normal as rand
from tiny import no_grad, planned, scopes

import fusion

WIDTH = 8


class Layer:
    """A layer's state."""

    def __init__(self, start: float) -> None:
        self.state, self.limit = torch.full((2, WIDTH), start), 4.0


class Count(int):
    """A number with an attribute."""

    wide = False


class Shelf:
    """Layers, tensors and numbers, and opaque calls that change what there is."""

    def __init__(self) -> None:
        self.layers = [Layer(k + 1.0) for k in range(3)]
        self.chunks = [torch.full((2, WIDTH), k + 1.0) for k in range(3)]
        self.extra: dict[str, Any] = {"on": True}
        self.table, self.sizes, self.scale = [[1.0], [2.0]], [1, 2], 2.0
        self.count = Count(4)
        self.pair = (torch.ones(WIDTH), {"gain": 2.0})

    def push(self, value: torch.Tensor) -> None:
        self.chunks.append(value.clone())

    def pop(self) -> None:
        self.chunks.pop()

    def keep(self, value: Any) -> None:
        self.kept = value

    def put(self, value: torch.Tensor) -> torch.Tensor:
        return self.layers[0].state.copy_(value)


for _method in ("push", "pop", "keep", "put"):
    fusion.register_island(Shelf, _method)


class Forward(torch.nn.Module):
    """Calls a function of (module, x, shelf)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.full((WIDTH,), 3.0))

    def forward(self, x: torch.Tensor, shelf: Shelf) -> Any:
        return self.function(self, x, shelf)


def no_change(shelf: Shelf, step: int) -> None:
    """Between calls, nothing happens."""


def run(
    function: Callable[..., Any], quick: fusion.FusionConfig, between: Callable[[Shelf, int], None] = no_change
) -> tuple[torch.nn.Module, Shelf, Any]:
    """Seven calls of both; the fused module, what it was given, and its last result."""
    eager = Forward(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    mine, theirs = Shelf(), Shelf()
    for step in range(7):
        x = rand(2, WIDTH, seed=step)
        between(mine, step)
        between(theirs, step)
        found, expected = no_grad(fused, x, mine), no_grad(eager, x, theirs)
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for name in ("layers", "chunks", "extra", "table", "sizes"):
            ours, others = getattr(mine, name), getattr(theirs, name)
            assert type(ours) is type(others) and len(ours) == len(others), name
        assert mine.sizes == theirs.sizes and mine.extra["on"] == theirs.extra["on"]
        assert [layer.limit for layer in mine.layers] == [layer.limit for layer in theirs.layers]
    return fused, mine, found


def adds(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    for layer in [] + shelf.layers:  # noqa: RUF005 - how a list takes another's memory as it is
        x = torch.tanh(x) * layer.limit
    return x


def copies(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * len(copy.copy(shelf.layers)) + len(copy.copy(shelf.extra))


def copies_deeply(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * len(copy.deepcopy(shelf.table)) + len(copy.deepcopy(shelf.extra))


def pickles(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * len(pickle.loads(pickle.dumps(shelf.table)))


def concatenates(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    several = shelf.chunks[0] + shelf.chunks[1] + shelf.chunks[2]  # each is known by now
    return torch.tanh(torch.cat(shelf.chunks)) * 2 + several.sum()


def concatenates_what_an_island_appends(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    chunks = shelf.chunks
    shelf.push(x)
    return torch.tanh(torch.cat(chunks)) * 2


def counts(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    shelf.sizes[0] += 1
    return torch.tanh(x) * 2


def asks_for_what_is_not_there(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * getattr(shelf, "late", 3.0) + hasattr(shelf.layers[0], "late")


def reads_all_attributes(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * vars(shelf)["scale"] + shelf.layers[1].__dict__["limit"]


def copies_the_object(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * copy.copy(shelf).scale


def reads_a_dict_of_a_tuple(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    weight, held = shelf.pair
    return torch.tanh(x) * weight * held["gain"]


def prints(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * len(f"{shelf.table}") + len(repr(shelf.table))


def counts_then_fails_with_symbols(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    rows = x.shape[0]
    shelf.layers[0].limit += 1
    shelf.extra["on"] = not shelf.extra["on"]
    shelf.chunks.append(x)
    assert type(rows) is int
    return torch.tanh(x) * shelf.layers[0].limit * len(shelf.chunks) + shelf.extra["on"]


def uses_what_was_overwritten(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    state = shelf.layers[0].state
    now = shelf.put(x * 2)
    return torch.tanh(state) * 2 + now


def uses_what_it_found_twice(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    state = shelf.layers[0].state
    before = torch.exp(state)
    shelf.put(x * 2)
    return torch.tanh(shelf.layers[0].state) + before + state


def reads_an_attribute_of_a_number(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x) * (2 if shelf.count.wide else 3)


def more(shelf: Shelf, step: int) -> None:
    """Other values from the fourth call on."""
    if step > 2:
        shelf.chunks.append(torch.ones(2, WIDTH))
        shelf.table.append([3.0])
        shelf.count.wide = True
        shelf.late = shelf.layers[0].late = shelf.scale = float(step)
        shelf.pair[1]["gain"] = float(step)
        for layer in shelf.layers:
            layer.limit = float(step)


REFUSED = [
    adds, copies, copies_deeply, pickles, concatenates, concatenates_what_an_island_appends, counts,
    asks_for_what_is_not_there, reads_all_attributes, copies_the_object, reads_a_dict_of_a_tuple, prints,
    reads_an_attribute_of_a_number, counts_then_fails_with_symbols, uses_what_was_overwritten, uses_what_it_found_twice,
]  # fmt: skip


@pytest.mark.parametrize("between", [no_change, more], ids=lambda f: f.__name__)
@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_uses_of_the_whole_stay_eager(function: Any, between: Any, quick: fusion.FusionConfig) -> None:
    fused, _, _ = run(function, quick, between)
    assert planned(fused)["Forward"] == 0
    assert fusion.report(fused).scopes[0].reason


def takes_the_last(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    last = shelf.chunks[3]
    shelf.pop()
    return torch.tanh(last + x) * 2


def test_an_item_that_the_call_takes_away(quick: fusion.FusionConfig) -> None:
    """Running such a call again finds it gone: the log has it."""
    fused, _, _ = run(
        takes_the_last, quick, lambda shelf, step: shelf.chunks.append(torch.full((2, WIDTH), 1.0 + step))
    )
    (scope,) = scopes(fused).values()
    assert planned(fused)["Forward"] == 6 and scope.statistics.recordings == 1


def stores(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    module.kept = shelf.layers[0].others = shelf.extra["more"] = shelf.layers
    return torch.tanh(x) * 2


def hands_on(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    shelf.keep([shelf.layers, {"a": (shelf.chunks, 2)}])
    return torch.tanh(x) * 2


def hands_on_one(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    shelf.keep(shelf.layers)
    return torch.tanh(x) * 2


class Box:
    """A result that no one knows."""

    def __init__(self, held: Any) -> None:
        self.held = held


def boxes(module: Any, x: torch.Tensor, shelf: Shelf) -> Any:
    return torch.tanh(x) * 2, shelf.extra, Box(shelf.layers)


def test_nobody_is_left_with_a_list_that_tells(quick: fusion.FusionConfig) -> None:
    fused, shelf, _ = run(stores, quick)
    assert {type(v) for v in (fused.kept, shelf.layers[0].others, shelf.extra["more"])} == {list}
    _, shelf, _ = run(hands_on, quick)
    assert shelf.kept[0] is shelf.layers and shelf.kept[1]["a"][0] is shelf.chunks
    _, shelf, _ = run(hands_on_one, quick)
    assert shelf.kept is shelf.layers
    _, shelf, (_, extra, box) = run(boxes, quick)
    assert extra is shelf.extra and box.held is shelf.layers


def uses_its_weight_too(module: Any, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
    return torch.tanh(x * shelf.shared) * module.weight  # type: ignore[attr-defined]


def test_a_parameter_that_an_object_holds_too(quick: fusion.FusionConfig) -> None:
    """The first calls find the module's own weight there, later ones another tensor."""
    eager = Forward(uses_its_weight_too).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for step in range(7):
        x, found = rand(2, WIDTH, seed=step), []
        for module in (fused, eager):
            shelf = Shelf()
            shelf.shared = module.weight if step < 3 else torch.full((WIDTH,), 0.5)  # type: ignore[attr-defined]
            found.append(no_grad(module, x, shelf))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert planned(fused)["Forward"] >= 4


def sometimes_hands_out(module: Any, x: torch.Tensor, shelf: Shelf) -> Any:
    y = torch.tanh(x) * 2
    shelf.push(y)
    return y if shelf.extra["on"] else (y, shelf.layers)


def test_a_plan_that_ends_half_way_hands_out_what_the_caller_holds(quick: fusion.FusionConfig) -> None:
    def switch(shelf: Shelf, step: int) -> None:
        shelf.extra["on"] = step != 6

    fused, shelf, (_, layers) = run(sometimes_hands_out, quick, switch)
    (scope,) = scopes(fused).values()
    assert layers is shelf.layers and scope.statistics.fallbacks == 1
