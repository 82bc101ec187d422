"""What ends a call from outside: the interpreter's limits, interrupts, and errors of the user's own."""

from __future__ import annotations

import asyncio
import builtins
import copy
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from function_modules import Function
from graphs import normal as rand
from pair import Block
from tiny import no_grad, planned, reason
from torch.fx.experimental.sym_node import SymNode

import fusion
from fusion import stack

pytestmark = pytest.mark.usefixtures("without_gradients")


def with_frames_left(count: int, call: Callable[[], Any]) -> Any:
    """`call()` where Python's stack may be `count` frames deeper than here."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + count)
    try:
        return call()
    finally:
        sys.setrecursionlimit(limit)


class Nested(torch.nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.inner = Nested(depth - 1) if depth else Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.inner(x)) * 1.5


def needed(model: torch.nn.Module, x: torch.Tensor) -> int:
    """The frames that a call takes."""
    for count in range(2, 200):
        try:
            with_frames_left(count, lambda: model(x))
        except RecursionError:
            continue
        return count
    raise AssertionError("takes more than 200 frames")


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_call_near_the_recursion_limit_is_eagers(warm: bool, quick: fusion.FusionConfig) -> None:
    eager = Nested(4).eval()
    least = needed(eager, rand(3, 16))
    fused = fusion.enable(copy.deepcopy(eager), quick)
    if warm:
        for rows in (3, 4, 3):
            fused(rand(rows, 16))
    limit = sys.getrecursionlimit()
    for further in (0, 1, 2, 3, 5, 10, 20, 40, 60, 80, 100, 130, 160, 200):
        x = rand(3 + further, 16)
        found = with_frames_left(least + further, lambda: fused(x))  # noqa: B023  # is called at once
        torch.testing.assert_close(found, eager(x))
    assert sys.getrecursionlimit() == limit
    before = planned(fused)
    for rows in (3, 4, 3, 4):
        torch.testing.assert_close(fused(rand(rows, 16)), eager(rand(rows, 16)))
    assert planned(fused) != before, reason(fused)


def test_a_recorded_run_that_meets_the_limit_is_made_again(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "_NEEDED", 1)  # nothing is noticed beforehand
    eager = Nested(4).eval()
    least = needed(eager, rand(3, 16))
    fused = fusion.enable(copy.deepcopy(eager), quick)
    torch.testing.assert_close(with_frames_left(least + 45, lambda: fused(rand(3, 16))), eager(rand(3, 16)))
    assert reason(fused).code == "stack"
    for rows in (3, 4, 3):
        fused(rand(rows, 16))
    assert sum(planned(fused).values()) > 0


def test_recursion_without_end_is_the_users_own(quick: fusion.FusionConfig) -> None:
    def endless(x: torch.Tensor) -> torch.Tensor:
        return endless(x) + 1

    fused, limit = fusion.fuse(endless, quick), sys.getrecursionlimit()
    for _ in range(2):
        with pytest.raises(RecursionError):
            fused(rand(2, 3))
        assert sys.getrecursionlimit() == limit


def test_a_limit_that_the_user_sets_meanwhile_stands() -> None:
    limit = sys.getrecursionlimit()
    try:
        with stack.lent():
            with stack.lent():
                pass
            sys.setrecursionlimit(limit + 7)
        assert sys.getrecursionlimit() == limit + 7
    finally:
        sys.setrecursionlimit(limit)


def modes() -> tuple[Any, ...]:
    """What a recording changes for its time."""
    switches = (torch.is_grad_enabled(), torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack())
    patched = (builtins.min, torch.nn.Module.__init__, torch.nn.Linear.__call__, torch.overrides.has_torch_function)
    return (*switches, *patched, signal.getsignal(signal.SIGINT))


ENDS = [KeyboardInterrupt("now"), SystemExit(3), GeneratorExit(), asyncio.CancelledError("gone")]


@pytest.mark.parametrize("end", ENDS, ids=[type(end).__name__ for end in ENDS])
def test_what_ends_a_program_arrives_as_it_is(end: BaseException, quick: fusion.FusionConfig) -> None:
    sizes: list[Any] = []
    raising = [True]

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = F.silu(x) * x.shape[0]
        if raising[0]:
            sizes.append(x.shape[0])
            raise end
        return y.softmax(-1)

    before = modes()
    fused = fusion.fuse(forward, quick)
    with pytest.raises(type(end)) as caught:
        fused(rand(3, 8))
    assert caught.value is end and modes() == before
    assert [type(size) for size in sizes] == [int]
    raising[0] = False
    for rows in (3, 4, 3):
        torch.testing.assert_close(fused(rand(rows, 8)), forward(rand(rows, 8)))
    assert fused.scope.statistics.planned[0] > 0


def steps(x: torch.Tensor) -> torch.Tensor:
    """Asks torch for sizes in several ways."""
    y = F.silu(x.reshape(x.shape[0], -1)) * 2
    y = torch.cat([y, y], 0)[: x.shape[0]] + torch.arange(x.shape[0])[:, None]
    if x.shape[0] * 2 > 4:
        y = y + 1
    return torch.empty(x.shape[0], 4).fill_(1.0) + y.view(-1, 4)


# In a file of torch's, as a handler finds it that runs while torch's C++ asks for a size.
_INTERRUPTED = """
def call(*args, **kwargs):
    if next(calls) == place:
        met.append(interrupt(number))
    return original(*args, **kwargs)
