"""Which tensors share memory: groups that are written to, and what a plan meets on its way."""

from __future__ import annotations

import torch

from fusion.runtime.aliasing import Memory, disjoint, storages

NONE: frozenset[int] = frozenset()


def test_a_group_may_share_memory_within_and_with_nobody_else() -> None:
    x, y, z = (torch.zeros(4) for _ in range(3))
    assert disjoint([[x, x[1:]], [y]], [z], NONE)
    assert not disjoint([[x], [x[1:]]], [], NONE), "two groups"
    assert not disjoint([[x]], [z, x[:1]], NONE), "another tensor of the call"
    assert not disjoint([[x]], [], storages([x[2:]])), "one that is held elsewhere"
    assert disjoint([], [x, x], storages([x])), "nothing is written to"


def test_views_have_the_storage_of_their_base() -> None:
    x = torch.zeros(4, 4)
    assert storages([x, x.t(), x[1], x.detach()]) == storages([x])
    assert len(storages([x, x.clone()])) == 2


def test_a_tensor_is_met_in_the_group_it_was_recorded_in() -> None:
    written, other, held = (torch.zeros(4) for _ in range(3))
    memory = Memory([[written]], [other], storages([held]))
    assert memory.may_alias(written[1:], 0) and not memory.may_alias(written, -1)
    assert memory.may_alias(other, -1) and not memory.may_alias(other, 0)
    assert memory.may_alias(held, -1) and not memory.may_alias(held, 0), "a parameter is in no written group"


def test_memory_that_is_met_first_belongs_to_its_group_from_then_on() -> None:
    written, met = torch.zeros(1), torch.zeros(4)
    memory = Memory([[written]], [], NONE)
    assert memory.may_alias(met, 1) and memory.may_alias(met[2:], 1)
    assert not memory.may_alias(met, -1) and not memory.may_alias(met, 0)
