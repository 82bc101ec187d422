"""Random programs of views, joins, arithmetic and reductions, of one tensor.

All values are small integers in float32, so every result is exact and no tolerance is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from graphs import LENGTH

Step = Callable[[torch.Tensor], torch.Tensor]
OTHER_LENGTH = 3


def start(length: int) -> torch.Tensor:
    """Integers from -3 to 3, of shape [2, length, 4, 6]."""
    return ((torch.arange(48 * length) * 37) % 7 - 3).to(torch.float32).view(2, length, 4, 6)


def step(choose: random.Random, shapes: Sequence[torch.Size]) -> Step | None:
    """One operator for tensors of `shapes`: the same program's value at two lengths."""
    rank = len(shapes[0])
    d, e = choose.randrange(rank), choose.randrange(rank)
    sizes = [s[d] for s in shapes]
    static = len(set(sizes)) == 1
    a = choose.randrange(sizes[0]) if static else 0
    a = a if a % LENGTH else 0  # a position of LENGTH would be taken for the size that varies
    b = choose.randrange(a, sizes[0]) + 1 if static else 0
    options: dict[str, Step | None] = {
        "transpose": lambda x: x.transpose(d, e),
        "flatten": (lambda x: x.flatten(d, d + 1)) if d + 1 < rank and rank > 2 else None,
        "unflatten": (lambda x: x.unflatten(d, (x.shape[d] // 2, 2))) if not any(n % 2 for n in sizes) else None,
        "unsqueeze": (lambda x: x.unsqueeze(d)) if rank < 5 else None,
        "slice": (lambda x: x.narrow(d, a, b - a)) if static else None,
        "stride": (lambda x: x[(slice(None),) * d + (slice(a, None, 2),)]) if static else None,
        "cat": (lambda x: torch.cat((-x, x + 1.0), d)) if max(sizes) < 40 else None,
        "select": (lambda x: x.select(d, a)) if static and rank > 2 else None,
        "chunk": (lambda x: x.chunk(2, d)[0] - x.chunk(2, d)[1]) if not any(n % 2 for n in sizes) else None,
        "where": lambda x: torch.where(x > 0, x, 2.0),
        "arithmetic": lambda x: x * 2.0 - 1.0,
        "highest": lambda x: x - x.amax(-1, keepdim=True),
        "total": (lambda x: x + x.sum(-1, keepdim=True)) if max(s[-1] for s in shapes) < 50 else None,
        "row": (lambda x: x.amax(-1)) if rank > 2 else None,
        "contiguous": lambda x: x.contiguous(),
    }
    return options[choose.choice(list(options))]


def program(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of a tensor like `start(...)`, made of up to eight operators."""
    choose = random.Random(seed)
    steps: list[Step] = []
    shapes = [start(n).shape for n in (LENGTH, OTHER_LENGTH)]
    for _ in range(choose.randrange(2, 9)):
        taken = step(choose, shapes)
        if taken is None:
            continue
        made = [taken(torch.empty(s)).shape for s in shapes]
        if any(a == b and a % LENGTH == 0 for a, b in zip(*made, strict=True)):
            continue
        steps.append(taken)
        shapes = made

    def run(x: torch.Tensor) -> torch.Tensor:
        for taken in steps:
            x = taken(x)
        return (x * 1.0).contiguous()

    return run
