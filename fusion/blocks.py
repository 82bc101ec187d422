"""Which modules of a model become scopes, found by structure."""

from __future__ import annotations

from collections.abc import Iterator

import torch

Module = torch.nn.Module


def find_scopes(model: Module) -> list[tuple[str, Module]]:
    """Scopes of a model: its repeated blocks, and its own leaf modules outside them.

    A repeated block is an element of a ModuleList whose elements are of one class with submodules, the outermost such
    list. A leaf of torch itself (Linear, Embedding) is no scope: it is one call. A model without repeated blocks is
    one scope.
    """
    blocks = list({id(block): (path, block) for path, block in [*_blocks("", model)][::-1]}.values())[::-1]
    if not blocks:
        return [("", model)]
    inside = {id(m) for _, block in blocks for m in block.modules()}
    around = {id(m) for m in model.modules() if any(id(c) in inside for c in m.modules())}
    leaves = [
        (path, module)
        for path, module in model.named_modules()
        if id(module) not in inside
        and id(module) not in around
        and not any(module.children())
        and not type(module).__module__.startswith("torch.nn")
        and type(module).forward is not Module.forward
    ]
    return blocks + leaves


def _blocks(prefix: str, module: Module) -> Iterator[tuple[str, Module]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, torch.nn.ModuleList) and _repeated(child):
            yield from ((f"{path}.{i}", block) for i, block in enumerate(child))
        else:
            yield from _blocks(path, child)


def _repeated(modules: torch.nn.ModuleList) -> bool:
    kinds = {type(m) for m in modules}
    first = next(iter(modules), None)
    return len(kinds) == 1 and first is not None and any(first.children()) and type(first).forward is not Module.forward
