"""A module of the user's, whose attributes a forward reads."""

from __future__ import annotations

import types
from typing import Any

import torch

SCALE = 2.0
TABLE = {"k": 1.0}
sub: Any = types.ModuleType("user_settings.sub")
sub.SCALE = 1.0


def helper(x: torch.Tensor) -> torch.Tensor:
    return x * 2
