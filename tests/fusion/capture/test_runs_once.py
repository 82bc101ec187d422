"""A recorded call runs the user's Python once where that leaves something behind, and leaves no symbols there."""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusion

X = torch.ones(3, 4)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _counter() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], Any]]:
    n = 0

    def f(x: torch.Tensor) -> torch.Tensor:
        nonlocal n
        n += 1
        return x * n

    return f, lambda: n


def _sizes_in_a_closure() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], Any]]:
    last: Any = None

    def f(x: torch.Tensor) -> torch.Tensor:
        nonlocal last
        last = (x.shape, x.size(0), [x.shape[1]])
        return x * 2

    return f, lambda: last


def _in(container: Any, put: Callable[[Any, Any], None]) -> Any:
    def make() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], Any]]:
        held = container()

        def f(x: torch.Tensor) -> torch.Tensor:
            put(held, x.shape[0])
            return x * 2 + 1

        return f, lambda: held

    return make


def _an_object() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], Any]]:
    class Notes:
        seen = 0

    notes = Notes()

    def f(x: torch.Tensor) -> torch.Tensor:
        notes.seen = notes.seen + x.shape[0]
        return x * notes.seen

    return f, lambda: notes.seen


def _an_iterator() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], Any]]:
    count = itertools.count(1)

    def f(x: torch.Tensor) -> torch.Tensor:
        return x * next(count)

    return f, lambda: repr(count)


def _prints() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], Any]]:
    def f(x: torch.Tensor) -> torch.Tensor:
        print("rows", x.shape[0])
        return x * 2

    return f, lambda: None


def _put(held: Any, value: Any) -> None:
    held.append(value)


def _set(held: Any, value: Any) -> None:
    held["rows"] = value


def _key(held: Any, value: Any) -> None:
    held[value] = "rows"


def _add(held: Any, value: Any) -> None:
    held.add(value)


CASES = {
    "a counter": _counter,
    "sizes in a closure": _sizes_in_a_closure,
    "a list": _in(list, _put),
    "a deque": _in(collections.deque, _put),
    "an item": _in(dict, _set),
    "a key": _in(dict, _key),
    "a set": _in(set, _add),
    "an object": _an_object,
    "an iterator": _an_iterator,
    "a print": _prints,
}


def _has_symbol(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, collections.deque)):
        return any(map(_has_symbol, value))
    if isinstance(value, dict):
        return any(map(_has_symbol, (*value, *value.values())))
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


@pytest.mark.parametrize("name", CASES)
def test_what_a_function_leaves_behind(name: str, capsys: Any) -> None:
    plain, plain_left = CASES[name]()
    function, left = CASES[name]()
    fused = fusion.fuse(function, {"profile": False})
    for rows in (3, 3, 4, 5, 3):
        expected, said = plain(torch.ones(rows, 4)), capsys.readouterr().out
        assert torch.equal(fused(torch.ones(rows, 4)), expected)
        assert capsys.readouterr().out == said
        assert not _has_symbol(left()) and left() == plain_left()
    row = fused.report().scopes[0]
    assert row.state == "eager" and row.reason.startswith(("python_state", "recorder_error")), row.reason


def test_what_a_module_leaves_behind() -> None:
    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[Any] = []
            self.last: Any = None
            self.recent: collections.deque[Any] = collections.deque(maxlen=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.sizes.append(x.shape[0])
            self.recent.append((x.shape[0], x.shape))
            self.last = x.shape
            return x * len(self.sizes)

    plain, fused = Notes().eval(), fusion.enable(Notes().eval(), {"profile": False})
    for rows in (3, 4, 3, 5):
        assert torch.equal(fused(torch.ones(rows, 4)), plain(torch.ones(rows, 4)))
        assert fused.sizes == plain.sizes and fused.last == plain.last and fused.recent == plain.recent
        assert not any(map(_has_symbol, (fused.sizes, fused.last, fused.recent)))


def test_what_a_call_leaves_in_its_arguments() -> None:
    class Notes(nn.Module):
        def forward(self, x: torch.Tensor, notes: list[Any]) -> torch.Tensor:
            notes.append(x.shape[0])
            return x * len(notes)

    plain, fused = Notes().eval(), fusion.enable(Notes().eval(), {"profile": False})
    expected: list[Any] = []
    found: list[Any] = []
    for rows in (3, 4, 3, 5):
        assert torch.equal(fused(torch.ones(rows, 4), found), plain(torch.ones(rows, 4), expected))
        assert found == expected and not _has_symbol(found)


def test_a_log_line_and_a_file(tmp_path: Path, caplog: Any) -> None:
    logger = logging.getLogger("a users module")
    file = tmp_path / "rows"

    def logs(x: torch.Tensor) -> torch.Tensor:
        logger.warning("rows %d", x.shape[0])
        return x * 2

    def writes(x: torch.Tensor) -> torch.Tensor:
        with open(file, "a") as out:
            out.write(f"{x.shape[0]}\n")
        return x * 2

    for function in (logs, writes):
        fused = fusion.fuse(function, {"profile": False})
        for _ in range(3):
            fused(X)
        assert fused.report().scopes[0].reason.startswith("python_state")
    assert [r.message for r in caplog.records if r.name == logger.name] == ["rows 3"] * 3
    assert file.read_text() == "3\n" * 3


def test_a_size_as_text() -> None:
    """It is the number of this call, and the plan is for calls of that size."""
    given = {f"rows {n}": float(n) for n in (3, 4)}

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * given[f"rows {x.shape[0]}"] + len(str(x.shape[1]))

    fused = fusion.fuse(function, {"profile": False})
    for rows in (3, 4, 3, 4, 3, 4):
        x = torch.ones(rows, 4)
        assert torch.allclose(fused(x), function(x))
    assert fused.report().scopes[0].fused_calls > 0


def test_an_error_after_an_effect() -> None:
    """The recorded run raises because sizes are symbols; the call that follows finds everything as it was."""
    seen: list[int] = []
    calls = 0

    def function(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        seen.append(calls)
        if type(x.shape[0]) is not int:
            raise TypeError("a number is needed")
        return x * calls

    fused = fusion.fuse(function, {"profile": False})
    for call in (1, 2, 3):
        assert torch.equal(fused(X), X * call) and seen == list(range(1, call + 1))
