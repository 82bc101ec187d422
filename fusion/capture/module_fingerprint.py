"""Likeness: which modules are so alike that the recording of one may be followed by the other."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import torch

from fusion.capture.hooks import HOOKS, are_idle
from fusion.capture.python.argument_tree import tensors_of
from fusion.capture.python.reachable_state import ENTRY_NAMES, PLAIN
from fusion.patterns.leaves import leaves
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph

_MODULE_INTERNALS = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class ModuleFingerprint:
    """What two modules must share to be twins.

    Attributes:
        structure: equal for modules of the same classes, tensors and attributes, integers left out.
        integers: integer attributes by path.
    """

    structure: Any
    integers: tuple[tuple[str, int], ...]


def fingerprint(module: torch.nn.Module) -> ModuleFingerprint:
    """A module tree's classes, tensor layouts, plain attributes, and the identity of everything else it holds."""
    structure: list[Any] = []
    integers: list[tuple[str, int]] = []
    for path, child in module.named_modules():
        structure.append((path, id(type(child)), id(type(child).forward)))
        for name, value in vars(child).items():
            if name in _MODULE_INTERNALS or name in ENTRY_NAMES or (name in HOOKS and are_idle(value)):
                continue
            if type(value) is int:
                integers.append((f"{path}.{name}", value))
            elif isinstance(value, (type(None), bool, float, str)):
                structure.append((path, name, value))
            elif isinstance(value, (dict, list, set, tuple)):
                structure.append((path, name, repr(value) if all(map(_is_plain, _nested(value))) else id(value)))
            elif not isinstance(value, torch.Tensor):
                structure.append((path, name, id(value)))
    for path, tensor in tensors_of(module):
        if torch.nn.parameter.is_lazy(tensor):
            structure.append((path, "lazy", id(tensor)))  # it has no shape before its module's first call
            continue
        structure.append((path, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device))
    return ModuleFingerprint(tuple(structure), tuple(integers))


def _nested(value: Any) -> list[Any]:
    """What nested containers hold, keys included; a container of another class counts as held."""
    if type(value) in (dict, collections.OrderedDict):  # torch keeps hooks in the latter
        return [leaf for item in (*value, *value.values()) for leaf in _nested(item)]
    if type(value) in (list, set, tuple):
        return [leaf for item in value for leaf in _nested(item)]
    return [value]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (*PLAIN, torch.Size))


def isomorphic(first: ModuleFingerprint, second: ModuleFingerprint, graph: RecordedGraph) -> bool:
    """Whether a recording of the first module may be followed by the second."""
    if first.structure != second.structure or len(first.integers) != len(second.integers):
        return False
    in_python = (node for node in graph.nodes if not isinstance(node, OpNode))
    given = {leaf for node in in_python for leaf in leaves(node.args) if type(leaf) is int}
    differ = [(a, b) for a, b in zip(first.integers, second.integers, strict=True) if a != b]
    names = {a[0].rpartition(".")[2] for a, _ in differ}
    numbers = {(a[1], b[1]) for a, b in differ}
    return len(names) <= 1 and len(numbers) <= 1 and all(a[0] == b[0] and a[1] in given for a, b in differ)
