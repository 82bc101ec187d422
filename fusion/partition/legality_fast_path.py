"""Regions that are one kernel for certain, so that no trial lowering is due.

Without reductions, lowering refuses a region for its calls (`Facts.boundary` asked the same of each), for outputs that
lie in no common loops, for an index that cannot be divided, and for needing too many elements. The first two are looked
up here by lowering's own functions, the third cannot be where no view divides, and the fourth is counted.
"""

from __future__ import annotations

import functools

from fusion.kernels.inline import LIMIT
from fusion.kernels.iteration_space import column_space, memory_order
from fusion.partition import cost_model
from fusion.partition.node_facts import Facts
from fusion.partition.regions import Region
from fusion.patterns import ops
from fusion.patterns.errors import LoweringError
from fusion.patterns.ops.views import PERMUTATIONS, SAME_ELEMENTS, SELECTIONS
from fusion.patterns.specs import TensorSpec

# Views whose index map adds, takes away or reorders; it never divides.
_PICKING = frozenset((*SAME_ELEMENTS, *SELECTIONS, *PERMUTATIONS))

_FEW = LIMIT // 8  # elements counted before the judge is asked: counting on would cost what lowering does

Way = tuple[int, ...]  # the calls through which an output's element leads to one of an operand at another index


class Plain:
    """Tells regions that are one kernel for certain.

    Args:
        facts: of the recording.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._common: dict[tuple[TensorSpec, ...], bool] = {}

    def is_kernel(self, region: Region) -> bool:
        """Whether a region lowers for certain; False leaves it open."""
        facts = self.facts
        if len(region.nodes) > cost_model.MOST_OPERATORS or not all(_only_picks(facts.op(i).op) for i in region.nodes):
            return False
        specs = tuple(dict.fromkeys(facts.graph.spec[name] for name in region.outputs))
        return self._have_loops(specs) and self._needs_few(region, specs)

    def _have_loops(self, specs: tuple[TensorSpec, ...]) -> bool:
        """Whether outputs like these have a common iteration space."""
        if specs not in self._common:
            try:
                column_space(specs, [memory_order("", spec) for spec in specs])
                self._common[specs] = True
            except LoweringError:
                self._common[specs] = False
        return self._common[specs]

    def _needs_few(self, region: Region, specs: tuple[TensorSpec, ...]) -> bool:
        """Whether a kernel surely computes few different elements of its values at one point of its loops.

        A value is needed at one index for each way that leads to it from an output; ways that differ may yet end at the
        same index.
        """
        facts, spec = self.facts, self.facts.graph.spec
        ways: dict[str, set[Way]] = {name: {(specs.index(spec[name]),)} for name in region.outputs}
        count = len(ways)
        for i in reversed(region.nodes):
            node = facts.op(i)
            for number, made in enumerate(node.outputs):
                for name in facts.refs[i][:1] if facts.view[i] else facts.refs[i]:
                    known = ways.setdefault(name, set())
                    count -= len(known)
                    if spec[name].shape == spec[made].shape and not facts.view[i]:
                        known |= ways.get(made, set())
                    else:
                        known.update((*way, i, number) for way in ways.get(made, ()))
                    count += len(known)
            if count > _FEW:
                return False
        return True


@functools.cache
def _only_picks(op: str) -> bool:
    """Whether a call computes element by element, or is a view whose index map never divides."""
    row = ops.lookup(op)
    if row is None:
        return False
    return row.kind is ops.Kind.POINTWISE or (row.kind is ops.Kind.VIEW and row.index in _PICKING)
