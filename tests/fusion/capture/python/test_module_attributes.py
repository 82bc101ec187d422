"""What code reads off modules of the user's, and data of the user's classes: a plan holds while it is the same."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch
import user_settings
from step_models import rand

import fusion


class Constants:
    """Data that only a class holds."""

    scale = 2.0
    table: ClassVar[dict[str, float]] = {"k": 1.0}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test changes is put back after it."""
    monkeypatch.setattr(Constants, "scale", Constants.scale)
    monkeypatch.setitem(Constants.table, "k", Constants.table["k"])
    monkeypatch.setitem(user_settings.TABLE, "k", user_settings.TABLE["k"])
    monkeypatch.setattr(user_settings.sub, "SCALE", user_settings.sub.SCALE)
    for name in ("SCALE", "helper"):
        monkeypatch.setattr(user_settings, name, getattr(user_settings, name))


def forward(x: torch.Tensor) -> torch.Tensor:
    from user_settings import SCALE

    y = torch.tanh(x) * user_settings.SCALE + user_settings.sub.SCALE + user_settings.TABLE["k"]
    return user_settings.helper(y) * SCALE * Constants.scale + Constants.table["k"]


class Module(torch.nn.Module):
    """The same as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return forward(x)


CHANGES = {
    "a number": lambda: setattr(user_settings, "SCALE", 5.0),
    "of a module in a module": lambda: setattr(user_settings.sub, "SCALE", 7.0),
    "an item": lambda: user_settings.TABLE.update(k=3.0),
    "a function": lambda: setattr(user_settings, "helper", lambda x: x * 3),
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
        assert fusion.report(fused).scopes[0].fused_calls > 0
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


def test_modules_that_hold_each_other(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_settings.sub, "sub", user_settings.sub, raising=False)
    monkeypatch.setattr(user_settings.sub, "up", user_settings, raising=False)

    def around(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * user_settings.sub.sub.up.SCALE + user_settings.sub.SCALE

    fused = fusion.fuse(around, quick)
    with torch.no_grad():
        for rows in (4, 4, 6, 6):
            torch.testing.assert_close(fused(rand(rows)), around(rand(rows)))
        user_settings.SCALE = 5.0
        for rows in (4, 6, 4):
            torch.testing.assert_close(fused(rand(rows)), around(rand(rows)))


def test_imports_of_a_functions_own(quick: fusion.FusionConfig) -> None:
    def importing(x: torch.Tensor) -> torch.Tensor:
        import user_settings as held

        def inner(y: torch.Tensor) -> torch.Tensor:
            return y * user_settings.TABLE["k"]

        return inner(torch.tanh(x)) * held.SCALE

    fused = fusion.fuse(importing, quick)
    with torch.no_grad():
        for rows in (4, 4, 6, 6):
            torch.testing.assert_close(fused(rand(rows)), importing(rand(rows)))
        for change in ("a number", "an item"):
            CHANGES[change]()
            for rows in (4, 6, 4):
                torch.testing.assert_close(fused(rand(rows)), importing(rand(rows)))


class Numbered:
    """A class whose data changes with each object, and that a forward only names."""

    numbers = itertools.count()


def test_a_class_that_is_only_named_is_not_watched(quick: fusion.FusionConfig) -> None:
    def named(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (3 if isinstance(x, Numbered) else 2)

    fused = fusion.fuse(named, quick)
    with torch.no_grad():
        for rows in (4, 4, 6, 6):
            torch.testing.assert_close(fused(rand(rows)), named(rand(rows)))
    assert fused.report().scopes[0].fused_calls > 0
