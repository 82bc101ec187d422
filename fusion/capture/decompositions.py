"""Operators of other libraries: kept whole, or given a meaning in torch's operators so that they fuse.

An operator that torch's dispatcher knows is seen there; a Python function is replaced in its module while something is
recorded or run again.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._library.custom_ops import CustomOpDef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.capture.python import registry
from fusion.patterns.errors import FusionError
from fusion.patterns.ops.effects import written
from fusion.patterns.verify import accept

_ROUNDINGS = 16  # units in the last place of the largest value that a library's own operator may be off


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an operator computes.

    Attributes:
        name: for messages.
        native: the operator itself.
        decomposition: a function of the same arguments in torch's operators; it may write to them in place.
    """

    name: str
    native: Callable[..., Any]
    decomposition: Callable[..., Any]

    def problem(self, args: Any, kwargs: Any) -> str | None:
        """Why the decomposition does not stand for this call, or None.

        Both are run on copies of the arguments, and the decomposition in double precision as well: its error may be
        1.5 times the operator's, and a unit in the last place; and the operator itself has to be near it.
        """
        native, ours, exact = (
            self._outcome(run, *pytree.tree_map(copy, (args, kwargs)))
            for run, copy in ((self.native, _copy), (self.decomposition, _copy), (self.decomposition, _doubled))
        )
        if not len(native) == len(ours) == len(exact):
            return f"{self.name} gives {len(native)} tensors, its decomposition {len(ours)}"
        for a, b, c in zip(ours, native, exact, strict=True):
            if b.is_floating_point():
                verdict = accept(a, b, c.double())
                if not verdict.ok or not _near(b, c):
                    return f"{self.name} and its decomposition differ: {verdict.reason or 'another function'}"
            elif (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()) or not torch.equal(a, b):
                return f"{self.name}'s decomposition gives another result"
        return None

    def _outcome(self, run: Callable[..., Any], args: Any, kwargs: Any) -> list[torch.Tensor]:
        """The tensors a call returns, and those it writes to."""
        result = run(*args, **kwargs)
        changed = list(written(self.native, args, kwargs)) if isinstance(self.native, torch._ops.OpOverload) else []
        return [t for t in pytree.tree_leaves((result, changed)) if isinstance(t, torch.Tensor)]


def _near(native: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether an operator's result is, within the rounding of its dtype, what the decomposition computes."""
    apart = (native.double() - exact.double()).nan_to_num(0.0).abs()
    largest = exact.double().nan_to_num(0.0, 0.0, 0.0).abs()
    if not apart.numel():
        return True
    return float(apart.max()) <= _ROUNDINGS * torch.finfo(native.dtype).eps * float(largest.max())


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _doubled(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double()
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else _copy(value)


_OPERATORS: dict[Any, Meaning] = {}


def register_op(
    op: str | Callable[..., Any],
    decomposition: Callable[..., Any] | None = None,
    *,
    effect: bool = True,
    grows: tuple[int, ...] = (),
) -> None:
    """Tells what an operator of another library is.

    With a decomposition it is recorded as the operators the decomposition calls, which then fuse; each recorded call
    is checked against the operator by the rule that kernels are checked by. Without one it is opaque: called as it is,
    in its place. An operator of torch's dispatcher is opaque unregistered, and its schema tells what it writes to.

    Args:
        op: "library::name" of an operator that torch's dispatcher knows, such an operator, or a Python function. The
            function is found under its own name in every module that imported it.
        decomposition: takes the same arguments, gives the same results, and writes in place where `op` does.
        effect: of an opaque function, whether it changes state; False for one that a plan may call again freely.
        grows: of an opaque function, dimensions of its results that never follow its arguments' sizes.

    Raises:
        FusionError: there is no such operator.
    """
    operator = _operator(op)
    if operator is not None:
        if decomposition is None:
            _OPERATORS.pop(operator, None)
        else:
            _OPERATORS[operator] = Meaning(str(operator), operator, decomposition)
        return
    if not isinstance(op, types.FunctionType | types.BuiltinFunctionType):
        raise FusionError(f"register_op() takes an operator's name or a function, not {op!r}.", remedy="See its help.")
    meaning = None if decomposition is None else Meaning(op.__name__, op, decomposition)
    registry.register_function(registry.NativeFunction(op, meaning, effect, grows))


def _operator(op: Any) -> Any:
    """An operator overload by name, or as given; None for anything else."""
    if isinstance(op, torch._ops.OpOverload):
        return op
    if isinstance(op, CustomOpDef):
        return op._opoverload
    if isinstance(op, str):
        library, _, name = op.replace("::", ".", 1).partition(".")
        op = getattr(getattr(torch.ops, library), name.partition(".")[0], None)
        if op is None:
            raise FusionError(f"torch has no operator {library}::{name}.", remedy="Import its library first.")
        overload = name.partition(".")[2]
        return getattr(op, overload) if overload else _only(op)
    return _only(op) if isinstance(op, torch._ops.OpOverloadPacket) else None


def _only(packet: Any) -> Any:
    overloads = packet.overloads()
    return getattr(packet, "default" if "default" in overloads else overloads[0])


def meaning_of(operator: Any) -> Meaning | None:
    """What an operator overload was registered to compute, or None."""
    return _OPERATORS.get(operator)


class _ByMeaning(TorchDispatchMode):
    """Runs decompositions in place of the operators they stand for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        meaning = _OPERATORS.get(func)
        if meaning is None:
            return func(*args, **(kwargs or {}))
        with self:
            return meaning.decomposition(*args, **(kwargs or {}))


@contextlib.contextmanager
def decomposed() -> Iterator[None]:
    """Inside the block registered operators are what their decompositions compute, to the last bit.

    A plan is compared with such a run: that the decompositions stand for the operators was checked when they were
    recorded, to the precision that kernels are checked to.
    """
    if not _OPERATORS:
        yield
        return
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), _ByMeaning():
        yield
