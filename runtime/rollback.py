"""Undoing what operators did to memory and generators that outlive a call.

A run that may have to be made again keeps, before each such operator, what the operator is about to change. Afterwards
the run can be taken back, and put forth again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusion.patterns.ops.effects import draws, written

State = tuple[Sequence[Tensor], Sequence[Tensor]]  # contents of the places, states of the generators


@dataclass(frozen=True, slots=True)
class _Place:
    """Memory that is written to: how to read it and how to write it back, and what it held before."""

    read: Callable[[], Tensor]
    write: Callable[[Tensor], object]
    before: Tensor


def identity(generator: torch.Generator) -> int:
    """Tells a generator, which torch hands on as other objects."""
    return int(generator._cdata)  # type: ignore[attr-defined]  # torch's stubs leave it out


class UndoLog:
    """What memory and generators held before a run changed them.

    Args:
        limit: bytes that are kept at most; beyond it the run cannot be taken back, and `partial` says so.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.partial = False
        self._left = limit
        self._places: list[_Place] = []
        self._whole: set[Any] = set()
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._places or self._generators) or self.partial

    @property
    def draws(self) -> bool:
        """Whether the run drew random numbers."""
        return bool(self._generators)

    # ---- before an operator

    def before(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """To be called right before `function(*args, **kwargs)`, an operator overload on real tensors."""
        if draws(function, args, kwargs):
            self.drawing(args, kwargs)
        for target in written(function, args, kwargs):
            for tensor in pytree.tree_leaves(target):
                if isinstance(tensor, Tensor):
                    self.writing(function, tensor, args)

    def drawing(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Keeps the states of the generators a call may draw from."""
        given = pytree.tree_leaves((args, kwargs))
        explicit = [g for g in given if isinstance(g, torch.Generator)]
        for generator in explicit or default_generators():
            self._generators.setdefault(identity(generator), (generator, generator.get_state()))

    def writing(self, function: Any, tensor: Tensor, args: Sequence[Any]) -> None:
        """Keeps what the call is about to overwrite of `tensor`: the indexed part where the operator says which."""
        whole = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if whole in self._whole:
            return
        narrow = _NARROW.get(function)
        if narrow is not None and args and tensor is args[0] and not torch._debug_has_internal_overlap(tensor):
            with contextlib.suppress(RuntimeError, IndexError):  # the call itself will say what is wrong with it
                read, write = narrow(tensor, args)
                self._places.append(_Place(read, write, read()))
                self._spend(self._places[-1].before.nbytes)
            return
        self._spend(tensor.nbytes)
        if not self.partial:
            self._whole.add(whole)
            read, write = _whole(tensor)
            self._places.append(_Place(read, write, read()))

    def keep(self, tensor: Tensor, held: Tensor) -> None:
        """Keeps what a tensor held before it was overwritten: `held`, which lies in memory as it does."""
        read, write = _whole(tensor)
        self._places.append(_Place(read, write, _whole(held)[0]()))

    def _spend(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
            self.partial = self.partial or self._left < 0

    # ---- after the run

    def now(self) -> State:
        """What the places and the generators hold now."""
        return [p.read() for p in self._places], [g.get_state() for g, _ in self._generators.values()]

    def rewind(self) -> None:
        """Takes the run back."""
        for place in reversed(self._places):
            place.write(place.before)
        for generator, state in self._generators.values():
            generator.set_state(state)

    def put(self, state: State) -> None:
        """Makes the places and the generators hold what `now` gave."""
        for place, held in zip(self._places, state[0], strict=True):
            place.write(held)
        for (generator, _), saved in zip(self._generators.values(), state[1], strict=True):
            generator.set_state(saved)

    def agrees(self, state: State) -> bool:
        """Whether the places and the generators hold what `now` gave; NaN equals NaN."""
        found = self.now()
        return all(
            torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
            for a, b in zip([*found[0], *found[1]], [*state[0], *state[1]], strict=True)
        )

    @contextlib.contextmanager
    def rewound(self) -> Iterator[None]:
        """Inside the block the run is taken back, for it to be made again; after it, everything is as before."""
        now = self.now()
        self.rewind()
        try:
            yield
        finally:
            self.put(now)


def default_generators() -> list[torch.Generator]:
    """The generators that operators draw from unless told otherwise, of the devices in use."""
    found = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found += list(torch.cuda.default_generators)
    return found


def overwrite(tensor: Tensor, held: Tensor) -> None:
    """Makes a tensor hold what another holds, which lies in memory as it does; elements of both may share memory."""
    _whole(tensor)[1](_whole(held)[0]())


def _whole(tensor: Tensor) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    place = tensor.detach()  # another tensor over the same memory: the user may change the shape of theirs
    if tensor.numel() and torch._debug_has_internal_overlap(tensor) != 0:
        # torch lets some operators write to an expanded tensor, but not `copy_`: all memory between its ends is kept.
        reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        place = place.as_strided((reach,), (1,))
    return place.clone, place.copy_


def _rows(tensor: Tensor, args: Sequence[Any]) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    place, dim, index = tensor.detach(), args[1], args[2].clone()
    return (lambda: place.index_select(dim, index)), (lambda held: place.index_copy_(dim, index, held))


def _indexed(tensor: Tensor, args: Sequence[Any]) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    place = tensor.detach()
    indices = [i.clone() if isinstance(i, Tensor) else i for i in args[1]]
    index, index_put = torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default
    return (lambda: index(place, indices)), (lambda held: index_put(place, indices, held))


def _scattered(tensor: Tensor, args: Sequence[Any]) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    place, dim, index = tensor.detach(), args[1], args[2].clone()
    return (lambda: place.gather(dim, index)), (lambda held: place.scatter_(dim, index, held))


_aten = torch.ops.aten
_NARROW: dict[Any, Callable[..., Any]] = {
    _aten.index_copy_.default: _rows,
    _aten.index_add_.default: _rows,
    _aten.index_fill_.int_Scalar: _rows,
    _aten.index_fill_.int_Tensor: _rows,
    _aten.index_put_.default: _indexed,
    _aten.scatter_.src: _scattered,
    _aten.scatter_.value: _scattered,
    _aten.scatter_add_.default: _scattered,
}
