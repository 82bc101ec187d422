"""torch.compile around or inside what is under fusion: it sees a call that it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._dynamo.decorators import skip

_Function = TypeVar("_Function", bound=Callable[..., Any])


def opaque(function: _Function) -> _Function:
    """Keeps torch.compile from tracing a function. What the function calls is another matter: see `undisturbed`."""
    skip(function)
    function._torchdynamo_disable_msg = "it is under fusion; call fusion.disable first"  # type: ignore[attr-defined]
    return function


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


# Calls a function with arguments while torch.compile looks at no frame at all.
undisturbed: Callable[..., Any] = torch.compiler.disable(_call)  # type: ignore[no-untyped-call]  # it has no annotations