"""


@pytest.mark.parametrize("name", ["is_int", "maybe_as_int", "clone", "guard_bool", "mul"])
def test_an_interrupt_inside_torchs_questions_arrives(
    name: str, quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job does not have
    before, original = modes(), getattr(SymNode, name)
    code = compile(_INTERRUPTED, os.path.join(os.path.dirname(torch.__file__), "made.py"), "exec")
    for place in (0, 1, 2, 3, 5, 8, 13):
        names: dict[str, Any] = {"calls": itertools.count(), "place": place, "met": [], "original": original}
        names |= {"interrupt": signal.raise_signal, "number": signal.SIGINT}
        exec(code, names)
        monkeypatch.setattr(SymNode, name, names["call"])
        fused, ends = fusion.fuse(steps, quick), 0
        try:
            fused(torch.ones(3, 4))
        except KeyboardInterrupt:
            ends = 1
        assert ends == len(names["met"]) and modes() == before
        torch.testing.assert_close(fused(torch.ones(3, 4)), steps(torch.ones(3, 4)))


def test_a_handler_of_the_users_runs_once_and_stays(quick: fusion.FusionConfig) -> None:
    seen: list[int] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGUSR1)
        return F.silu(x) * 2

    def handler(number: int, _: Any) -> None:
        seen.append(number)

    was = signal.signal(signal.SIGUSR1, handler)
    try:
        fusion.fuse(forward, quick)(rand(3, 8))
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, was)
    assert seen and set(seen) == {signal.SIGUSR1}


def test_in_another_thread_signals_are_left_alone(quick: fusion.FusionConfig) -> None:
    results: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():
            results.append(fusion.fuse(steps, quick)(torch.ones(3, 4)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.testing.assert_close(results[0], steps(torch.ones(3, 4)))


# ---- the user's own errors


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """A call's result, or the type and text of its error."""
    try:
        return call(*args)
    except Exception as error:
        return type(error), str(error)


def looked_up(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    return F.silu(x[i]) * 2


def gathered(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    return F.silu(x.index_select(0, i)) * 2


def embedded(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    return F.silu(F.embedding(i, x)) * 2


def multiplied(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.silu(x @ y) * 2


def complaining(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if y.shape[0] == 5:
        raise ValueError(f"{y.shape[0]} rows")
    return F.silu(x) * 2


def asserting(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = F.silu(x) * 2
    assert y.shape[0] != 5, "five"
    return z


def indices(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("forward", "good", "bad"),
    [
        (looked_up, [indices(1, 2), indices(1, 2, 3), indices(0, 0)], [indices(1, 4), indices(-5, 1)]),
        (gathered, [indices(1, 2), indices(1, 2, 3), indices(0, 0)], [indices(1, 4), indices(-5, 1)]),
        (embedded, [indices(1, 2), indices(1, 2, 3), indices(0, 0)], [indices(1, 4), indices(-5, 1)]),
        (multiplied, [rand(8, 3), rand(8, 4), rand(8, 3)], [rand(7, 3), rand(7)]),
        (complaining, [rand(3, 1), rand(4, 1), rand(3, 1)], [rand(5, 1)]),
        (asserting, [rand(3, 1), rand(4, 1), rand(3, 1)], [rand(5, 1)]),
    ],
)
def test_errors_of_the_users_own_do_not_count_against_a_plan(
    forward: Callable[..., Any], good: list[torch.Tensor], bad: list[torch.Tensor], quick: fusion.FusionConfig
) -> None:
    fused, x = fusion.fuse(forward, quick), rand(4, 8)
    for second in [*good, *bad * 5, *good]:
        eager, found = outcome(forward, x, second), outcome(fused, x, second)
        if isinstance(eager, torch.Tensor):
            torch.testing.assert_close(found, eager)
        else:
            assert found == eager
    before = fused.scope.statistics.planned[0]
    for second in good:
        fused(x, second)
    assert fused.scope.statistics.planned[0] == before + len(good)
    assert fused.scope.statistics.fallbacks == 0


class Picky(torch.nn.Module):
    """Raises for negative sizes of the sum, after some work."""

    def __init__(self) -> None:
        super().__init__()
        self.fail = False

    def forward(self, x: torch.Tensor, limit: int = 4) -> torch.Tensor:
        y = torch.exp(x) * 2 + 1
        if x.shape[0] > limit:
            raise ValueError(f"at most {limit} rows")
        return y


def test_the_forwards_own_errors_pass_through(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Picky().eval(), quick)
    many, few = torch.rand(6, 8), torch.rand(3, 8)
    with pytest.raises(ValueError, match="at most 4 rows"):
        no_grad(module, many)
    for rows in (few, torch.rand(2, 8), few, torch.rand(4, 8)):
        assert torch.allclose(no_grad(module, rows), torch.exp(rows) * 2 + 1, rtol=3e-7, atol=0)
    assert planned(module)["Picky"] >= 1
    with pytest.raises(ValueError, match="at most 4 rows"):
        no_grad(module, many)
    with pytest.raises(RuntimeError, match="size of tensor"):
        no_grad(fusion.enable(Function(lambda x, y: torch.exp(x) + y).eval(), quick), few, torch.rand(5, 7))
    assert torch.allclose(no_grad(module, few), torch.exp(few) * 2 + 1, rtol=3e-7, atol=0)
    with pytest.raises(TypeError, match=r"positional|argument"):
        no_grad(module)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_recording_leaves_nothing_behind(
    kind: type[BaseException], quick: fusion.FusionConfig
) -> None:
    fail = [True]

    def call(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x) * 2
        if fail[0]:
            raise kind()
        return y + 1

    module = fusion.enable(Function(call).eval(), quick)
    with pytest.raises(kind):
        no_grad(module, torch.rand(3, 8))
    assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
    fail[0] = False
    x = torch.rand(3, 8)
    assert torch.allclose(no_grad(module, x), torch.exp(x) * 2 + 1, rtol=3e-7, atol=0)
