"""SubGraphs for tests: a small tracer, and example functions every backend is tested on.

Tests of any folder import it by name: `from graphs import DYNAMIC, EXAMPLES, trace`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.patterns import symbols
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref, map_leaves
from fusion.patterns.nodes import OpNode
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim

LENGTH = 7  # the size the examples leave free; a prime that divides no other size, so it can be told apart
DYNAMIC = {LENGTH: "s0", LENGTH + 4: "s0 + 4"}  # pass as `dynamic` to leave it free in any example


def trace(
    fn: Callable[..., Any], *example: torch.Tensor, dynamic: Mapping[int, str] | None = None, pattern: str | None = None
) -> SubGraph:
    """The SubGraph of the operators `fn` calls on `example`, all of its tensor arguments.

    Args:
        fn: a function of tensors that returns a tensor or a tuple of tensors.
        example: the tensors to run it on.
        dynamic: sizes to replace by symbols, `{7: "s0"}`, in shapes, strides and integer arguments. Keys are primes
            that divide no other size, so that a stride of 112 is provably `16*s0`; a value may be an expression
            (`{17: "s0 + 10"}`).
        pattern: the graph's name.
    """
    tracer = _Tracer(example, _Marks(dynamic or {}))
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), tracer:
        result = fn(*example)
    results = result if isinstance(result, (tuple, list)) else (result,)
    inputs = tuple(f"x{i}" for i in range(len(example)))
    outputs = tuple(tracer.names[id(r)] for r in results)
    return SubGraph(inputs, tuple(tracer.nodes), outputs, tuple(tracer.specs.items()), pattern)


class _Marks:
    """Replaces marked sizes by their symbols."""

    def __init__(self, marks: Mapping[int, str]) -> None:
        self.marks = {size: symbols.parse(text) for size, text in marks.items()}

    def __call__(self, number: int) -> Dim:
        if isinstance(number, bool) or number in (0, 1, sys.maxsize):
            return number
        factor: Dim = 1
        for size, meaning in self.marks.items():
            while number % size == 0:
                number //= size
                factor = factor * meaning
        return symbols.as_dim(factor * number)

    def spec(self, tensor: torch.Tensor) -> TensorSpec:
        return TensorSpec(
            tensor.dtype, tuple(map(self, tensor.shape)), tuple(map(self, tensor.stride())), tensor.device.type
        )


class _Tracer(TorchDispatchMode):
    def __init__(self, example: Sequence[torch.Tensor], marks: _Marks) -> None:
        super().__init__()
        self.marks = marks
        self.kept: list[torch.Tensor] = []  # alive, so that no id is used twice
        self.names: dict[int, str] = {}
        self.specs: dict[str, TensorSpec] = {}
        self.nodes: list[OpNode] = []
        for i, tensor in enumerate(example):
            self._name(tensor, f"x{i}")

    def _name(self, tensor: torch.Tensor, name: str) -> str:
        self.kept.append(tensor)
        self.names[id(tensor)] = name
        self.specs[name] = self.marks.spec(tensor)
        return name

    def _leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in self.names:
                raise ValueError("The traced function uses a tensor that is neither an argument nor computed from one.")
            return Ref(self.names[id(leaf)])
        return self.marks(leaf) if isinstance(leaf, int) else leaf

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            raise ValueError(f"The traced function calls {func}, which writes in place.")
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else (result,)
        if any(id(r) in self.names for r in results):  # a conversion or contiguous() that did nothing
            return result
        leaves = map_leaves(self._leaf, _tuples(args))
        named = tuple((k, map_leaves(self._leaf, _tuples(v))) for k, v in sorted((kwargs or {}).items()))
        outputs = tuple(self._name(r, f"t{len(self.specs)}") for r in results)
        self.nodes.append(OpNode(str(func), leaves, named, outputs))
        return result


def _tuples(tree: Any) -> Any:
    return tuple(map(_tuples, tree)) if isinstance(tree, (tuple, list)) else tree


class Example(NamedTuple):
    """A function and `inputs(dtype, length)`, its arguments: `length` is the size that may be made symbolic."""

    fn: Callable[..., Any]
    inputs: Callable[..., tuple[torch.Tensor, ...]]


HIDDEN, HEADS, HEAD = 64, 4, 16


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, the same in every run."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As transformers writes it: the variance in float32, the weight applied in the input's dtype."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The normalised sum and the sum."""
    total = residual + x
    return rms_norm(total, weight), total


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up


