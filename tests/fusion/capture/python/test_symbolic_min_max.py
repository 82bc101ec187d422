"""`min` and `max` of sizes: a symbol is the answer, and no question is asked that would bind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fusion.capture.python.symbolic_min_max import EXTREMES


@pytest.fixture
def sizes() -> tuple[ShapeEnv, Any, Any]:
    """An environment, and the symbols of two sizes in it: 5 and 9."""
    env = ShapeEnv()
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 2)
    tensor = FakeTensorMode(shape_env=env).from_tensor(torch.empty(5, 9), symbolic_context=context)
    return env, *tensor.shape


@pytest.mark.parametrize(("name", "value"), [("min", 5), ("max", 9)])
def test_sizes_are_compared_without_a_guard(name: str, value: int, sizes: tuple[ShapeEnv, Any, Any]) -> None:
    env, rows, columns = sizes
    found = EXTREMES[name](rows, columns, 7)
    assert isinstance(found, torch.SymInt) and not env.guards
    assert found.node.hint == value


def test_anything_else_is_the_builtins(sizes: tuple[ShapeEnv, Any, Any]) -> None:
    env, rows, _ = sizes
    assert EXTREMES["min"](3, 2) == 2 and EXTREMES["max"]([1, 4, 2]) == 4
    assert EXTREMES["max"]([], default=0) == 0 and EXTREMES["min"]("ab", "b", key=len) == "b"
    with pytest.raises(TypeError):
        EXTREMES["min"](3)
    assert not env.guards
    assert EXTREMES["max"](rows, 7.5) == 7.5 and env.guards, "a float is compared as ever"


def test_torch_itself_gets_the_builtin_answer(sizes: tuple[ShapeEnv, Any, Any]) -> None:
    env, rows, columns = sizes
    inside = {"__name__": "torch._refs", "smaller": EXTREMES["min"], "rows": rows, "columns": columns}
    assert eval("smaller(rows, columns)", inside) is rows and env.guards
