"""Rotary tables: the cosines and sines that RoPE turns by, from positions and inverse frequencies (Su et al. 2021)."""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import Dim, symbol
from .pattern import GraphBuilder, Pattern

_LAYOUTS = ("halves", "pairs", "once")


def create_rotary_tables_pattern(
    half: int = 64,
    scaling: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "halves",
    product: bool = True,
) -> SubGraph:
    """cos = cos(angles) * scaling and sin = sin(angles) * scaling, where angles = positions x inv_freq.

    Args:
        half: how many frequencies there are, half a head's size.
        scaling: factor of both tables (attention scaling, as in YaRN), or None.
        dtype: of the tables; angles are float32.
        device: device type of all values.
        layout: "halves" for the angles twice, one after another; "pairs" for each angle twice; "once".
        product: True for positions and frequencies as inputs; False for their product as the input, where a model
            takes it by a matrix product.

    Returns:
        a SubGraph with inputs "positions" [s0, s1, 1] and "inv_freq" [half], or "angles" [s0, s1, half], all float32,
        and the outputs "cos" and "sin" [s0, s1, half], twice as wide unless "once".
    """
    b = GraphBuilder(device)
    batch, length = symbol("s0"), symbol("s1")
    if product:
        positions = b.input("positions", torch.float32, (batch, length, 1))
        angles = b.call("mul.Tensor", positions, b.input("inv_freq", torch.float32, (half,)))
    else:
        angles = b.input("angles", torch.float32, (batch, length, half))
    wide: tuple[Dim, ...] = (batch, length, 2 * half)
    if layout == "halves":
        angles = b.call("cat.default", (angles, angles), -1, shape=wide)
    elif layout == "pairs":
        angles = b.call("repeat_interleave.self_int", angles, 2, -1, shape=wide)
    return b.graph(*(_table(b, fn, angles, scaling, dtype) for fn in ("cos", "sin"))).with_pattern("rotary tables")


def _table(b: GraphBuilder, fn: str, angles: Ref, scaling: float | None, dtype: torch.dtype) -> Ref:
    is_wide = dtype is torch.float32
    made = b.call(f"{fn}.default", angles, name=fn if is_wide and scaling is None else None)
    if scaling is not None:
        made = b.call("mul.Tensor", made, scaling, name=fn if is_wide else None)
    return b.convert(made, dtype, name=fn)


PATTERNS = tuple(
    Pattern(
        "rotary tables",
        functools.partial(create_rotary_tables_pattern, scaling=scaling, layout=layout, product=product),
        whole=True,
    )
    for product, layout, scaling in itertools.product((True, False), _LAYOUTS, (0.5, None))
    if product or layout != "once" or scaling is not None
)
