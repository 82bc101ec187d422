"""What a recorded run changes beside the tensors it makes: memory that operators write to, generators they draw from.

In-place operators give the value a new name: `x.add_(1)` makes `v1` from `v0`, and the user's tensor is `v1` from then
on. Whoever reads `v1` reads what was written, so only names older than a write depend on its place in the order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion.capture.user_frame import user_line
from fusion.patterns.ops.effects import draws, tagged, written
from fusion.refusal import Refused
from fusion.runtime.rollback import UndoLog, default_generators

_VIEWS_IN_PLACE = {
    f"aten.{name}_": f"aten.{name}"
    for name in ("squeeze", "unsqueeze", "t", "transpose", "swapaxes", "swapdims", "as_strided")
}


def storage_key(tensor: torch.Tensor) -> int:
    """Identifies the memory a tensor lives in."""
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)


def tensors_written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors a call writes to."""
    return [t for t in _members(list(written(function, args, kwargs))) if has_memory(t)]


def _members(nest: Any) -> list[Any]:
    """What an operator's arguments or results hold: nothing but lists, tuples and dicts nests in them.

    torch's own walk, which knows every class that was ever registered, takes several times as long, for each operator.
    """
    found: list[Any] = []
    waiting = [nest]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        else:
            found.append(value)
    return found


def mapped(function: Callable[[Any], Any], nest: Any) -> Any:
    """An operator's arguments with a function applied to what they hold; as torch's own `tree_map`, faster."""
    if type(nest) is tuple:
        return tuple([mapped(function, value) for value in nest])
    if type(nest) is list:
        return [mapped(function, value) for value in nest]
    if type(nest) is dict:
        return {key: mapped(function, value) for key, value in nest.items()}
    return pytree.tree_map(function, nest) if isinstance(nest, (tuple, list, dict)) else function(nest)


def _fresh(args: Any, kwargs: Any, result: Any, known: Collection[int]) -> set[int]:
    """Memory of an operator's results that is neither known nor that of its arguments."""
    fresh = {storage_key(t) for t in _members(result) if has_memory(t)}.difference(known)
    return fresh - {storage_key(t) for t in _members((args, kwargs)) if has_memory(t)} if fresh else fresh


def has_memory(value: Any) -> bool:
    """Whether a value is a tensor that says where it lives; one inside `torch.func.vmap` does not."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def view_in_place(function: Any) -> str | None:
    """The view operator behind one that changes the shape of its operand in place; None for any other operator.

    Raises:
        Refused: it changes more than the shape.
    """
    if not tagged(function, torch.Tag.inplace_view):
        return None
    name, overload = str(function).rsplit(".", 1)
    if name not in _VIEWS_IN_PLACE:
        remedy = "make a new tensor instead"
        raise Refused("outer_write", f"{function} changes the memory behind a tensor", user_line(), remedy)
    return f"{_VIEWS_IN_PLACE[name]}.{overload}"


_SEED = "seed before the call, or draw with a torch.Generator that is an argument"


class MutationTracker:
    """Watches one run.

    Args:
        generators: those among the run's arguments.

    Attributes:
        undo: takes back what the run did to memory and generators that it did not make itself.
        memory: the memory behind each value name.
        writes: (index of the node, memory it writes to), in order.
        native: (index of the node, memory) for the writes among them that native calls make.
        in_native: whether a native call is running.
        elided: values that a `contiguous()` handed back as they were, at the sizes of this run.
    """

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self.undo = UndoLog()
        self._watched = [*default_generators(), *generators]
        self.memory: dict[str, int] = {}
        self.writes: list[tuple[int, int]] = []
        self.native: list[tuple[int, int]] = []
        self.in_native = False
        self.elided: set[str] = set()
        self.made: set[int] = set()
        self._made_natively: set[int] = set()
        self._generators = self._states()
        self._seeded = False
        self._native_draws = False

    def made_here(self, tensor: torch.Tensor) -> bool:
        """Whether an operator of this run made the memory of a tensor."""
        return storage_key(tensor) in self.made

    def before(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """To be called before every operator of the run, recorded or not."""
        if draws(function, args, kwargs):
            self.undo.drawing(args, kwargs)
            self._seeded = self._seeded or not _same(self._generators, self._states())
        if function._schema.is_mutable:
            for tensor in tensors_written(function, args, kwargs):
                if not self.made_here(tensor):
                    self.undo.writing(function, tensor, args)

    def after(self, args: Any, kwargs: Any, result: Any) -> None:
        """To be called after every operator: memory that came with no argument is the run's own."""
        self.made |= _fresh(args, kwargs, result, self.made)

    def after_natively(self, args: Any, kwargs: Any, result: Any) -> None:
        """To be called after every operator of a native call."""
        self._made_natively |= _fresh(args, kwargs, result, self._made_natively)

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lives in memory that the run has met, or that the run or its native calls made."""
        key = storage_key(tensor)
        return key in self.made or key in self._made_natively or key in self.memory.values()

    def _states(self) -> list[torch.Tensor]:
        return [g.get_state() for g in self._watched]

    def native_write(self, node: int, tensor: torch.Tensor, outer: Collection[int] = ()) -> None:
        """A native call, which will be node number `node`, writes to a tensor.

        Args:
            node: its number.
            tensor: what it writes to.
            outer: memory that the run has not met yet, but may.
        """
        key = storage_key(tensor)
        if key in self.memory.values() or key in outer:
            self.writes.append((node, key))
            self.native.append((node, key))

    def before_native(self) -> None:
        """To be called before a native call, which may draw from the generators as it likes."""
        self._seeded = self._seeded or not _same(self._generators, self._states())

    def after_native(self) -> None:
        """To be called after a native call."""
        states = self._states()
        self._native_draws = self._native_draws or not _same(self._generators, states)
        self._generators = states

    def after_draw(self) -> None:
        """To be called after an operator that draws.

        Raises:
            Refused: as `check_generators`.
        """
        if self._seeded:
            raise Refused("random", "the forward seeds a generator before it draws", user_line(), _SEED)
        self._generators = self._states()

    def check_generators(self) -> None:
        """At the end of the run: the generators are as the last operator left them.

        Raises:
            Refused: something else drew from one, or seeded it, which a plan would not do.
        """
        if self._seeded or not _same(self._generators, self._states()):
            raise Refused("random", "the forward seeds a generator, or draws past torch's operators", remedy=_SEED)
        if self._native_draws and self.undo.draws:
            raise Refused("random", "both operators and native calls of the forward draw random numbers")


def _same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    with torch._C.DisableTorchFunction():  # a recorder's function mode takes this for a read by the user
        return len(before) == len(after) and all(map(torch.equal, before, after))
