"""Which tensors of a call share memory: a plan that writes to some of it is for calls that share as the recorded one.

What a call is given is compared before the plan does anything (`disjoint`); what a plan finds inside objects, or gets
from native calls, when it meets it (`Memory`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


def disjoint(groups: Iterable[Sequence[Tensor]], others: Iterable[Tensor], standing: frozenset[int]) -> bool:
    """Whether groups of tensors that are written to live in memory of their own, as they did when recorded.

    Args:
        groups: those that are written to; within one, tensors may share memory.
        others: further tensors of the call.
        standing: storages of the scope's own tensors, as `storages` gives them.
    """
    seen: set[int] = set()
    for group in groups:
        mine = storages(group)
        if not (mine.isdisjoint(seen) and mine.isdisjoint(standing)):
            return False
        seen |= mine
    return seen.isdisjoint(storages(others))


def storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    """Identities of the memory that tensors live in."""
    return frozenset(int(t.untyped_storage()._cdata) for t in tensors)


class Memory:
    """The memory that one run of a plan has met, by the recording's groups.

    Args:
        groups, others, standing: as `disjoint` takes them, and as it found them to be.
    """

    __slots__ = ("_groups", "_standing")

    def __init__(self, groups: Sequence[Sequence[Tensor]], others: Iterable[Tensor], standing: frozenset[int]) -> None:
        self._groups = dict.fromkeys(storages(others), -1)
        for number, group in enumerate(groups):
            self._groups.update(dict.fromkeys(storages(group), number))
        self._standing = standing

    def may_alias(self, tensor: Tensor, group: int) -> bool:
        """Whether a tensor that is met now lives apart from all memory of other groups, as it did when recorded.

        Args:
            tensor: the tensor.
            group: the place in `groups` of the memory it lives in; -1 for memory that nobody writes to.
        """
        memory = int(tensor.untyped_storage()._cdata)
        return self._groups.setdefault(memory, group) == group and (group < 0 or memory not in self._standing)
