"""Where recordings of a scope end: modules inside it that are called natively."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fusion.capture.record import call_line
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.state_watch import StateWatch
from fusion.refusal import Refusal

# Told of a structure of calls, why one was not recorded, the module in which that arose, and whether the run changed
# its modules' Python state. It answers whether another call may be recorded now.
Divide = Callable[[Any, Refusal, "torch.nn.Module | None", bool], bool]


class GraphBreaks:
    """The opaque modules of a scope: scopes of their own, or parts that run eagerly.

    Args:
        modules: those of all calls, by path. The mapping grows.
        watch: what the scope depends on.
        routed: by structure of equal modules, paths inside them of modules that data leads call by call.
        divide: takes a scope, or a module in it, apart.

    Attributes:
        modules: as given.
        divided: whether parts of the scope became scopes.
    """

    def __init__(
        self, modules: dict[str, torch.nn.Module], watch: StateWatch, routed: dict[Any, set[str]], divide: Divide
    ) -> None:
        self.modules = modules
        self.divided = False
        self.divide = divide
        self._further: dict[Any, dict[str, torch.nn.Module]] = {}  # by the structure of the calls
        self._watch = watch
        self._routed = routed

    def of(self, structure: Any) -> dict[str, torch.nn.Module]:
        """The opaque modules of calls of one structure, by path."""
        return {**self.modules, **self._further.get(structure, {})}

    def add(self, path: str, module: torch.nn.Module, structure: Any) -> None:
        """Makes a module opaque to calls of one structure. Others still look into it, and so it stays watched."""
        self._further.setdefault(structure, {})[path] = module

    def break_where_data_led(self, structure: Any) -> None:
        """Before a call is recorded: calls natively those modules that branched on data in an equal module."""
        fingerprint = self._watch.fingerprint
        known = set() if fingerprint is None else self._routed.get(fingerprint.structure, set())
        for path in sorted(known - self.of(structure).keys()):
            self.break_at(path, structure)

    def on_data_miss(self, entry: CacheEntry, structure: Any) -> bool:
        """Data led a call another way than was recorded: who reads it becomes opaque.

        Returns:
            whether it did; recordings that went through it are void then.
        """
        if entry.reader is None or not self.break_at(entry.reader, structure):
            return False
        fingerprint = self._watch.fingerprint
        if fingerprint is not None:
            self._routed.setdefault(fingerprint.structure, set()).add(entry.reader)
        return True

    def break_at(self, path: str, structure: Any) -> bool:
        """Makes a module that data leads opaque, unless opaque modules that go on their own are inside."""
        reader = self._watch.modules[""].get_submodule(path)
        if any(part is inside for part in reader.modules() for inside in self.modules.values()):
            return False
        what = "values of tensors decide, call by call, what it does"
        return self.divide(structure, Refusal("data_read", what, call_line(type(reader).forward)), reader, False)
