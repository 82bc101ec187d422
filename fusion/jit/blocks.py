"""Which modules of a model become scopes, found by structure."""

from __future__ import annotations

from collections.abc import Iterator

import torch

Module = torch.nn.Module


def find_blocks(model: Module) -> dict[str, Module]:
    """The repeated blocks of a model by path: elements with submodules of the outermost ModuleLists that hold several,
    and of the outermost Sequentials those that are there more than once.

    They may be of several classes, as in models that alternate attention with something else. One module under several
    paths is one block.
    """
    found: dict[int, tuple[str, Module]] = {}
    for path, block in _blocks("", model):
        found.setdefault(id(block), (path, block))
    return dict(found.values())


def parts(module: Module, steps: dict[str, Module], path: str = "") -> dict[str, Module]:
    """The largest modules below `module` that may be scopes in its stead, by path; torch's own modules are one call.

    Args:
        module: one that cannot be a scope itself.
        steps: modules that are scopes already, by path; they and what is below them are left out.
        path: of the module.
    """
    taken = {id(m) for m in steps.values()}
    found: dict[int, tuple[str, Module]] = {}
    for name, child in module.named_children():
        at = f"{path}.{name}" if path else name
        if id(child) in taken:
            continue
        if _is_scope(child):
            found.setdefault(id(child), (at, child))
        elif any(True for _ in child.children()):
            for below, part in parts(child, steps, at).items():
                found.setdefault(id(part), (below, part))
    return dict(found.values())


def _is_scope(module: Module) -> bool:
    return not type(module).__module__.startswith("torch.nn") and type(module).forward is not Module.forward


def _blocks(prefix: str, module: Module) -> Iterator[tuple[str, Module]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, torch.nn.ModuleList) and _repeated(child):
            yield from ((f"{path}.{i}", block) for i, block in enumerate(child))
        elif isinstance(module, torch.nn.Sequential) and _is_stacked(child, module):
            yield path, child
        else:
            yield from _blocks(path, child)


def _is_stacked(block: Module, stack: torch.nn.Sequential) -> bool:
    """Whether an element of a Sequential is a block: it has submodules, and so has another of its kind in there."""
    if not any(block.children()) or type(block).forward is Module.forward:
        return False
    return sum(_kind(other) == _kind(block) for other in stack) > 1


def _kind(module: Module) -> object:
    """What blocks of one stack have in common: their class, and of torch's own classes also what is below them."""
    if not type(module).__module__.startswith("torch.nn"):
        return type(module)
    return [(path, type(child)) for path, child in module.named_modules()]


def _repeated(modules: torch.nn.ModuleList) -> bool:
    """Whether a list holds blocks; a list that holds one class in which nothing lies below is a list of leaves."""
    return len(modules) > 0 and all(any(m.children()) and type(m).forward is not Module.forward for m in modules)
