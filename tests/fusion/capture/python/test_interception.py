"""Sessions, which route a thread's opaque calls: where they begin, and that none is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import no_grad

import fusion
from fusion.capture.python import interception
from fusion.capture.python.replay import Replay


def test_an_interrupt_where_a_session_begins_leaves_none(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a session would be taken for one that goes on, and no call of the thread would be recorded again."""
    handler, begun = Replay([], [], ()), []

    @contextlib.contextmanager
    def interrupted(_: Callable[[], None]) -> Iterator[None]:
        begun.append(interception.in_session())
        raise KeyboardInterrupt
        yield

    def begin() -> None:
        with interception.session(handler, handler):
            pass

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(interception, "changes", interrupted)
        begin()
    assert begun == [True] and interception.current() is not None, "the session was not cut off"
    assert not interception.in_session() and interception.current() is None
    fused = fusion.fuse(lambda x: torch.exp(x) * 2, quick)
    for rows in (3, 4, 3):
        no_grad(fused, torch.rand(rows, 8))
    assert fused.scope.statistics.planned[0] > 0


def test_a_session_goes_on_inside_whatever_its_block_calls() -> None:
    handler = Replay([], [], ())

    class Entered:
        def __enter__(self) -> None:
            self.stack = contextlib.ExitStack()
            self.stack.enter_context(interception.session(handler, handler))

        def __exit__(self, *error: object) -> None:
            self.stack.close()

    def inside() -> bool:
        return interception.in_session()

    with Entered():
        assert inside()
        with interception.session(handler, handler):
            assert inside()
        assert inside()
    assert not inside()
