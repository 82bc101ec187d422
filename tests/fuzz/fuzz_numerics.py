"""How far a fused result may be from eager's: measured on the program itself, not guessed.

Most operators promise a result to the bit: arithmetic that IEEE rounds once, selections, comparisons, everything on
integers. The others (exp, sums) may differ in their last places. `Watch` runs a program with the results of those, and
the terms of those that sum, moved by as much as that, at random; how far the program's results move is how far a fused
run's may lie from eager's. Where nothing inexact was met, nothing moves, and the results must be equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Rounded once, or not at all, from exact operands, so that one result is right. `add` counts without an alpha: eager
# contracts a + alpha * b. Not here: sqrt, which eager's vector library rounds otherwise, and rsqrt, which eager rounds
# twice for the last few elements in half precision.
EXACT = _words("""
    _reshape_alias _to_copy _unsafe_view abs add add_scalar alias amax amin arange as_strided bitwise_and
    bitwise_not bitwise_or bitwise_xor cat ceil chunk clamp clamp_max clamp_min clone constant_pad_nd
    contiguous copy copysign cummax cummin detach diagonal diff div embedding expand eye fill flip floor
    floor_divide fmax fmin fmod frac full full_like gather hardshrink hardtanh index index_copy index_put
    index_select leaky_relu lift_fresh masked_fill masked_scatter max maximum median min minimum mul
    nan_to_num neg new_full new_ones new_zeros ones ones_like permute reciprocal relu relu6 remainder repeat
    repeat_interleave reshape roll round rsub scalar_tensor scatter select select_scatter sgn sign slice
    slice_scatter sort split split_with_sizes square squeeze stack sub t take_along_dim threshold to topk
    transpose tril triu trunc type_as unbind unfold unsqueeze view where zero zeros zeros_like
""")
JUMPS = _words("""
    ceil copysign floor floor_divide fmod frac hardshrink heaviside index_put median nan_to_num remainder
    round sgn sign sort threshold topk trunc
""")
SUMS = _words("""
    _fused_rms_norm _log_softmax _softmax add addcdiv addcmul addmm baddbmm bmm cumprod cumsum dot expm1
    layer_norm lerp linalg_vector_norm log log1p log_softmax logaddexp logsumexp matmul mean mm mv
    nansum native_group_norm native_layer_norm norm prod rms_norm rsub sinc softmax softplus std std_mean sub sum var
    var_mean
