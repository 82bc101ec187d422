"""The pointwise parts of sampling from logits; sort, top-k and scatter between them are library operators.

Sources: temperature and top-k, Fan et al. 2018; top-p, Holtzman et al. 2020; min-p, Nguyen et al. 2024.
"""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern

_REMOVED = float("-inf")


def _logits(b: GraphBuilder, temperature: float | None, dtype: torch.dtype) -> Ref:
    x = b.input("logits", dtype, (symbol("s0"), symbol("s1")))
    return x if temperature is None else b.call("div.Tensor", x, temperature)


def _removed(b: GraphBuilder, x: Ref, value: Ref, least: Ref) -> Ref:
    """-inf where `value` is below `least`, else `x`."""
    return b.call(
        "masked_fill.Scalar", x, b.compare("lt.Tensor", value, least), _REMOVED, dtype=b.specs[x.name].dtype,
        name="output",
    )  # fmt: skip


def create_min_p_pattern(
    min_p: float = 0.1,
    temperature: float | None = None,
    filters: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> SubGraph:
    """Tokens less probable than min_p times the most probable one.

    Args:
        min_p: the share.
        temperature: what the logits are divided by before, or None.
        filters: True to make those logits -inf; False for the mask of them, before a library call keeps some.
        dtype: of the logits.
        device: device type of all values.

    Returns:
        a SubGraph with the input "logits" [s0, s1] (sequences, tokens) and the output "output" (logits or a bool mask)
        and, without filtering, "probabilities", all [s0, s1].
    """
    b = GraphBuilder(device)
    x = _logits(b, temperature, dtype)
    likely = b.call("softmax.int", x, -1, name="probabilities")
    least = b.call("mul.Tensor", b.per_row("amax.default", likely), min_p)
    if filters:
        return b.graph(_removed(b, x, likely, least)).with_pattern(_with_temperature("min-p", temperature))
    removed = b.compare("lt.Tensor", likely, least, name="output")
    return b.graph(removed, likely).with_pattern(_with_temperature("min-p", temperature))


def create_top_k_pattern(
    temperature: float | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """Logits below the k-th highest become -inf.

    Args:
        temperature: what the logits are divided by before, or None.
        dtype: of the logits.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "logits" [s0, s1] (sequences, tokens) and "kth" [s0, 1], and the output "output"
        [s0, s1].
    """
    b = GraphBuilder(device)
    x, kth = _logits(b, temperature, dtype), b.input("kth", dtype, (symbol("s0"), 1))
    return b.graph(_removed(b, x, x, kth)).with_pattern(_with_temperature("top-k", temperature))


def create_top_p_pattern(
    top_p: float = 0.9, order: str = "ascending", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """Which of the sorted tokens are outside of the most probable ones that add up to top_p.

    Args:
        top_p: the probability that is kept.
        order: "ascending" for cumulative <= 1 - top_p; "descending" for cumulative - own > top_p; "crossing" for
            cumulative > top_p, where the one that crosses is put back later.
        dtype: of the logits.
        device: device type of all values.

    Returns:
        a SubGraph with the input "logits" [s0, s1] (sequences, sorted tokens) and the output "output", a bool mask
        [s0, s1].
    """
    b = GraphBuilder(device)
    likely = b.call("softmax.int", _logits(b, None, dtype), -1)
    running = b.call("cumsum.default", likely, -1)
    if order == "ascending":
        removed = b.compare("le.Scalar", running, 1.0 - top_p, name="output")
    else:
        before = b.call("sub.Tensor", running, likely) if order == "descending" else running
        removed = b.compare("gt.Scalar", before, top_p, name="output")
    return b.graph(removed).with_pattern("top-p")


def _with_temperature(name: str, temperature: float | None) -> str:
    return name if temperature is None else f"temperature+{name}"


def _removes(*numbers: float) -> bool:
    """Filtered logits become -inf, the last number; another number filled in is something else."""
    return numbers[-1] == _REMOVED


PATTERNS = (
    *(
        Pattern(
            _with_temperature("min-p", temperature),
            functools.partial(create_min_p_pattern, 0.1, temperature, filters),
            holds=_removes if filters else None,
        )
        for temperature, filters in itertools.product((0.7, None), (True, False))
    ),
    *(
        Pattern(
            _with_temperature("top-k", temperature),
            functools.partial(create_top_k_pattern, temperature),
            holds=_removes,
        )
        for temperature in (0.7, None)
    ),
    *(
        Pattern("top-p", functools.partial(create_top_p_pattern, 0.9, order))
        for order in ("ascending", "descending", "crossing")
    ),
)
