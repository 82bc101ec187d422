"""Modules that stand for functions of an installed library, as some of transformers' activations do."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from fusion.capture.python.reachable_state import is_library

_HELD = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


def is_a_function(module: torch.nn.Module) -> bool:
    """Whether a module stands for a function of an installed library: one without tensors, parts and hooks that the
    library keeps as a global beside its class, and calls itself. What libraries keep for themselves is not watched."""
    if any(map(vars(module).get, _HELD)):
        return False
    home = type(module).__module__
    callers = (name for name in _callers() if name.partition(".")[0] != "fusion")
    same = next(callers, "").partition(".")[0] == home.partition(".")[0]
    return same and is_library(home) and any(held is module for held in vars(sys.modules[home]).values())


def _callers() -> Iterator[str]:
    """Names of the modules whose code is running, the innermost first."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        yield frame.f_globals.get("__name__", "")
