"""Threads that call a model while another one enables and disables it."""

import threading

import pytest
import torch

import fusion
from fusion.capture.python.container_proxy import looked_into, put_back
from fusion.frontend import model_session
from fusion.frontend.module_entries import ModuleEntry
from fusion.jit import state_watch


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(x)) * 2 + x


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_call_that_comes_while_an_entry_is_being_placed_waits_for_it(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Stack().eval(), torch.randn(3, 16)
    with torch.no_grad():
        expected = model(x)
    results: list[torch.Tensor | Exception] = []
    threads: list[threading.Thread] = []

    def call() -> None:
        try:
            with torch.no_grad():
                results.append(model(x))
        except Exception as error:
            results.append(error)

    class CalledAtOnce(ModuleEntry):
        """Another thread calls the model as soon as the module has its entry."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            threads.append(threading.Thread(target=call))
            threads[-1].start()
            threads[-1].join(0.5)

    monkeypatch.setattr(model_session, "ModuleEntry", CalledAtOnce)
    fusion.enable(model, quick)
    for thread in threads:
        thread.join()
    assert len(results) == len(threads) >= 3
    for result in results:
        assert isinstance(result, torch.Tensor), result
        torch.testing.assert_close(result, expected)


def test_models_are_enabled_and_disabled_while_others_call_them(quick: fusion.FusionConfig) -> None:
    model, x = Stack().eval(), torch.randn(3, 16)
    with torch.no_grad():
        expected = model(x)
    over, wrong = threading.Event(), []

    def call() -> None:
        while not over.is_set():
            try:
                with torch.no_grad():
                    torch.testing.assert_close(model(x), expected)
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            fusion.enable(model, quick)
            with torch.no_grad():
                model(x)
            fusion.disable(model)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong


@pytest.mark.parametrize("times", [1, 1000])
def test_state_that_changes_while_it_is_looked_at_is_looked_at_again(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """As when another thread adds an attribute; where that goes on and on, the scope runs eagerly and says so."""
    model, x = Stack().eval(), torch.randn(3, 16)
    with torch.no_grad():
        expected = model(x)
    look, looks = state_watch.watched, []

    def disturbed(*arguments: object) -> object:
        looks.append(arguments)
        if len(looks) <= times:
            raise RuntimeError("dictionary changed size during iteration")
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(state_watch, "watched", disturbed)
    fusion.enable(model, quick)
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(model(x), expected)
    report = fusion.report(model)
    if times == 1:
        assert report.scopes[0].fused_calls
    else:
        assert "another thread changes" in report.scopes[0].reason
    fusion.disable(model)


class Sneaky:
    """Gives its owner another attribute whenever it is asked for its class, as another thread might just then."""

    def __init__(self, owner: object) -> None:
        self.owner = owner

    @property
    def __class__(self) -> type:  # type: ignore[override]
        vars(self.owner)[f"more{len(vars(self.owner))}"] = 1
        return Sneaky


def test_an_object_that_changes_while_its_containers_are_put_back() -> None:
    owner = torch.nn.Module()
    owner.sneaky = Sneaky(owner)
    owner.listed = looked_into([torch.zeros(1)], lambda: None)
    before = len(vars(owner))
    put_back(owner)
    assert len(vars(owner)) > before, "nothing changed meanwhile: the test would show nothing"
    assert type(owner.listed) is list
