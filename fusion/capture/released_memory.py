"""Lets go of the memory behind large values that only the recorder still knows.

A recorder knows every value of a run by the identity of its tensor and of its memory. What the forward has dropped it
cannot read any more, so what such a value held may go, as it does in an eager run; only its name, its size and its
identities stay.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

_LARGE = 1 << 20  # bytes behind a value that is watched


def references(held: Mapping[str, Any], name: str) -> int:
    """References to an item of a dict, this one's own among them."""
    return sys.getrefcount(held[name])


ALONE = references({"": object()}, "")  # of what nobody else holds

_use_count = getattr(torch._C, "_storage_Use_Count", None)


class Forgotten:
    """Watches the values of one run.

    Args:
        real: tensors by value name; a tensor without contents takes the place of one that is let go.
        names: value names by the tensors' identities, which end with them.
    """

    def __init__(self, real: dict[str, torch.Tensor], names: dict[int, str]) -> None:
        self._real = real
        self._names = names
        self._watched: dict[int, list[str]] = {}  # by memory
        self._memory: dict[int, torch.UntypedStorage] = {}  # kept, so that its identity stays its own

    def watch(self, name: str, tensor: torch.Tensor) -> None:
        """From here on, `tensor` may be let go; it was made by the run."""
        if _use_count is None or tensor.is_meta:
            return
        memory = tensor.untyped_storage()
        if memory.nbytes() >= _LARGE and memory.resizable():
            self._memory.setdefault(memory._cdata, memory)
            self._watched.setdefault(memory._cdata, []).append(name)

    def sweep(self) -> None:
        """Lets go of what nobody else holds."""
        for memory, names in list(self._watched.items()):
            names[:] = [name for name in names if self._real[name].untyped_storage()._cdata == memory]
            if not names:  # others stand in their places, since somebody writes to it
                del self._watched[memory]
            elif self._is_alone(memory, names):
                for name in names:
                    self._names.pop(id(self._real[name]), None)
                    self._real[name] = without_contents(self._real[name])
                if self._memory[memory].resizable():  # no longer so where NumPy has seen it
                    self._memory[memory].resize_(0)
                del self._watched[memory]

    def _is_alone(self, memory: int, names: list[str]) -> bool:
        """Whether all that is left of some memory are the recorder's own tensors."""
        assert _use_count is not None
        if _use_count(memory) != len({id(self._real[name]) for name in names}) + 1:  # 1: `_memory`
            return False
        shared = {key: sum(self._real[name] is self._real[key] for name in names) for key in names}
        return all(references(self._real, name) == ALONE - 1 + shared[name] for name in names)


def without_contents(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same size, layout and dtype, which holds nothing."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def alike(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Operands of one call; without contents, all of them, where one has none."""
    if not any(t.is_meta for t in tensors.values()):
        return dict(tensors)
    return {name: without_contents(t) for name, t in tensors.items()}
