"""What a scope's callable depends on beside its arguments: whether it is as it was when calls were recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fusion.capture.module_fingerprint import ModuleFingerprint, fingerprint
from fusion.capture.python.reachable_state import Entry, settled
from fusion.capture.python.state_guards import unchanged, watched
from fusion.refusal import Refusal, Refused
from fusion.runtime.snapshots import make_snapshot

Surroundings = Callable[[], tuple[dict[str, torch.nn.Module], list[Entry]]]


class StateWatch:
    """Modules and objects, and a snapshot of them that plans are valid for.

    Args:
        modules: modules whose tensors the callable may use, by path prefix.
        objects: objects whose plain attributes it depends on.
        surroundings: gives the modules, and further entries, where they are found rather than given.
        opaque: modules inside that are called natively, by path: their state is their own affair. It may grow.
        line: "file:line" of the callable.
        install: takes the function that an entry asks, before it tries a plan, whether all is as it was.

    Attributes:
        entries: what is watched, as `make_snapshot` takes it.
        refusal: why it cannot be watched, or None.
        fingerprint: what equal modules have in common; None for anything but one module without opaque ones inside.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        objects: Sequence[Any],
        surroundings: Surroundings | None,
        opaque: Mapping[str, torch.nn.Module],
        line: Callable[[], str],
        install: Callable[[Callable[[], bool]], None],
    ) -> None:
        self.modules = dict(modules)
        self.entries: list[Entry] = []
        self.refusal: Refusal | None = None
        self.fingerprint: ModuleFingerprint | None = None
        self._objects = tuple(objects)
        self._surroundings = surroundings
        self._opaque = opaque
        self._line = line
        self._install = install
        self._snapshot: Callable[[], bool] | None = None

    def refresh(self) -> None:
        """Takes everything as it is now as what plans are valid for."""
        try:
            self.entries = self._now()
            alone = list(self.modules) == [""] and not self._opaque
            self.fingerprint = settled(lambda: fingerprint(self.modules[""])) if alone else None
            self.refusal = None
        except Refused as refused:
            refusal = refused.refusal
            self.entries, self.refusal = [], replace(refusal, origin=refusal.origin or self._line())
            self.fingerprint = None
        self._snapshot = None
        self._install(_unwatched)

    def holds(self) -> bool:
        """Whether everything is as it was when it was last looked at."""
        if self._snapshot is not None:
            return self._snapshot()
        try:
            return unchanged(self.entries, self._now())
        except Refused:
            return self.refusal is not None

    def has_changed(self) -> bool:
        """Looks again: whether anything really differs. A snapshot may fail for what is only another order."""
        before = self.entries
        self.refresh()
        return not unchanged(before, self.entries)

    def arm(self) -> None:
        """Lets the entry try plans while everything stays as it was."""
        if self._snapshot is None:  # not before it is needed: the C runtime may still be compiling
            self._snapshot = make_snapshot(self.entries)
            self._install(self._snapshot)

    def add(self, modules: Sequence[torch.nn.Module]) -> bool:
        """From here on, the state of these modules counts as well; whether any was not watched yet."""
        new = [module for module in modules if not any(module is held for held in self._objects)]
        if new:
            self._objects += tuple(new)
            self.refresh()
        return bool(new)

    def outside(self) -> list[Entry]:
        """Entries for what a function finds in its closure and among global names."""
        return [] if self._surroundings is None else self._surroundings()[1]

    def _now(self) -> list[Entry]:
        return settled(self._look)

    def _look(self) -> list[Entry]:
        entries: list[Entry] = []
        if self._surroundings is not None:
            self.modules, entries = self._surroundings()
        return entries + watched(self.modules, self._objects, self._opaque.values())


def _unwatched() -> bool:
    """Stands in for a snapshot until there is a plan to guard."""
    return False
