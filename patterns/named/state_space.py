"""State-space models: the pointwise parts around the recurrence (Gu and Dao 2023, Mamba; Dao and Gu 2024, Mamba-2).

h' = exp(step * A) * h + step * B * x and y = C h' + D * x; the step is softplus(dt + bias), A is often -exp(A_log).
"""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern

_STEPS = ("bias", "softplus", "given")  # given without a logarithm is any exp(a * b) and has no name


def create_state_space_decay_pattern(
    step: str = "bias",
    logarithm: bool = False,
    clamp: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> SubGraph:
    """decay = exp(step * A), with step = softplus(dt + bias).

    Args:
        step: "bias" for softplus(dt + bias); "softplus" for softplus(dt), where the bias is added before; "given" for
            a step computed elsewhere.
        logarithm: whether the input "A" is the logarithm of -A.
        clamp: whether a step that is computed here is kept between two numbers, as in Mamba-2.
        dtype: of dt; all else is float32.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "dt" [s0, s1] (tokens, heads), "A" [s1] and (for "bias") "bias" [s1], and the outputs
        "decay" [s0, s1] and, unless it is an input, "step" [s0, s1], both of `dtype`.
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    dt, a = b.input("dt", dtype, shape), b.input("A", torch.float32, shape[-1:])
    if step == "bias":
        dt = b.call("add.Tensor", dt, b.input("bias", dtype, shape[-1:]))
    width = dt if step == "given" else _step(b, dt, clamp)
    made = _decay(b, width, a, logarithm, "decay" if dtype is torch.float32 else None)
    outputs = (b.convert(made, dtype, name="decay"), *(() if width == dt else (width,)))
    return b.graph(*outputs).with_pattern("state-space decay")


def create_state_space_step_pattern(
    clamp: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """step = softplus(dt + bias), where the decay is computed elsewhere.

    Args:
        clamp: whether the step is kept between two numbers, as in Mamba-2.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "dt" [s0, s1] (tokens, channels) and "bias" [s1], and the output "step" [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    dt = b.call("add.Tensor", b.input("dt", dtype, shape), b.input("bias", dtype, shape[-1:]))
    return b.graph(_step(b, dt, clamp)).with_pattern("state-space step")


def create_state_space_update_pattern(
    logarithm: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """state * exp(step * A) + step * B * x: one step of the recurrence.

    Args:
        logarithm: whether the input "A" is the logarithm of -A.
        dtype: of all values but A, which is float32.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "state" [s0, s1, s2] (batch, channels, states), "step" and "x" [s0, s1, 1], "A"
        [s1, s2] and "B" [s0, 1, s2], and the output "output" [s0, s1, s2] of `dtype`.
    """
    b = GraphBuilder(device)
    batch, channels, states = (symbol(f"s{i}") for i in range(3))
    state = b.input("state", dtype, (batch, channels, states))
    step, x = (b.input(name, dtype, (batch, channels, 1)) for name in ("step", "x"))
    a, weight = b.input("A", torch.float32, (channels, states)), b.input("B", dtype, (batch, 1, states))
    kept = b.call("mul.Tensor", state, _decay(b, step, a, logarithm))
    added = b.call("mul.Tensor", b.call("mul.Tensor", step, weight), x)
    made = b.call("add.Tensor", kept, added, name="output" if dtype is torch.float32 else None)
    return b.graph(b.convert(made, dtype, name="output")).with_pattern("state-space update")


def create_state_space_output_pattern(dtype: torch.dtype = torch.float32, device: str = "cpu") -> SubGraph:
    """(y + x * D) * silu(z): the skip connection and the gate.

    Args:
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "y", "x" and "z" [s0, s1] and "D" [s1], and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    y, x, z = (b.input(name, dtype, shape) for name in ("y", "x", "z"))
    d = b.input("D", dtype, shape[-1:])
    whole = b.call("add.Tensor", y, b.call("mul.Tensor", x, d))
    return b.graph(b.call("mul.Tensor", whole, b.call("silu.default", z), name="output")).with_pattern(
        "state-space output"
    )


def _step(b: GraphBuilder, dt: Ref, clamp: bool) -> Ref:
    if not clamp:
        return b.call("softplus.default", dt, name="step")
    return b.call("clamp.default", b.call("softplus.default", dt), 0.001, 0.1, name="step")


def _decay(b: GraphBuilder, step: Ref, a: Ref, logarithm: bool, name: str | None = None) -> Ref:
    rate = b.call("neg.default", b.call("exp.default", a)) if logarithm else a
    return b.call("exp.default", b.call("mul.Tensor", step, rate), name=name)


PATTERNS = (
    *(
        Pattern("state-space update", functools.partial(create_state_space_update_pattern, logarithm))
        for logarithm in (False, True)
    ),
    Pattern("state-space output", create_state_space_output_pattern, vectors=("D",)),
    *(
        Pattern(
            "state-space decay",
            functools.partial(create_state_space_decay_pattern, step, logarithm, clamp),
            vectors=("bias",),
        )
        for step, logarithm, clamp in itertools.product(_STEPS, (False, True), (False, True))
        if step != "given" or (logarithm and not clamp)
    ),
    *(
        Pattern("state-space step", functools.partial(create_state_space_step_pattern, clamp), vectors=("bias",))
        for clamp in (False, True)
    ),
)
