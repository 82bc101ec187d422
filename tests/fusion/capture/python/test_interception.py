"""Sessions, which route a thread's opaque calls: where they begin, and that none is left behind."""

from __future__ import annotations

import contextlib
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import no_grad

import fusion
from fusion.capture.python import interception
from fusion.capture.python.replay import Replay


def test_an_interrupt_between_a_session_and_its_block_leaves_none(quick: fusion.FusionConfig) -> None:
    """Such a session would be taken for one that goes on, and no call of the thread would be recorded again."""
    handler, cut_off = Replay([], [], ()), []

    def begin() -> None:
        cut_off.append(interception.session(handler, handler))
        cut_off[0].__enter__()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert interception.current() is handler, "the session was not cut off"
    assert not interception.in_session() and interception.current() is None
    fused = fusion.fuse(lambda x: torch.exp(x) * 2, quick)
    for rows in (3, 4, 3):
        no_grad(fused, torch.rand(rows, 8))
    assert fused.scope.statistics.planned[0] > 0


def test_a_recording_that_was_begun_by_hand_goes_on(quick: fusion.FusionConfig) -> None:
    """The function that began it has returned."""
    with torch.no_grad():
        x = torch.rand(3, 8)
        fusion.start_recording(x=x, config=quick)
        y = torch.exp(x)
        assert interception.in_session()
        fused = fusion.fuse(lambda x: x * 2, quick)
        z = fused(y) + 1
        assert interception.in_session()
        recording = fusion.stop_recording(z=z)
        assert not interception.in_session()
        assert torch.allclose(recording.run(x=torch.ones(3, 8))["z"], torch.exp(torch.ones(3, 8)) * 2 + 1)


def test_a_session_that_was_cut_off_does_no_harm_when_it_is_collected() -> None:
    handler, left = Replay([], [], ()), []

    def begin() -> None:
        session = interception.session(handler, handler)
        session.__enter__()
        left.append(session)

    begin()
    interception._SESSION.end()  # as `in_session` does for one that an interrupt cut off
    assert interception.current() is None
    other = Replay([], [], ())
    with interception.session(other, other):
        left.clear()
        gc.collect()
        assert interception.current() is other
    assert interception.current() is None
    with ThreadPoolExecutor(1) as pool:  # which would wait for ever for a lock that was not given back
        assert pool.submit(
            lambda: interception._LOCK.acquire(blocking=False) and interception._LOCK.release() is None
        ).result()


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
