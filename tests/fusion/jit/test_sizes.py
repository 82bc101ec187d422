"""Sizes that vary between calls: after two shapes no kernel is compiled and nothing recorded."""

import math
from collections.abc import Callable

import pytest
import torch
from many_sizes import PAIRS, WIDTH, agree, batch, many
from tiny import planned

import fusion


class Rotates(torch.nn.Module):
    """Rotary embedding with complex numbers, whose table is as long as the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(x.shape[1]).float(), torch.arange(WIDTH // 2) / WIDTH)
        turns = torch.polar(torch.ones_like(angles), angles)
        turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turns
        return torch.view_as_real(turned).flatten(-2).mul(2).tanh() + 1


class PadsChunks(torch.nn.Module):
    """Pads a length that is an expression of sizes, as models that work in chunks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 4))
        chunks = whole.reshape(x.shape[0], -1, 4, WIDTH).sum(2)
        return torch.nn.functional.pad(chunks.cumsum(1), (0, 0, 1, 0)).sigmoid() * 2


class Spreads(torch.nn.Module):
    """Calls an operator whose arguments torch's own shape function takes by name only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread, centre = torch.ops.aten.std_mean.dim(x, [-1], False)
        return (x - centre[..., None]) / (spread[..., None] + 1)


class ChoosesByBytes(torch.nn.Module):
    """Has a condition of bytes, which torch's own shape function does not take."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = (x > 0).to(torch.uint8)
        return torch.ops.aten.where.self(above, x, torch.ops.aten.where.Scalar(above + above, 2.0, 0.5))


class SumsNothing(torch.nn.Module):
    """Adds up no elements and pads the sums: rows of another length than nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x[..., :0].nansum(-1), (1, 1)) + x[..., :1].sum()


class RoundsUp(torch.nn.Module):
    """Pads to an even length by a quotient of sizes that Python rounds, and uses the length as a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        even = math.ceil(x.shape[1] / 2) * 2
        whole = torch.nn.functional.pad(x, (0, 0, 0, even - x.shape[1]))
        return whole.reshape(x.shape[0], math.floor(even / 2), 2, WIDTH).sum(2).sigmoid() * even


class Compares(torch.nn.Module):
    """Goes by a share of a size that Python rounds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp() + 1 if math.ceil(x.shape[1] * 0.3) < 100 else x.exp() - 1


class Extremes(torch.nn.Module):
    """Asks for the smaller and the larger of a length and a number: the first two shapes are on one side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        best = x.sum(-1).topk(min(12, length)).values.tanh() + 1
        padded = torch.nn.functional.pad(x, (0, 0, 0, max(20, length, 2) - length))
        return (padded.sigmoid() * 2).sum(1, keepdim=True) + best[:, :1, None]


class Lists(torch.nn.Module):
    """Makes a tensor of Python numbers, as many as the input is long."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.tensor(list(range(x.shape[1])))[:, None] + 1
        return x / places


class Scales(torch.nn.Module):
    """Something to fuse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x * 2 + 1) * x


class Beside(torch.nn.Module):
    """A part that needs a size as a number beside parts that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.lists, self.scales = Lists(), Scales()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scales(self.lists(torch.sin(x) + 1)) - x


class Around(Lists):
    """Needs a size as a number itself, around a part that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = Scales()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scales(super().forward(x))


@pytest.mark.parametrize("kind", [Rotates, PadsChunks, Spreads, ChoosesByBytes, SumsNothing, RoundsUp, Compares])
def test_one_recording_serves_all_sizes(kind: Callable[[], torch.nn.Module], tmp_path: object) -> None:
    before, after, fused = many(kind(), tmp_path)
    assert before[0] > 0 and after == before
    assert planned(fused)[kind.__name__] >= len(PAIRS)  # type: ignore[attr-defined]


def test_a_part_that_needs_a_size_as_a_number_becomes_a_step(tmp_path: object) -> None:
    before, after, fused = many(Beside(), tmp_path)
    assert before[0] > 0 and after == before
    assert planned(fused)["Beside"] >= len(PAIRS)
    why = next(s for s in fusion.report(fused).scopes if s.name == "lists")
    assert why.state == "eager" and "fixed_size" in why.reason and "test_sizes.py" in why.reason


def test_the_parts_of_a_module_that_needs_a_size_as_a_number_are_recorded(tmp_path: object) -> None:
    before, after, fused = many(Around(), tmp_path)
    assert before[0] > 0 and after == before
    assert planned(fused)["scales"] >= len(PAIRS)


def test_a_forward_with_nothing_to_take_apart_has_a_plan_for_each_size(tmp_path: object) -> None:
    eager = Lists().eval()
    fused = fusion.enable(Lists().eval(), {"profile": False, "cache_dir": str(tmp_path)})
    for length in [n for n in (5, 6, 7) for _ in range(4)]:
        agree(fused, eager, batch(2, length))
        agree(fused, eager, batch(3, length))
    assert planned(fused)["Lists"] >= 9