def chunk_swiglu(both: torch.Tensor) -> torch.Tensor:
    """SwiGLU of the two halves of one tensor."""
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(-second half, first half) of the last dimension."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of q and k [b, h, s, d] by cos and sin [b, s, d]."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def qk_norm_rope(q: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Head-wise RMSNorm of a projection [b, s, h*d], then rotary embedding of [b, h, s, d]."""
    size = weight.shape[0]
    heads = rms_norm(q.view(*q.shape[:2], q.shape[-1] // size, size), weight).transpose(1, 2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return heads * cos + rotate_half(heads) * sin


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention weights in float32, back in the scores' dtype."""
    return F.softmax(scores * 0.25 + mask, dim=-1, dtype=torch.float32).to(scores.dtype)


def gelu_bias(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x + bias), the bias broadcast over rows."""
    return F.gelu(x + bias, approximate="tanh")


def where_positive(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Selection by a comparison."""
    return torch.where(x > y, x * 2.0, y) - 1.0


def masked_fill(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """A boolean mask, broadcast and inverted."""
    return torch.exp(x.masked_fill(~keep, float("-inf")))


def cat_sizes(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Three operands of different sizes along a middle dimension."""
    return torch.cat((x * 2.0, y, z.neg()), dim=1) + 1.0


def strided(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A transposed and an expanded operand, neither copied before."""
    return x.transpose(1, 2) * y.unsqueeze(-1).expand(-1, -1, x.shape[1])


def log_softmax(x: torch.Tensor) -> torch.Tensor:
    """log_softmax over the last dimension."""
    return F.log_softmax(x, dim=-1)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Two reductions, the second over what the first made."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


def row_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-row values only."""
    return x.sum(-1), x.amax(-1, keepdim=True)


def causal_bias(scores: torch.Tensor) -> torch.Tensor:
    """A mask that no one stores, added to scores [b, h, s, s]."""
    length = scores.shape[-1]
    return scores + torch.full((length, length), float("-inf")).triu(1).to(scores.dtype)


def rotary_tables(x: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position of x [b, s, d] times each frequency, twice side by side."""
    angle = torch.arange(x.shape[1])[:, None].float() * frequencies
    both = torch.cat((angle, angle), dim=-1)
    return both.cos().to(x.dtype), both.sin().to(x.dtype)


def pad_cat(x: torch.Tensor) -> torch.Tensor:
    """A tensor padded in two dimensions, beside twice itself: Selects in Selects."""
    padded = F.pad(x, (1, 2, 1, 3), value=0.5)
    return torch.cat((padded, padded * 2.0), dim=-1)


def shifts(x: torch.Tensor) -> torch.Tensor:
    """Neighbours: the row before, the row from the other end, the difference to the row before."""
    start = x.new_zeros((x.shape[0], 1, x.shape[2]))
    return torch.roll(x, 1, 1) * torch.flip(x, (1,)) - torch.diff(x, dim=1, prepend=start)


def stack_repeat(x: torch.Tensor) -> torch.Tensor:
    """Two tensors interleaved by row, times the rows twice over."""
    return torch.stack((x, -x), dim=2).flatten(1, 2) * x.repeat(1, 2, 1)


def expert_weights(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Weights [s, experts] of the chosen experts [s] only, none above the diagonal."""
    return ((chosen[:, None] == torch.arange(x.shape[-1])) * x).tril(1)


def _tokens(dtype: torch.dtype, length: int, count: int, width: int = HIDDEN) -> tuple[torch.Tensor, ...]:
    return tuple(normal(2, length, width, dtype=dtype, seed=i) for i in range(count))


def _angles(dtype: torch.dtype, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = normal(2, length, HEAD)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _norm_inputs(dtype: torch.dtype = torch.float32, length: int = LENGTH, count: int = 1) -> tuple[torch.Tensor, ...]:
    return (*_tokens(dtype, length, count), normal(HIDDEN, dtype=dtype))


def _rope_inputs(dtype: torch.dtype = torch.float32, length: int = LENGTH) -> tuple[torch.Tensor, ...]:
    q = normal(2, length, HEADS, HEAD, dtype=dtype).transpose(1, 2)
    k = normal(2, length, HEADS, HEAD, dtype=dtype, seed=1).transpose(1, 2)
    return (q, k, *_angles(dtype, length))


def _qk_inputs(dtype: torch.dtype = torch.float32, length: int = LENGTH) -> tuple[torch.Tensor, ...]:
    return (*_tokens(dtype, length, 1, HEADS * HEAD), normal(HEAD, dtype=dtype), *_angles(dtype, length))


def _softmax_inputs(dtype: torch.dtype = torch.float32, length: int = LENGTH) -> tuple[torch.Tensor, ...]:
    mask = torch.full((length, length), float("-inf")).triu(1).to(dtype)
    return normal(2, HEADS, length, length, dtype=dtype), mask.expand(2, 1, length, length)


def _cat_inputs(dtype: torch.dtype = torch.float32, length: int = LENGTH) -> tuple[torch.Tensor, ...]:
    return tuple(normal(2, size, 5, dtype=dtype) for size in (length, 3, 1))


def _strided_inputs(dtype: torch.dtype = torch.float32, length: int = LENGTH) -> tuple[torch.Tensor, ...]:
    return normal(2, length, 5, dtype=dtype), normal(2, 5, dtype=dtype)


def _keep(length: int) -> torch.Tensor:
    return normal(length, 1) > 0


EXAMPLES: dict[str, Example] = {
    "rms_norm": Example(rms_norm, _norm_inputs),
    "add_rms_norm": Example(
        add_rms_norm, lambda dtype=torch.float32, length=LENGTH: _norm_inputs(dtype, length, count=2)
    ),
    "swiglu": Example(swiglu, lambda dtype=torch.float32, length=LENGTH: _tokens(dtype, length, 2)),
    "chunk_swiglu": Example(chunk_swiglu, lambda dtype=torch.float32, length=LENGTH: _tokens(dtype, length, 1)),
    "rope": Example(rope, _rope_inputs),
    "qk_norm_rope": Example(qk_norm_rope, _qk_inputs),
    "masked_softmax": Example(masked_softmax, _softmax_inputs),
    "gelu_bias": Example(gelu_bias, _norm_inputs),
    "where_positive": Example(where_positive, lambda dtype=torch.float32, length=LENGTH: _tokens(dtype, length, 2)),
    "masked_fill": Example(
        masked_fill, lambda dtype=torch.float32, length=LENGTH: (*_tokens(dtype, length, 1), _keep(length))
    ),
    "cat_sizes": Example(cat_sizes, _cat_inputs),
    "strided": Example(strided, _strided_inputs),
    "log_softmax": Example(log_softmax, lambda dtype=torch.float32, length=LENGTH: _tokens(dtype, length, 1)),
    "layer_norm": Example(
        layer_norm,
        lambda dtype=torch.float32, length=LENGTH: (*_norm_inputs(dtype, length), normal(HIDDEN, dtype=dtype, seed=3)),
    ),
    "row_statistics": Example(row_statistics, lambda dtype=torch.float32, length=LENGTH: _tokens(dtype, length, 1)),
    "causal_bias": Example(causal_bias, lambda dtype=torch.float32, length=LENGTH: _softmax_inputs(dtype, length)[:1]),
    "rotary_tables": Example(
        rotary_tables,
        lambda dtype=torch.float32, length=LENGTH: (*_tokens(dtype, length, 1), normal(HEAD // 2).exp()),
    ),
    "pad_cat": Example(pad_cat, lambda dtype=torch.float32, length=LENGTH: _strided_inputs(dtype, length)[:1]),
    "shifts": Example(shifts, lambda dtype=torch.float32, length=LENGTH: _strided_inputs(dtype, length)[:1]),
    "stack_repeat": Example(
        stack_repeat, lambda dtype=torch.float32, length=LENGTH: _strided_inputs(dtype, length)[:1]
    ),
    "expert_weights": Example(
        expert_weights,
        lambda dtype=torch.float32, length=LENGTH: (normal(length, 5, dtype=dtype), torch.arange(length) % 5),
    ),
}
