"""The state that steps may read: a plan calls them in the state that a call begins with. So it is with torch's state,
for every native call.

A forward that sets something for its blocks, and puts it back or sets it to the same again, is as it was at its end;
what counts is what the blocks have met.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

import torch
from torch.nn.modules import module as torch_module

from fusion.capture import torch_modes
from fusion.capture.hooks import HOOKS
from fusion.capture.python.free_variables import Outside, of_module
from fusion.capture.python.reachable_state import Entry, ReachableState, settled
from fusion.capture.python.state_changes import in_words
from fusion.capture.python.state_guards import alike
from fusion.refusal import Refused
from fusion.runtime.snapshots import make_snapshot


class StateAtCalls:
    """What is so when this is made.

    Args:
        module: of which the steps are called natively, and their state counts; None where there are no steps.
    """

    def __init__(self, module: torch.nn.Module | None = None) -> None:
        self._torch = torch_modes.state()
        self._steps = None if module is None else _StateAtSteps(module)

    def switched(self) -> str:
        """Which parts of torch's state are not as they were, in words; "" where all are."""
        return torch_modes.switched(self._torch)

    def change(self) -> str:
        """What a step may read that is not as it was, in words; "" where all is."""
        try:
            return "" if self._steps is None else self._steps.change()
        except Exception as error:  # of an object of the user's, say
            return f"holds what cannot be looked into ({type(error).__name__})"

    def after_step(self) -> None:
        """To be called after a step: what it has changed is its own doing, and counts from here on."""
        if self._steps is not None and not self._steps.holds():
            with contextlib.suppress(Exception):  # which the next look meets again
                self._steps.take()


class _StateAtSteps:
    """What a module, with the steps inside, holds, and what its code finds among global names."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._outside = Outside()
        self.take()

    def take(self) -> None:
        """From here on, what is held now counts."""
        self._entries = settled(self._now)
        self.holds = make_snapshot(self._entries)

    def change(self) -> str:
        """The first thing that is not as it was; "" where there is none, though its place in memory be another."""
        if self.holds():
            return ""
        now = settled(self._now)
        if len(now) != len(self._entries):
            return "adds or removes attributes, items or closures"
        return next((in_words(was) for was, new in zip(self._entries, now, strict=True) if not alike(was, new)), "")

    def _now(self) -> list[Entry]:
        found: list[Entry] = [
            ("size", held, len(held))
            for held in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
        ]
        found += _environment()
        found += _hooks(self._module)
        kinds: dict[type[torch.nn.Module], None] = dict.fromkeys(map(type, self._module.modules()))
        found += [("attribute", kind, "forward", kind.forward) for kind in kinds]
        found += ReachableState({"": self._module}, partly=True).entries
        with contextlib.suppress(Refused):  # what cannot be watched is refused where the model itself names it
            found += of_module(self._module, (), self._outside)[1]
        return found


def _hooks(module: torch.nn.Module) -> Iterator[Entry]:
    for child in module.modules():
        for name in HOOKS:
            held = vars(child)[name]
            yield ("size", held, len(held))
            yield from (("item", held, key, hook) for key, hook in held.items())


def _environment() -> Iterable[Entry]:
    held = vars(os.environ).get("_data")
    return [("size", held, len(held)), *(("item", held, k, v) for k, v in held.items())] if type(held) is dict else []
