"""Source of nests of values: a call's keywords, and results and arguments by their pytree structure."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils import _pytree as pytree

from fusion.patterns.python_nodes import Keywords
from fusion.runtime.guard_writer import GuardWriter
from fusion.runtime.pytrees import unflatten


def keywords(plan: GuardWriter, kwargs: Keywords) -> str:
    """Source of a dict of a call's arguments by keyword."""
    return "{" + ", ".join(f"{plan.outside(k)}: {plan.text(v)}" for k, v in kwargs) + "}"


def nested(plan: GuardWriter, tree: pytree.TreeSpec, leaves: Iterator[str]) -> str:
    """Source of a nest of leaves, which are taken off in order."""
    if tree.is_leaf():
        return next(leaves)
    if tree.type not in (tuple, list, dict):
        taken = ", ".join(next(leaves) for _ in range(tree.num_leaves))
        if tree.type is torch.Size:  # which torch's pytrees would make a plain tuple
            return f"{plan.name('Size', torch.Size)}([{taken}])"
        return f"{plan.name('unflatten', unflatten)}([{taken}], {plan.name('tree', tree)})"
    inner = [nested(plan, child, leaves) for child in tree.children()]
    if tree.type is dict:
        keys = [plan.outside(key) for key in tree.context]
        return "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, inner, strict=True)) + "}"
    text = ", ".join(inner)
    return f"[{text}]" if tree.type is list else f"({text}{',' if len(inner) == 1 else ''})"
