"""Making a failing program small: what can be left out while it fails is left out.

hypothesis shrinks choices, of which a program has hundreds; a program is a value, and leaving out its parts takes some
fifty checks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from fuzz_program import Blocks, Group, Program

MOST_SECONDS = 120.0  # what takes longer to shrink is reported as small as it got by then
_NAME = re.compile(r"\b[vxbp]\d+\b")


def shrunk(program: Program, fails: Callable[[Program], bool], seconds: float = MOST_SECONDS) -> Program:
    """A program without the steps, results, inputs and properties that `program` can do without and still fail.

    Args:
        program: one that fails.
        fails: whether a program does; it is asked about broken ones too, which do not.
        seconds: after so many no other program is asked about.
    """
    last = time.monotonic() + seconds
    going = True
    while going:
        going = False
        for smaller in _smaller(program):
            if time.monotonic() > last:
                break
            if fails(smaller):
                program, going = smaller, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with one part less, or one property simpler; those that leave out most come first."""
    for k in reversed(range(len(program.steps))):
        yield replace(program, steps=program.steps[:k])
        yield replace(program, steps=program.steps[:k] + program.steps[k + 1 :])
    if program.blocks.count:
        yield replace(program, blocks=Blocks())
        yield replace(program, blocks=replace(program.blocks, count=program.blocks.count - 1))
        yield replace(program, blocks=replace(program.blocks, carry=None))
        if program.blocks.within:
            yield replace(program, blocks=replace(program.blocks, within=""))
        yield replace(program, blocks=replace(program.blocks, within=None))
    names = dict.fromkeys(_NAME.findall(program.result))
    if program.result not in names:
        yield from (replace(program, result=name) for name in names)
        yield from (replace(program, result=f"({', '.join(pair)})") for pair in _pairs(list(names)))
    used = set(_NAME.findall(" ".join([program.result, *(s.text for s in program.steps)])))
    used |= {n for x in program.inputs for n in _NAME.findall(x.alias)}
    for x in program.inputs:
        if x.name not in used and len(program.inputs) > 1:
            yield _without(program, x.name)
    for s in program.state:
        if s.name not in used:
            yield replace(program, state=tuple(t for t in program.state if t is not s))
    if any(g.kind != "plain" for g in program.groups):
        yield replace(program, groups=tuple(Group(x.name, "plain", (x.name,)) for x in program.inputs))
    for kind in ("inputs", "state"):
        tensors = getattr(program, kind)
        for k, tensor in enumerate(tensors):
            for simpler in (replace(tensor, layout="dense"), replace(tensor, data="normal")):
                if simpler != tensor:
                    yield replace(program, **{kind: (*tensors[:k], simpler, *tensors[k + 1 :])})
    if program.cache and not any("cache." in s.text for s in program.steps):
        yield replace(program, cache=False)
    if program.number and not any("n0" in s.text for s in program.steps):
        yield replace(program, number=False)
    for k in range(len(program.events)):
        yield replace(program, events=program.events[:k] + program.events[k + 1 :])
    if program.around and not program.events:
        yield replace(program, around=False)
    if program.hostile:
        yield replace(program, hostile=False)
    if program.min_nodes > 1:
        yield replace(program, min_nodes=1)


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    if len(names) > 2:
        yield from ((a, b) for k, a in enumerate(names) for b in names[k + 1 :])


def _without(program: Program, name: str) -> Program:
    groups = (replace(g, inputs=tuple(i for i in g.inputs if i != name)) for g in program.groups)
    inputs = tuple(x for x in program.inputs if x.name != name)
    return replace(program, inputs=inputs, groups=tuple(g for g in groups if g.inputs))
