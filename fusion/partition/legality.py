"""Whether a region is one kernel: for certain by its structure, else by a trial, once per structure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from fusion import faults
from fusion.kernels.lower import check
from fusion.partition.legality_fast_path import Plain
from fusion.partition.node_facts import Facts, No
from fusion.partition.regions import Region
from fusion.patterns.errors import LoweringError
from fusion.patterns.extents import agreeing
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref, map_leaves
from fusion.refusal import CODES

Judge = Callable[[SubGraph], object]  # raises LoweringError where a SubGraph is not one kernel

# Codes of a LoweringError that go by another name in a report.
_LOWERING_CODES = {"domain": "different_domain", "index": "operator_use", "too_large": "too_deep"}


class Legality:
    """Tells which regions of one recording are one kernel.

    Args:
        facts: of the recording.
        judge: raises LoweringError for a SubGraph that is not one kernel; `kernels.lower.check` by default. Asked once
            per structure, and only where the structure leaves the answer open.
    """

    def __init__(self, facts: Facts, judge: Judge | None = None) -> None:
        self.facts = facts
        self.judge = judge or check
        self.plain = Plain(facts)
        self._known: dict[Hashable, No | None] = {}
        self._numbers: dict[Hashable, int] = {}
        self._calls: dict[int, int] = {}

    def __call__(self, region: Region) -> No | None:
        """Why a region is not one kernel, or None."""
        if self.plain.is_kernel(region):
            return None
        key = self._structure(region)
        if key not in self._known:
            self._known[key] = self._verdict(region.subgraph)
        return self._known[key]

    def _verdict(self, graph: SubGraph) -> No | None:
        try:
            self.judge(agreeing(graph))
        except LoweringError as error:
            code = _LOWERING_CODES.get(error.code, error.code)
            return (code if code in CODES else "not_fusable", error.message)
        except Exception as error:
            return faults.CODE, faults.noted(error, "+".join(graph.ops))
        return None

    def _structure(self, region: Region) -> tuple[int, ...]:
        """What regions have in common that differ in the names of their values only.

        Cheaper than a digest, which tells also that regions over other size symbols are alike.
        """
        facts, spec = self.facts, self.facts.graph.spec
        place = {name: k for k, name in enumerate(region.inputs)}
        key = [self._number(spec[name]) for name in region.inputs]
        for i in region.nodes:
            key.append(self._call(i))
            key += [place[name] for name in facts.refs[i]]
            for name in facts.op(i).outputs:
                place[name] = len(place)
        return (len(region.inputs), *key, *(place[name] for name in region.outputs))

    def _call(self, i: int) -> int:
        """The number of what node `i` does, whichever values it reads."""
        if i not in self._calls:
            node, spec = self.facts.op(i), self.facts.graph.spec
            made = tuple(spec[name] for name in node.outputs)
            call = (node.op, map_leaves(_nameless, node.args), map_leaves(_nameless, node.kwargs), made)
            try:
                self._calls[i] = self._number(call)
            except TypeError:  # an argument that cannot be hashed: alike to itself only
                self._calls[i] = self._number((node.op, i))
        return self._calls[i]

    def _number(self, item: Hashable) -> int:
        return self._numbers.setdefault(item, len(self._numbers))


def _nameless(leaf: Any) -> tuple[type, Any]:
    """A leaf without the value's name, and apart from equal ones of other types: 1, 1.0 and True."""
    return (Ref, None) if isinstance(leaf, Ref) else (type(leaf), leaf)
