"""The acceptance rule: whether a fused result is as good as eager's, measured against double precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

EAGER_FACTOR = 1.5  # how much worse than eager's worst error a fused kernel may be
_MOST_ELEMENTS = 1 << 20  # that are compared at once: comparing takes some 50 bytes for each
_EXPONENT_BITS = 0x7FF0000000000000  # of an IEEE double


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `accept` found.

    Attributes:
        ok: whether the fused result is accepted; for floating outputs that were compared,
            `error_fused <= 1.5 * error_eager + ulp`.
        error_fused: |fused - exact| at the element that decides: the one where it exceeds its ulp by most.
        error_eager: the greatest |eager - exact| over all elements.
        ulp: the unit in the last place of the output dtype at the exact value of the deciding element.
        reason: empty when accepted; else a sentence that says what differs.
    """

    ok: bool
    error_fused: float = 0.0
    error_eager: float = 0.0
    ulp: float = 0.0
    reason: str = ""


def accept(fused: Tensor, eager: Tensor, exact: Tensor) -> Verdict:
    """Compares a fused result with eager's, both against the exact one.

    For floating outputs, for every element i:

        |fused[i] - exact[i]| <= 1.5 * max_k |eager[k] - exact[k]| + ulp(exact[i])

    The first term is the quality eager has on this data. It is a maximum over all elements, because where along
    the tensor eager's rounding errors cancel is chance. The second is the granularity of the output: a result that
    is one of the two representable neighbours of the exact value is off by less than the gap between them, which is
    ulp(exact[i]), so a kernel that rounds faithfully passes even where eager happens to be exact, and no smaller
    slack has this property. The ulp is taken per element, so the slack of a large element never covers a small one.

    NaN must be where eager has NaN and inf where eager has inf, with its sign; these elements take no part in the
    measure (eager may overflow where the exact value is finite). Where eager is finite but the exact value is not,
    eager's value stands for the exact one. Integers, bools and complex numbers must equal eager's.

    Args:
        fused, eager: results of any shape and of one dtype.
        exact: the same in float64 (`reference.run_fp64`), or in `eager`'s dtype where that is not floating.

    Returns:
        the Verdict; shape, dtype and strides must equal eager's (strides of dimensions longer than 1 only: the
        others say nothing about where an element lies).
    """
    layout = layout_differs(fused, eager)
    return Verdict(False, reason=layout) if layout else accept_parts([(fused, eager, exact)])


