"""Loop nests that need nothing of each other, run by one launch."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.kernels.loops import Argument, LoopNest, Output, SizeParameter, head_text
from fusion.patterns.errors import GraphError


@dataclass(frozen=True)
class Bundle:
    """A kernel of several loop nests, each with an iteration space of its own.

    No part reads what another writes, so they may run in any order and at the same time.

    Attributes:
        name: an identifier made of the ops it fuses.
        subgraph: digest of the SubGraph it computes.
        inputs, outputs: tensors, in call order.
        parts: the loop nests; each lists those of the tensors that it reads and writes, by the bundle's names, and all
            of the bundle's sizes.
        sizes: the size symbols, in the order they are passed to the kernel.
        numerics: "eager" or "fp32".
        origin: as in `LoopNest`; no part of the digest.
    """

    name: str
    subgraph: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Output, ...]
    parts: tuple[LoopNest, ...]
    sizes: tuple[SizeParameter, ...]
    numerics: str = "eager"
    origin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        verify(self)

    def __str__(self) -> str:
        lines = head_text(self.name, self.numerics, self.inputs, self.outputs, self.sizes)
        for k, part in enumerate(self.parts):
            lines += [f"  part {k}:", *(f"  {line}" for line in part.loops())]
        return "\n".join(lines)


Nest = LoopNest | Bundle  # whatever is one kernel


def parts_of(nest: Nest) -> tuple[LoopNest, ...]:
    """The loop nests that a launch runs: a LoopNest is its own only part."""
    return nest.parts if isinstance(nest, Bundle) else (nest,)


def verify(bundle: Bundle) -> None:
    """Rejects a malformed Bundle; each part was checked when it was made.

    Raises:
        GraphError: there are fewer than two parts; a part has other sizes or numerics than the bundle, or a tensor that
            is none of the bundle's; an output is no part's, or of two parts, or a part does not store what is its own.
    """
    if len(bundle.parts) < 2:
        raise GraphError(f"{bundle.name}: a bundle of {len(bundle.parts)} parts; one nest alone is a LoopNest.")
    writer: dict[str, int] = {}
    for k, part in enumerate(bundle.parts):
        if part.sizes != bundle.sizes or part.numerics != bundle.numerics:
            raise GraphError(f"{bundle.name}: part {k} has other sizes or numerics than the bundle.")
        foreign = [a.name for a in part.inputs if a not in bundle.inputs]
        foreign += [o.name for o in part.outputs if o not in bundle.outputs]
        if foreign:
            raise GraphError(f"{bundle.name}: part {k} uses {foreign}, which are no tensors of the bundle.")
        silent = {o.name for o in part.outputs} - {s.output for s in part.stores}
        if silent:
            raise GraphError(f"{bundle.name}: part {k} does not store {sorted(silent)}.")
        for output in part.outputs:
            if output.name in writer:
                raise GraphError(f"{bundle.name}: the parts {writer[output.name]} and {k} both write {output.name}.")
            writer[output.name] = k
    lost = [o.name for o in bundle.outputs if o.name not in writer]
    if lost:
        raise GraphError(f"{bundle.name}: no part writes {lost}.")
