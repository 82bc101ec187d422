"""One-operator kernels from torch's own operator samples (OpInfo), for the tests of every backend.

`collect` traces each sample of each OpInfo whose operator has a row, lowers it, and pairs the kernel with inputs: the
sample's own tensors, and special values in their place.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from graphs import trace
from torch.utils import _pytree as pytree

from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.patterns import reference
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph
from fusion.patterns.ops import TABLE, Kind, canonical, kind_of
from fusion.patterns.verify import Verdict, accept, ulp

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Any]

_SPECIAL = [
    0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, -1e-40, 1.0, -1.0, 0.5, -2.5, 3.0, 88.5, -104.0, 1e30, -1e30, 0.1,
]  # fmt: skip


_OTHER_MEANING = ("nn.functional.unfold",)  # im2col, not aten.unfold
# Special values whose eager result depends on where in the tensor the element lies, or is less than float32 can give.
_AVOIDED: dict[str, str] = {
    "gelu": "infinite",  # of inf, torch makes inf where it computes one element, NaN where it computes a vector
    "var_mean": "infinite", "std_mean": "infinite",  # the mean of a row with inf is NaN by Welford's update
    "fmod": "subnormal", "remainder": "subnormal", "floor_divide": "subnormal",  # 7.5 % 1e-40 is NaN in a vector
    "var": "subnormal", "std": "subnormal",  # squares are 0 in float32, and torch's are doubles
}  # fmt: skip
# What a reduction is given: one kind of special value among numbers whose sums and squares are in range, because torch
# adds in another order and, in places, in double.
_SPECIAL_IN_ROWS = (
    [1.0, -0.5, math.nan, 2.0, 3.0, 0.1, -0.25], [1.0, -0.5, math.inf, 2.0, 3.0, 0.1, -0.25],
    [0.0, -0.0, 1e-40, -0.0, 0.0, -1e-40, 0.0],
)  # fmt: skip


class Sample(NamedTuple):
    """A call: a function of tensors, and the tensors."""

    fn: Function
    tensors: Tensors


@dataclass(frozen=True)
class Case:
    """A graph of the operators that one sample calls, its kernel, and tensors to run both on."""

    name: str
    graph: SubGraph
    nest: LoopNest
    inputs: tuple[Tensors, ...]

    @property
    def operators(self) -> set[str]:
        """The operators it tests: all it calls, but for the copy of what another one makes."""
        called = {canonical(node.op) for node in self.graph.nodes}
        return called - {"aten.clone.default"} or called


@dataclass
class Found:
    """Cases, how many hold each operator, and why other samples made none."""

    cases: list[Case] = field(default_factory=list)
    covered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    digests: set[str] = field(default_factory=set)

    def take(self, name: str, samples: Iterable[Sample], count: int | None, layouts: Sequence[str]) -> None:
        """Adds the cases of the first `count` samples that have one, each also in the `LAYOUTS` named."""
        taken = 0
        for sample in samples:
            if taken == count:
                return
            for kind in ("", *layouts):
                variant = laid_out(sample, kind)
                case = make_case(self, f"{name}/{taken}/{kind}".rstrip("/"), variant) if variant is not None else None
                if case is not None and case.graph.digest not in self.digests:
                    self.digests.add(case.graph.digest)
                    self.cases.append(case)
                    self.covered.update(case.operators)
                    taken += not kind


def collect(dtypes: Iterable[Sequence[torch.dtype]], count: int | None, *, layouts: int) -> Found:
    """The cases of all OpInfos whose name is a table row's.

    Args:
        dtypes: of the samples, in groups: an OpInfo is taken in one dtype of each group, the next OpInfo in the next.
        count: structures taken of each OpInfo in each of its dtypes; None for all.
        layouts: in how many of `LAYOUTS` each sample is taken besides its own, the next OpInfo in the next ones.
    """
    # They take seconds to import, and some runs need no samples.
    from torch.testing._internal import common_utils
    from torch.testing._internal.common_methods_invocations import op_db

    known = {op.split(".")[1].strip("_") for op in TABLE}
    infos = [i for i in op_db if i.name.split(".")[-1].strip("_") in known and i.name not in _OTHER_MEANING]
    found = Found()
    with patch.object(common_utils, "extract_test_fn", lambda: None), patch.object(common_utils, "set_rng_seed", _seed):
        for number, info in enumerate(infos):
            others = [LAYOUTS[(number + k) % len(LAYOUTS)] for k in range(layouts)]
            supported = info.supported_dtypes("cpu")
            for group in dtypes:
                possible = [dtype for dtype in group if dtype in supported]
                if possible:
                    dtype = possible[number % len(possible)]
                    samples = (
                        s for s in (_sample(info, s) for s in info.sample_inputs("cpu", dtype)) if _is_strided(s)
                    )
                    found.take(f"{info.name}/{str(dtype).removeprefix('torch.')}", samples, count, others)
    return found


def _is_strided(sample: Sample) -> bool:
    return all(tensor.layout is torch.strided for tensor in sample.tensors)


def _seed(seed: int) -> None:
    """Seeds the generators that samples are drawn from.

    torch calls its own before every sample, which notes the whole stack for each kind of device. Under pytest the
    stack is deep.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _sample(info: Any, sample: Any) -> Sample:
    leaves, structure = pytree.tree_flatten((sample.input, tuple(sample.args), sample.kwargs))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def fn(*tensors: torch.Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(filled, structure)
        return info.op(first, *args, **kwargs)

    return Sample(fn, tuple(leaves[k].detach() for k in places))


# Every other element of twice as many, one element expanded, no elements.
LAYOUTS = ("strided", "expanded", "empty")


def laid_out(sample: Sample, layout: str) -> Sample | None:
    """The sample in one of `LAYOUTS`, or as it is for ""; None where its tensors have no dimension to vary."""
    fn, tensors = sample
    if layout and not any(t.dim() for t in tensors):
        return None
    if layout == "strided":
        return Sample(fn, tuple(torch.stack((t, t), -1)[..., 0] for t in tensors))
    if layout == "expanded":
        return Sample(fn, tuple(t[:1].expand_as(t) if t.dim() and t.numel() else t for t in tensors))
    return Sample(fn, tuple(t[:0] if t.dim() else t for t in tensors)) if layout == "empty" else sample


def make_case(found: Found, name: str, sample: Sample) -> Case | None:
    """The case of one sample; None where eager refuses it, or it calls nothing that fuses."""
    try:
        graph = trace(_copied(sample.fn), *sample.tensors)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        found.refused[f"not traced: {type(error).__name__}"] += 1
        return None
    if not graph.nodes:
        return None
    try:
        nest = lower(graph)
    except LoweringError as error:
        found.refused[f"{error.code}: {graph.nodes[0].op}"] += 1
        return None
    return Case(name, graph, nest, (sample.tensors, *special(graph, sample.tensors)))


def _copied(fn: Function) -> Function:
    """A view's result is copied, and of several results the last is taken: a kernel stores dense tensors."""

    def copied(*tensors: torch.Tensor) -> torch.Tensor:
        made = fn(*tensors)
        result: torch.Tensor = made if isinstance(made, torch.Tensor) else made[-1]
        aliases = any(result.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in tensors)
        return result.clone(memory_format=torch.contiguous_format) if aliases else result

    return copied


def special(graph: SubGraph, tensors: Tensors) -> Iterator[Tensors]:
    """Tensors of the same structure that hold special values; none where there are no elements."""
    called = [node.op for node in graph.nodes]
    if not any(t.numel() for t in tensors):
        return
    avoided = {_AVOIDED.get(op.split(".")[1]) for op in called}
    reducing = any(kind_of(op) not in (Kind.POINTWISE, Kind.VIEW, Kind.ELEMENT) for op in called)
    for number, turn in enumerate((0, 5, 11)):
        values = _SPECIAL_IN_ROWS[number] if reducing else _SPECIAL
        yield tuple(_without(avoided, _specialised(t, values, turn * (k + 1))) for k, t in enumerate(tensors))


def _without(avoided: set[str | None], tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with 3 in place of the values avoided."""
    if not tensor.is_floating_point():
        return tensor
    if "infinite" in avoided:
        tensor.masked_fill_(tensor.isinf(), 3.0)
    if "subnormal" in avoided:
        tensor.masked_fill_((tensor.abs() < torch.finfo(tensor.dtype).smallest_normal) & (tensor != 0), 3.0)
    return tensor


def _specialised(tensor: torch.Tensor, values: Sequence[float], turn: int) -> torch.Tensor:
    if tensor.dtype is torch.bool:
        return tensor
    if not tensor.is_floating_point():
        bounds = torch.iinfo(tensor.dtype)
        values = [0, 1, bounds.max, bounds.min, bounds.max - 1, 2, 3, 7, bounds.min + 1, *([-1] if bounds.min else [])]
    base = torch.tensor(values, dtype=torch.float64 if tensor.is_floating_point() else torch.int64)
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    flat = base.roll(turn).repeat(reach // len(values) + 1)[:reach].to(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride())


def verdict(case: Case, run: Callable[[Tensors], Tensors], *, ulps: int = 0) -> str:
    """Why a kernel of the case is wrong; "" where it is right on all inputs, and leaves them as they were.

    Args:
        case: what to judge.
        run: its kernel.
        ulps: how far from eager's a result may be besides, in ulp of the largest.
    """
    for turn, inputs in enumerate(case.inputs):
        before = tuple(t.clone() for t in inputs)
        try:
            eager = reference.run(case.graph, dict(zip(case.graph.inputs, inputs, strict=True)))
        except RuntimeError:
            if turn:
                continue  # eager refuses these special values, as it does negative powers of integers
            raise
        found = judge(case, inputs, run(inputs), eager, ulps)
        if not found.ok:
            return f"{case.name}, inputs {turn}: {found.reason}"
        same = (torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(inputs, before, strict=True))
        if not all(same):
            return f"{case.name}, inputs {turn}: an input was written to"
    return ""


def judge(case: Case, inputs: Tensors, fused: Tensors, eager: dict[str, torch.Tensor], ulps: int) -> Verdict:
    """Whether a kernel's results are eager's, by the fp64 rule; a float64 result within a few ulp of eager's."""
    exact = reference.run_fp64(case.graph, dict(zip(case.graph.inputs, inputs, strict=True)))
    for ours, theirs, truth in zip(fused, eager.values(), exact.values(), strict=True):
        slack = max(ulps, _DOUBLE_ULPS) if theirs.dtype is torch.float64 else ulps
        found = accept(_moved_to(ours, theirs, slack), theirs, truth)
        if not found.ok:
            return found
    return Verdict(True)


# Libraries of double functions differ by an ulp or two from each other; a formula of several of them by a few more.
_DOUBLE_ULPS = 16


def _moved_to(ours: torch.Tensor, theirs: torch.Tensor, ulps: int) -> torch.Tensor:
    """Our results, replaced by eager's where they are within `ulps` of the largest."""
    if not ulps or ours.shape != theirs.shape or ours.dtype != theirs.dtype or not theirs.is_floating_point():
        return ours
    finite = theirs.isfinite() & ours.isfinite()
    largest = torch.where(finite, theirs, 0.0).double().abs().amax() if theirs.numel() else torch.zeros(()).double()
    close = (ours.double() - theirs.double()).abs() <= ulps * ulp(largest, theirs.dtype)
    return torch.where(finite & close, theirs, ours)