""")
DIVIDES = {"div", "floor_divide", "remainder", "fmod"}
SHIFTS = {"bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__"}
MOST_ULPS = 2.0  # what the operator table's notes allow a primitive


class Unspecified(Exception):
    """The program computes something whose result torch does not specify, or that a last place decides."""


class Watch(TorchDispatchMode):
    """Notices what a run computes inexactly, and moves it by `ulps` units in the last place at most.

    Raises (inside the run):
        Unspecified: a conversion out of range, a shift too far, a jump at an inexact value.
    """

    def __init__(self, ulps: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.ulps = ulps
        self.generator = torch.Generator().manual_seed(seed)
        self._inexact: dict[int, Any] = {}  # storages, kept alive so that no address is used twice

    def inexact(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's memory holds inexact values."""
        return tensor.untyped_storage()._cdata in self._inexact

    def _mark(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._inexact[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        base = name.rstrip("_") if not name.startswith("__") else name
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        soft = any(self.inexact(t) for t in given)
        _specified(base, args, kwargs, given)
        sums = base in SUMS and not (base in ("add", "sub", "rsub") and _alpha(func, args, kwargs) in (None, 1))
        rounds = base not in EXACT or sums
        if rounds and sums and self.ulps and not func._schema.is_mutable:
            args, kwargs = pytree.tree_map(self._moved, (args, kwargs))
        result = func(*args, **kwargs)
        made = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        if soft and (base in JUMPS or not made or any(not t.is_floating_point() for t in made)):
            raise Unspecified(f"{func} of an inexact value")
        narrowed = soft and any(t.dtype.itemsize < max(g.dtype.itemsize for g in given) for t in made)
        for t in made:
            if t.is_floating_point() and (soft or rounds):
                view = _is_view(func) or torch._debug_has_internal_overlap(t)  # of which `meshgrid` tells nothing
                if self.ulps and (rounds or narrowed) and not view:
                    t.copy_(self._moved(t, _root(base, args)))
                    if (
                        base == "gelu"
                    ):  # half of x times 1 + erf, which is off by a last place of 1 where that is near 0
                        t.add_(self._moved(given[0] / 2) - given[0] / 2)
                self._mark(t)
        return result

    def _moved(self, t: Any, times: float = 1.0) -> Any:
        if not isinstance(t, torch.Tensor) or not t.is_floating_point() or not t.numel():
            return t
        step = (torch.rand(t.shape, generator=self.generator, dtype=torch.float64) * 2 - 1) * self.ulps * times
        return (t.double() * (1 + step * torch.finfo(t.dtype).eps)).to(t.dtype)


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _root(base: str, args: Any) -> float:
    """How many times the rounding of a norm's sum its own is: the root of a power below 1 is a power above it."""
    power = args[1] if base in ("norm", "linalg_vector_norm") and len(args) > 1 else None
    return 1 / abs(power) if isinstance(power, (int, float)) and 0 < abs(power) < 1 else 1.0


def _alpha(func: Any, args: Any, kwargs: Any) -> Any:
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "alpha":
            return args[position] if position < len(args) else kwargs.get("alpha")
    return None


def _specified(base: str, args: Any, kwargs: Any, given: list[torch.Tensor]) -> None:
    """Raises Unspecified where torch's result depends on the processor."""
    if base in ("_to_copy", "to"):
        _fits(given[0], kwargs.get("dtype"))
    if base in ("copy", "fill", "index_put", "scatter", "masked_fill", "masked_scatter") and len(given) > 1:
        _fits(given[-1], given[0].dtype)
    if base in ("sum", "prod", "cumsum", "cumprod", "mean") and given:
        _fits(given[0], kwargs.get("dtype"))
    if base == "gelu" and any(t.is_floating_point() and bool(t.isinf().any()) for t in given):
        raise Unspecified("torch's vector library makes NaN of the gelu of infinity")
    if base in ("var_mean", "std_mean") and bool(given[0].isinf().any()):
        raise Unspecified("torch's running mean of a row with an infinity is that or NaN, by the order of the terms")
    if base == "prod" and given[0].is_floating_point() and _leaves_range(given[0], args[1:2]):
        raise Unspecified("a product may leave the range of floats on the way, by the order of its factors")
    if base == "sinc" and bool(((given[0] != 0) & (given[0] == given[0].double().round())).any()):
        raise Unspecified("sinc of a whole number is 0, and what torch returns is what rounding leaves of that")
    if base in ("median", "nanmedian") and torch._debug_has_internal_overlap(given[0]):
        raise Unspecified("torch sorts overlapping memory in place, and not to the same end each time")
    if base in ("erf", "fmod", "remainder") and any(
        (t.abs() < torch.finfo(t.dtype).tiny).any() for t in _floats(given)
    ):
        raise Unspecified("torch's vector library takes a subnormal for 0 here, its scalar code does not")
    whole = [t for t in given if t.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)]
    if base in DIVIDES and len(whole) and any((t == torch.iinfo(t.dtype).min).any() for t in whole):
        raise Unspecified("the lowest integer divided by -1 does not exist")
    if base in SHIFTS:
        by = args[1]
        bits = given[0].dtype.itemsize * 8
        if not isinstance(by, torch.Tensor):
            by = torch.tensor(by)
        if bool(((by < 0) | (by >= bits)).any()):
            raise Unspecified("a shift by more bits than there are")


def _floats(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Those of floating point, without what is exactly 0."""
    return [t[t != 0] for t in tensors if t.is_floating_point()]


def _leaves_range(factors: torch.Tensor, dims: Any) -> bool:
    """Whether the large or the small ones among factors alone overflow or underflow."""
    sizes = factors.double().abs().log2()
    sizes = torch.where(sizes.isfinite(), sizes, 0.0)
    most = 1020 if factors.dtype is torch.float64 else 124
    by_sign = (sizes.clamp(min=0), -sizes.clamp(max=0))
    one = dims and isinstance(dims[0], int) and factors.ndim
    return any(bool((s.sum(dims[0]) if one else s.sum()).gt(most).any()) for s in by_sign)


def _fits(value: torch.Tensor, dtype: torch.dtype | None) -> None:
    """A float out of an integer's range converts to anything."""
    if dtype is None or dtype.is_floating_point or dtype is torch.bool or not value.is_floating_point():
        return
    limits = torch.iinfo(dtype)
    inside = (value.double() > float(limits.min) - 1) & (value.double() < float(limits.max))
    if not bool(inside.all()):
        raise Unspecified(f"a float outside the range of {dtype}")
