"""Results and arguments of kinds that no plan is made for: the outcome is eager's, in values, types and errors."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import fractions
import pathlib
import types
import unittest.mock
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

import fusion

pytestmark = pytest.mark.usefixtures("without_gradients")

X = torch.linspace(-1, 1, 32).view(4, 8)


class Pair(NamedTuple):
    value: torch.Tensor
    rows: int


@dataclasses.dataclass(slots=True)
class Slots:
    value: Any
    rows: int


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any
    rows: int


class ReachableState:
    """An object that holds what it is given."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def __repr__(self) -> str:
        return f"Held({self.__dict__})"


class Raises:
    """An object of which one question raises."""

    def __init_subclass__(cls, *, at: str) -> None:
        def fail(self: Any, *_: Any) -> Any:
            raise ValueError(at)

        setattr(cls, at, fail)
        if at == "__eq__":
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]


class Equal(Raises, at="__eq__"): ...


class Truth(Raises, at="__bool__"): ...


class Hash(Raises, at="__hash__"): ...


class Text(Raises, at="__repr__"): ...


class Length(Raises, at="__len__"): ...


class Attribute(Raises, at="__getattr__"): ...


class TensorEqual:
    """Whose comparison is a tensor that is neither true nor false."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Any:
        return torch.ones(2)


class Number(int):
    """A number that does not compare."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        raise ValueError("no comparison")

    __ne__ = __eq__


class Lying:
    """An object that says it is a tensor."""

    __class__ = property(lambda self: torch.Tensor)  # type: ignore[assignment]


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Sub(torch.Tensor): ...


class Dict(dict[str, Any]): ...


class Target: ...


TARGET = Target()


def inside_itself(*items: Any) -> list[Any]:
    made: list[Any] = [*items]
    made.append(made)
    return made


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    tensor.tag = 3  # type: ignore[attr-defined]
    return tensor


