"""What an operator changes beside the tensors it makes: memory it writes to, generators it draws from.

All of it is read from torch's own schemas and tags, so operators that no table lists are covered too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..errors import UnsupportedOperator
from ..leaves import Ref, leaves
from ..nodes import OpNode
from .spellings import resolve


def draws(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of `function` (an operator overload of torch) draws random numbers.

    One that was told not to, by `train=False` or a probability of 0, draws none.
    """
    if not tagged(function, torch.Tag.nondeterministic_seeded):
        return False
    for position, argument in enumerate(function._schema.arguments):
        given = args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
        if (argument.name == "train" and given is False) or (argument.name in ("dropout_p", "p") and given == 0.0):
            return False
    return True


@functools.lru_cache(maxsize=8192)  # an overload's tags never change, and every operator of a recorded run is asked
def tagged(function: Any, tag: torch.Tag) -> bool:
    """Whether torch says this of an operator overload."""
    return tag in function.tags


def written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments a call of `function` writes to, as given: a tensor, or a list of tensors."""
    for position, name in _write_places(function):
        given = args[position] if position < len(args) else kwargs.get(name)
        if given is not None:
            yield given


@functools.lru_cache(maxsize=4096)
def _write_places(function: Any) -> tuple[tuple[int, str], ...]:
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(function._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def has_effect(node: OpNode) -> bool:
    """Whether a recorded call writes to memory or draws random numbers. An operator of another torch counts as one."""
    try:
        function = resolve(node.op)
    except UnsupportedOperator:
        return True
    return bool(_write_places(function)) or draws(function, node.args, dict(node.kwargs))


def names_written(node: OpNode) -> tuple[str, ...]:
    """Names of the values whose memory a recorded call writes to.

    Raises:
        UnsupportedOperator: this torch has no such operator.
    """
    given = tuple(written(resolve(node.op), node.args, dict(node.kwargs)))
    return tuple(leaf.name for leaf in leaves(given) if isinstance(leaf, Ref))
