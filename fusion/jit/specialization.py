"""Which numbers of a call its recording is made for, rather than for symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fusion.capture.user_frame import user_line
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.compiled import Lists
from fusion.jit.state_watch import StateWatch
from fusion.patterns.leaves import Path
from fusion.refusal import Refusal

_MOST_LISTS = 2  # of numbers that calls of one form are recorded with


class Specialization:
    """What recordings of a scope fix, and what must not vary from one to the next.

    Args:
        watch: what the scope depends on.
        shared: lists of numbers in calls of equal modules, by their structure and the calls' form.

    Attributes:
        numbers: structures of calls that are recorded with numbers for all their sizes.
        every_size: whether a size that varies may be fixed each time: it is needed as a number, and there is nothing to
            take apart. That makes a plan for each size, up to `max_plans`.
    """

    def __init__(self, watch: StateWatch, shared: dict[Any, dict[Any, Lists]]) -> None:
        self.numbers: set[Any] = set()
        self.every_size = False
        self._watch = watch
        self._shared = shared
        self._own: dict[Any, Lists] = {}  # where no scope is like this one

    def forget(self) -> None:
        """Forgets what earlier calls were given."""
        self.numbers.clear()
        self._lists().clear()

    def _lists(self) -> dict[Any, Lists]:
        fingerprint = self._watch.fingerprint
        return self._own if fingerprint is None else self._shared.setdefault(fingerprint.structure, {})

    def lists(self, call: BoundCall) -> Lists | None:
        """What is known of the lists of numbers in calls like this one, of equal scopes too; None where it has none."""
        return None if call.form is None else self._lists().setdefault(call.form, Lists())

    def refusal(self, call: BoundCall) -> Refusal | None:
        """Why a call is not recorded that is given other numbers in a list than those before it.

        How many rows each expert gets, say, is data: every list would want a recording, and kernels, of its own.
        """
        known = self.lists(call)
        if known is None or call.structure in known.keys or not (known.full or len(known.keys) >= _MOST_LISTS):
            return None
        what = "the numbers in a list that it is given vary from call to call"
        return Refusal("data_read", what, user_line(), "pass the list as a tensor")

    def varying(self, call: BoundCall, entries: Sequence[CacheEntry]) -> set[tuple[Path, int]]:
        """(path, dimension) of tensor arguments' sizes that earlier recordings fixed to other numbers."""
        if self.every_size:
            return set()
        given = {leaf.path: leaf.value for leaf in call.tree.leaves}
        found: set[tuple[Path, int]] = set()
        for entry in entries:
            for entered in entry.graph.inputs:
                tensor, dims = given.get(entered.path), entry.graph.spec[entered.name].shape
                if isinstance(tensor, torch.Tensor) and tensor.ndim == len(dims) and not tensor.is_nested:
                    pairs = enumerate(zip(dims, tensor.shape, strict=True))
                    found |= {(entered.path, d) for d, (was, now) in pairs if type(was) is int and 1 < was != now > 1}
        return found
