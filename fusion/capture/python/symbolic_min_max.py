"""`min` and `max` of sizes: while a call is recorded they answer with a symbol instead of asking which one is smaller.

A forward that takes `min(topk, length)` columns would be recorded for lengths below `topk`, and again for the others.
"""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch


def _of_sizes(original: Callable[..., Any], symbolic: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) < 2 or kwargs or not any(type(a) is torch.SymInt for a in args):
            return original(*args, **kwargs)
        library = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] in ("torch", "sympy")
        if library or not all(type(a) in (int, torch.SymInt) for a in args):
            return original(*args, **kwargs)  # torch's shape functions are written for the question
        return functools.reduce(symbolic, args)

    return call


# By the name of the builtin that it stands in for while calls are recorded or run again.
EXTREMES = {
    "min": _of_sizes(builtins.min, torch.sym_min),
    "max": _of_sizes(builtins.max, torch.sym_max),
}
