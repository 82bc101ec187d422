"""Which tensors of a call share memory: a plan that writes to some of it is for calls that share as the recorded one.

What a call is given is compared before the plan does anything (`disjoint`); what a plan finds inside objects, or gets
from native calls, when it meets it (`Memory`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


def disjoint(written: Iterable[Sequence[Tensor]], others: Iterable[Tensor], held: frozenset[int]) -> bool:
    """Whether groups of tensors that are written to live in memory of their own, as they did when recorded.

    Args:
        written: groups; within one, tensors may share memory.
        others: further tensors of the call.
        held: storages of further tensors, as `storages` gives them.
    """
    seen: set[int] = set()
    for group in written:
        mine = storages(group)
        if not (mine.isdisjoint(seen) and mine.isdisjoint(held)):
            return False
        seen |= mine
    return seen.isdisjoint(storages(others))


def storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    """Identities of the memory that tensors live in."""
    return frozenset(int(t.untyped_storage()._cdata) for t in tensors)


class Memory:
    """The memory that one run of a plan has met, by the recording's groups.

    Args:
        written, others, held: as `disjoint` takes them, and as it found them to be.
    """

    __slots__ = ("_groups", "_held")

    def __init__(self, written: Sequence[Sequence[Tensor]], others: Iterable[Tensor], held: frozenset[int]) -> None:
        self._groups = dict.fromkeys(storages(others), -1)
        for number, group in enumerate(written):
            self._groups.update(dict.fromkeys(storages(group), number))
        self._held = held

    def may_alias(self, tensor: Tensor, group: int) -> bool:
        """Whether a tensor that is met now lives apart from all memory of other groups, as it did when recorded.

        Args:
            tensor: the tensor.
            group: the place in `written` of the memory it lives in; -1 for memory that nobody writes to.
        """
        memory = int(tensor.untyped_storage()._cdata)
        return self._groups.setdefault(memory, group) == group and (group < 0 or memory not in self._held)