def seen(value: Any, depth: int = 0) -> Any:
    """What can be seen of a value, types included, to compare it."""
    if depth > 6:
        return "..."
    if isinstance(value, torch.Tensor):
        plain = value.dequantize() if value.is_quantized else value
        text = str(plain.float()) if plain.dtype.itemsize == 1 and plain.is_floating_point() else str(plain)
        return type(value), value.dtype, value.requires_grad, getattr(value, "tag", None), text
    if isinstance(value, torch.Size):
        return torch.Size, tuple(value)
    if isinstance(value, (tuple, list, collections.deque)):
        return type(value), [seen(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return type(value), [(key, seen(item, depth + 1)) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), [seen(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)]
    if isinstance(value, ReachableState):
        return ReachableState, [(name, seen(item, depth + 1)) for name, item in vars(value).items()]
    if isinstance(value, types.FunctionType):
        return types.FunctionType, seen(value(), depth + 1)
    if isinstance(value, BaseException):
        return type(value), seen(value.args, depth + 1)
    if isinstance(value, (slice, numpy.ndarray, bool, int, float, complex, str, bytes, range, set, enum.Enum)):
        kind = value.dtype if isinstance(value, numpy.ndarray) else None
        parts = (value.start, value.stop) if isinstance(value, slice) else ()
        return (
            type(value),
            kind,
            str(int(value)) if isinstance(value, Number) else repr(value),
            [type(p) for p in parts],
        )
    return type.__call__(type, value)


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return seen(call(*args))
    except Exception as error:
        return type(error), str(error)


def check(forward: Callable[..., Any], config: fusion.FusionConfig, *args: Any) -> Any:
    """Calls `forward` under fusion several times; gives its scope."""
    fused = fusion.fuse(forward, config)
    for _ in range(4):
        assert outcome(fused, *args) == outcome(forward, *args)
    assert fusion.report(fused).to_json()
    return fused.scope


RESULTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "set": lambda x: (F.silu(x) * 2, {1, 2}),
    "generator": lambda x: type(i for i in [x * 2]),
    "named tuple": lambda x: Pair(x * 2, x.shape[0]),
    "slots": lambda x: Slots(x * 2, x.shape[0]),
    "frozen": lambda x: Frozen((x * 2, x.shape), x.shape[0]),
    "subclass": lambda x: (x * 2).as_subclass(Sub),
    "sparse": lambda x: (x * 2).to_sparse().to_dense(),
    "sparse result": lambda x: type((x * 2).to_sparse()),
    "quantised": lambda x: torch.quantize_per_tensor(x * 2, 0.1, 0, torch.qint8),
    "float8": lambda x: (x * 2).to(torch.float8_e4m3fn),
    "complex": lambda x: torch.complex(x * 2, x),
    "meta": lambda x: (x * 2).to("meta"),
    "requires gradients": lambda x: (x * 2).requires_grad_(),
    "leaf": lambda x: torch.ones(2, requires_grad=True),
    "parameter": lambda x: torch.nn.Parameter(x * 2),
    "attribute of a tensor": lambda x: tagged(x * 2),
    "numpy": lambda x: (x * 2).numpy(),
    "numpy number": lambda x: (x * 2, numpy.float32(3) * x),
    "numpy of sizes": lambda x: (x * 2, numpy.array([x.shape[0], 2])),
    "deque": lambda x: collections.deque([x * 2, x.shape[0]]),
    "defaultdict": lambda x: collections.defaultdict(list, a=x * 2, b=x.shape[0]),
    "ordered": lambda x: collections.OrderedDict(a=x * 2),
    "dict of its own": lambda x: Dict(a=x * 2, b=x.shape[1]),
    "slice": lambda x: (x * 2, slice(0, x.shape[0]), range(x.shape[1])),
    "object": lambda x: (F.silu(x), ReachableState(n=x.shape[0], s=x.shape, l=[x.size(1)], y=x * 2)),
    "object in an object": lambda x: [ReachableState(o=ReachableState(n=x.shape[1] // 2, f=x.shape[0] ** 0.5))],
    "object in slots": lambda x: {"a": Slots(ReachableState(n=x.shape[0]), x.shape[1])},
    "function": lambda x: (lambda n: (x * 2, lambda: n))(x.shape[0]),
    "error": lambda x: (x * 2, ValueError(x.shape[0])),
    "no comparison": lambda x: (x * 2, Equal()),
    "tensor comparison": lambda x: (x * 2, TensorEqual()),
    "number without comparison": lambda x: (x * 2, Number(3)),
    "no hash": lambda x: (x * 2, Hash()),
    "no text": lambda x: (x * 2, Text()),
    "no attributes": lambda x: (x * 2, Attribute()),
    "lying": lambda x: (x * 2, type(Lying())),
    "inside itself": lambda x: inside_itself(x * 2, x.shape[0]),
    "numbers": lambda x: (x * 2, 1j, float("nan"), 2**70, -0.0, b"a", None),
    "of torch": lambda x: (x * 2, x.dtype, x.device, x.layout),
    "enum": lambda x: (x * 2, Colour.RED, Level.LOW),
    "mock": lambda x: (x * 2, type(unittest.mock.MagicMock())),
    "argument": lambda x: [x, x],
}

ARGUMENTS: dict[str, Any] = {
    "numpy": numpy.ones(8, dtype=numpy.float32),
    "numpy number": numpy.float32(2),
    "memoryview": memoryview(b"ab"),
    "enum": Colour.RED,
    "int enum": Level.LOW,
    "fraction": fractions.Fraction(1, 2),
    "nan": float("nan"),
    "decimal nan": decimal.Decimal("NaN"),
    "signalling nan": decimal.Decimal("sNaN"),
    "huge": 2**70,
    "least": -(2**63) - 1,
    "zero": -0.0,
    "bytes": b"a",
    "nul": "a\0b",
    "path": pathlib.Path("a"),
    "proxy": weakref.proxy(TARGET),
    "mock": unittest.mock.MagicMock(),
    "no comparison": Equal(),
    "tensor comparison": TensorEqual(),
    "number without comparison": Number(2),
    "no truth": Truth(),
    "no hash": Hash(),
    "no text": Text(),
    "no length": Length(),
    "no attributes": Attribute(),
    "lying": Lying(),
    "set": {1, 2},
    "range": range(3),
    "function": abs,
    "type": int,
    "module": torch.nn.Linear(2, 2),
    "subclass": torch.ones(8).as_subclass(Sub),
    "sparse": torch.ones(8).to_sparse(),
    "meta": torch.ones(8, device="meta"),
    "float8": torch.ones(8).to(torch.float8_e4m3fn),
    "inside itself": inside_itself(1),
    "list of objects": [Equal(), TensorEqual(), Truth()],
    "dict of objects": {"a": Equal(), "b": TensorEqual()},
    "keys without comparison": {Equal(): 1},
    "keys of tuples": {(1, 2): 3},
    "namespace": types.SimpleNamespace(a=1),
    "object array": numpy.array([None, 1], dtype=object),
    "slots": Slots(X, 3),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_any_kind_is_eagers(name: str, quick: fusion.FusionConfig) -> None:
    check(RESULTS[name], quick, X)


@pytest.mark.parametrize("name", ["named tuple", "slots", "frozen", "of torch", "argument", "complex", "float8"])
def test_results_that_plans_give(name: str, quick: fusion.FusionConfig) -> None:
    assert check(RESULTS[name], quick, X).statistics.planned[0] > 0


def ignores(x: torch.Tensor, other: Any) -> Any:
    return F.silu(x) * 2


def hands_back(x: torch.Tensor, other: Any) -> Any:
    return F.silu(x) * 2, other


def adds(x: torch.Tensor, other: Any) -> Any:
    try:
        return F.silu(x) + other
    except Exception:
        return F.silu(x) * 3


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_of_any_kind_leaves_eagers_result(name: str, quick: fusion.FusionConfig) -> None:
    for forward in (ignores, hands_back, adds):
        if name == "lying" and forward is adds:
            continue  # torch itself ends the process
        check(forward, quick, X, ARGUMENTS[name])


def test_symbols_are_taken_out_of_what_the_caller_gets(quick: fusion.FusionConfig) -> None:
    def forward(x: torch.Tensor) -> Any:
        held = ReachableState(n=x.shape[0], again=[x.shape])
        return F.silu(x), held, {"a": (held, x.size(1))}

    _, held, further = fusion.fuse(forward, quick)(X)
    assert further["a"][0] is held and type(further["a"][1]) is int
    assert [type(n) for n in pytree.tree_leaves((held.n, held.again))] == [int, int, int]
