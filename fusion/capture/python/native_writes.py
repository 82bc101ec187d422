"""What native calls write to while a forward is recorded: tensors they are given, and what earlier calls returned."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion.capture.mutation import has_memory, storage_key
from fusion.capture.trace_state import TraceState
from fusion.runtime.call_log import LoggedWrite, answers, copied, has_strides, held_before, passed_back
from fusion.runtime.rollback import UndoLog


class NativeWrites:
    """Watches one native call after the other.

    Attributes:
        lent: the memory of the tensors that the last call was given.
        written: the memory that it has written to.
    """

    def __init__(self, state: TraceState) -> None:
        self.lent: set[int] = set()
        self.written: set[int] = set()
        self._state = state
        self._answers: set[int] = set()  # memory of what the log's first `_known` entries answer
        self._known = 0
        self._old = UndoLog()

    def before(self, given: Any) -> None:
        """To be called right before a call that is given `given`."""
        tensors = [t for t in pytree.tree_leaves(given) if has_memory(t)]
        self.lent = set(map(storage_key, tensors))
        tensors = [t for t in tensors if has_strides(t)]
        self.written.clear()
        self._answers |= {storage_key(t) for t in answers(self._state.log[self._known :])}
        self._known = len(self._state.log)
        self._old = held_before(t for t in tensors if storage_key(t) in self._answers)

    def entry(self, entry: Any, args: Any, kwargs: Any) -> Any:
        """The log's entry for the native call that was just made with these arguments, and what it wrote to them."""
        ordered = pytree.tree_leaves((args, dict(sorted(kwargs.items()))))
        tensors = [t for t in ordered if isinstance(t, torch.Tensor)]
        places = [place for place, t in enumerate(tensors) if has_strides(t)]
        back = passed_back(entry, places, [tensors[place] for place in places])
        written = self.written & self.lent
        given = {place: copied(tensors[place]) for place in places if storage_key(tensors[place]) in written}
        if not (given or back):
            return entry
        return LoggedWrite(entry, given, passed_back=back, before=self._old if written & self._answers else None)
