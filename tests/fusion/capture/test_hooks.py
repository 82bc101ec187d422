"""Forward hooks: which keep a call eager, and which are idle and watched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion.capture import hooks
from fusion.capture.hooks import Collecting, are_idle, entries_of, problem, register_collecting
from fusion.runtime.snapshots import PythonSnapshot


def collects(*_: Any) -> None: ...


def of_the_user(*_: Any) -> None: ...


class Call:
    """Whether a call that collects is running."""

    def __init__(self) -> None:
        self.collects = False

    def asked(self) -> bool:
        return self.collects


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """`collects` is registered as a hook that does something only in such calls."""
    monkeypatch.setattr(hooks, "_KNOWN", [])
    made = Call()
    register_collecting(Collecting(__name__, "collects", made.asked))
    return made


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_the_user_keeps_calls_eager(call: Call, register: str) -> None:
    module = torch.nn.Linear(2, 2)
    assert problem(module, "inner") is None
    getattr(module, register)(of_the_user)
    found = problem(module, "inner")
    assert found is not None and found.code == "hook"
    assert found.sentence == "inner (Linear) has the forward hook of_the_user"


def test_a_hook_that_collects_keeps_only_such_calls_eager(call: Call) -> None:
    module = torch.nn.Linear(2, 2)
    module.register_forward_hook(collects)
    assert problem(module, "inner") is None
    call.collects = True
    found = problem(module, "inner")
    assert found is not None and found.code == "collecting" and "inner (Linear)" in found.sentence


def test_hooks_are_idle_where_all_of_them_are(call: Call) -> None:
    assert are_idle({}) and are_idle({1: collects}) and not are_idle({1: collects, 2: of_the_user})


def test_idle_hooks_are_watched(call: Call) -> None:
    module = torch.nn.Linear(2, 2)
    handle = module.register_forward_hook(collects)
    holds = PythonSnapshot(list(entries_of([module])))
    assert holds()
    call.collects = True
    assert not holds(), "the call collects"
    call.collects = False
    further = module.register_forward_pre_hook(of_the_user)
    assert not holds(), "there is another hook"
    further.remove()
    assert holds()
    handle.remove()
    module.register_forward_hook(of_the_user)
    assert not holds(), "another hook has taken its place"


def test_modules_without_hooks_are_watched_for_some(call: Call) -> None:
    module = torch.nn.Linear(2, 2)
    holds = PythonSnapshot(list(entries_of([module])))
    assert holds()
    module.register_forward_hook(collects)
    assert not holds()


def test_a_snapshot_of_other_hooks_never_holds(call: Call) -> None:
    module = torch.nn.Linear(2, 2)
    module.register_forward_hook(of_the_user)
    assert not PythonSnapshot(list(entries_of([module])))()
