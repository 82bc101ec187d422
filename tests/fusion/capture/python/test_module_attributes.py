"""What code reads off modules of the user's, and data of the user's classes: a plan holds while it is the same."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from step_models import rand

import fusion


class Constants:
    """Data that only a class holds."""

    scale = 2.0
    table: ClassVar[dict[str, float]] = {"k": 1.0}


settings: Any = types.ModuleType("fusion_test_settings")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Constants, "scale", 2.0)
    monkeypatch.setitem(Constants.table, "k", 1.0)
    settings.SCALE, settings.TABLE = 2.0, {"k": 1.0}
    settings.sub = types.ModuleType("fusion_test_settings.sub")
    settings.sub.SCALE = 1.0
    settings.helper = lambda x: x * 2
    monkeypatch.setitem(sys.modules, "fusion_test_settings", settings)
    yield


def forward(x: torch.Tensor) -> torch.Tensor:
    from fusion_test_settings import SCALE  # type: ignore[import-not-found]

    y = torch.tanh(x) * settings.SCALE + settings.sub.SCALE + settings.TABLE["k"]
    return settings.helper(y) * SCALE * Constants.scale + Constants.table["k"]


class Module(torch.nn.Module):
    """The same as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return forward(x)


CHANGES = {
    "a number": lambda: setattr(settings, "SCALE", 5.0),
    "of a module in a module": lambda: setattr(settings.sub, "SCALE", 7.0),
    "an item": lambda: settings.TABLE.update(k=3.0),
    "a function": lambda: setattr(settings, "helper", lambda x: x * 3),
    "of a class": lambda: setattr(Constants, "scale", 9.0),
    "an item of a class": lambda: Constants.table.update(k=4.0),
}


@pytest.mark.parametrize("kind", ["function", "module"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_calls_is_seen(quick: fusion.FusionConfig, change: str, kind: str) -> None:
    fused = fusion.fuse(forward, quick) if kind == "function" else fusion.enable(Module().eval(), quick)
    with torch.no_grad():
        for rows in (4, 4, 6, 6):
            torch.testing.assert_close(fused(rand(rows)), forward(rand(rows)), rtol=1e-5, atol=1e-5)
        CHANGES[change]()
        for rows in (4, 6, 4, 4):
            torch.testing.assert_close(fused(rand(rows)), forward(rand(rows)), rtol=1e-5, atol=1e-5)


def test_a_class_that_counts_keeps_its_forward_eager(quick: fusion.FusionConfig) -> None:
    class Counts(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Constants.scale += 1
            return torch.tanh(x) * 2 + Constants.scale

    fused = fusion.enable(Counts().eval(), quick)
    with torch.no_grad():
        for number, rows in enumerate((4, 4, 4, 6, 6, 4)):
            found = fused(rand(rows))
            assert Constants.scale == 3.0 + number
            torch.testing.assert_close(found, torch.tanh(rand(rows)) * 2 + Constants.scale)
    assert "python_state" in fusion.report(fused).scopes[0].reason