def accept_parts(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Verdict:
    """`accept` for results that come in parts, as if they were whole; layouts are left to the caller.

    Args:
        parts: (fused, eager, exact) of each part, as `accept` takes them; one is compared before the next is asked for.
    """
    worst, error_eager = _Measured(), 0.0
    for number, part in enumerate(parts):
        for (piece, eagers, exacts), at in pieces(*part):
            measured = _compare(piece, eagers, exacts)
            if measured.differs:
                return Verdict(False, reason=measured.differs)
            error_eager = max(error_eager, measured.error_eager)
            if measured.excess > worst.excess:
                where = [i + start for i, start in zip(measured.at, at, strict=True)]
                worst = replace(measured, at=where, part=number)
    verdict = Verdict(True, max(worst.error_fused, 0.0), error_eager, worst.ulp)
    if verdict.error_fused <= EAGER_FACTOR * error_eager + worst.ulp:
        return verdict
    place = f"{worst.at}" + (f" of part {worst.part}" if worst.part else "")
    reason = (
        f"The error to float64 is {worst.error_fused:.3g} at {place}, more than {EAGER_FACTOR:g} times eager's worst, "
        f"{error_eager:.3g}, plus one ulp of {worst.dtype}, {worst.ulp:.3g}."
    )
    return replace(verdict, ok=False, reason=reason)


def accept_all(outputs: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Verdict:
    """`accept` for every output of a kernel.

    Args:
        outputs: (fused, eager, exact) by output name.

    Returns:
        the first refusal, its reason naming the output; else the verdict that came closest to one.
    """
    verdicts = []
    for name, triple in outputs.items():
        verdict = accept(*triple)
        if not verdict.ok:
            return replace(verdict, reason=f"Output {name!r}: {verdict.reason}")
        verdicts.append(verdict)
    return closest(verdicts)


def closest(verdicts: Iterable[Verdict]) -> Verdict:
    """The first refusal among verdicts; else the one that came closest to one, or acceptance where there is none."""
    found, closeness = Verdict(True), -1.0
    for verdict in verdicts:
        if not verdict.ok:
            return verdict
        bound = EAGER_FACTOR * verdict.error_eager + verdict.ulp
        used = verdict.error_fused / bound if bound else 0.0
        if used > closeness:
            found, closeness = verdict, used
    return found


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of `dtype` at the magnitude of `values`.

    Args:
        values: finite, float64.
        dtype: the floating dtype whose grid is meant.

    Returns:
        float64 of the same shape: 2**(floor(log2|x|)) * eps, at least the smallest subnormal.
    """
    info = torch.finfo(dtype)
    power = (values.contiguous().view(torch.int64) & _EXPONENT_BITS).view(torch.float64)  # 2**floor(log2|x|)
    return (power * info.eps).clamp_min_(info.smallest_normal * info.eps)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is to be known of one piece; as in a Verdict, with the place of the deciding element."""

    differs: str = ""
    error_fused: float = -math.inf
    error_eager: float = 0.0
    ulp: float = 0.0
    at: Sequence[int] = ()
    part: int = 0
    dtype: str = ""

    @property
    def excess(self) -> float:
        return self.error_fused - self.ulp


def pieces(*tensors: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Sequence[int]]]:
    """Tensors of one shape cut along their longest dimension, so that what comparing needs stays small.

    Yields:
        a piece of each, and where it begins; nothing for tensors without elements.
    """
    shape, elements = tensors[0].shape, tensors[0].numel()
    if elements == 0:
        return
    dim = max(range(len(shape)), key=lambda d: shape[d], default=0)
    count = -(-elements // _MOST_ELEMENTS)
    if count == 1 or not shape:
        yield tensors, (0,) * len(shape)
        return
    step, size = -(-shape[dim] // count), shape[dim]
    for start in range(0, size, step):
        length = min(step, size - start)
        yield tuple(t.narrow(dim, start, length) for t in tensors), [start * (d == dim) for d in range(len(shape))]


def _compare(fused: Tensor, eager: Tensor, exact: Tensor) -> _Measured:
    if eager.is_floating_point():
        return _measure(fused, eager, exact)
    wrong = int((fused != eager).sum())
    return _Measured(f"{wrong} of {eager.numel()} elements differ from eager's." if wrong else "")


def _measure(fused: Tensor, eager: Tensor, exact: Tensor) -> _Measured:
    off_fused, off_eager = _distance(fused, exact), _distance(eager, exact)
    error_eager = float(off_eager.max())
    if not (math.isfinite(error_eager) and math.isfinite(float(off_fused.max()))):  # the rare case, kept off the path
        special = _specials_differ(fused, eager)
        if special:
            return _Measured(special)
        # Elements that are not finite agree: they become 0 everywhere. Where only the exact one is not, eager decides.
        finite = eager.isfinite()
        fused, eager = torch.where(finite, fused, 0.0), torch.where(finite, eager, 0.0)
        exact = torch.where(finite & exact.isfinite(), exact, eager.double())
        off_fused, off_eager = _distance(fused, exact), _distance(eager, exact)
        error_eager = float(off_eager.max())
    unit = ulp(exact, eager.dtype)
    at = (off_fused - unit).flatten().argmax()
    where = [int(i) for i in torch.unravel_index(at, eager.shape)] if eager.dim() else []
    error_fused, gap = float(off_fused.flatten()[at]), float(unit.flatten()[at])
    return _Measured("", error_fused, error_eager, gap, where, dtype=_name(eager.dtype))


def _distance(values: Tensor, exact: Tensor) -> Tensor:
    return values.to(torch.float64, copy=True).sub_(exact).abs_()


def layout_differs(fused: Tensor, eager: Tensor) -> str:
    """How a result's shape, dtype or strides differ from eager's, in a sentence; "" where they do not."""
    if fused.shape != eager.shape:
        return f"Expected the shape {list(eager.shape)} of eager, found {list(fused.shape)}."
    if fused.dtype != eager.dtype:
        return f"Expected the dtype {_name(eager.dtype)} of eager, found {_name(fused.dtype)}."
    pairs = zip(eager.shape, eager.stride(), fused.stride(), strict=True)
    if eager.numel() and any(want != have for size, want, have in pairs if size > 1):
        return f"Expected the strides {list(eager.stride())} of eager, found {list(fused.stride())}."
    return ""


def _specials_differ(fused: Tensor, eager: Tensor) -> str:
    for kind, have, want in (
        ("NaN", fused.isnan(), eager.isnan()),
        ("+inf", fused.isposinf(), eager.isposinf()),
        ("-inf", fused.isneginf(), eager.isneginf()),
    ):
        wrong = int((have != want).sum())
        if wrong:
            return f"{kind} is in other places than eager's, at {wrong} of {eager.numel()} elements."
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
