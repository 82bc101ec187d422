"""What a step may be: for every kind of operator a function that draws the text of one.

Each takes a `Pool` and returns a Step, or None where the pool has nothing to make it from. A step need not be valid:
it is tried on tensors of all sizes of the program, and left out where torch refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from fusion.patterns.ops import TABLE, Kind, resolve
from fuzz_program import Step

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8,
    torch.int16, torch.int8,
)  # fmt: skip
NUMBERS = (2, 1, 0, -1, 3, 0.5, -1.5, 2.0, 0.0, -0.0, 1e-3, 7)


class Pool(Protocol):
    """The values a step may use, and where its choices come from."""

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""

    def pick(self, options: Sequence[Any]) -> Any:
        """One of `options`; the first is the simplest."""

    def maybe(self, percent: int) -> bool:
        """True in about `percent` of 100 draws."""

    def value(self, wanted: Callable[[torch.Tensor], bool] = lambda t: True) -> str | None:
        """The name of a value that is `wanted`."""

    def temporary(self) -> str | None:
        """The name of a value that shares no memory with an input or the module's state."""

    def beside(self, name: str) -> str | None:
        """The name of a value that broadcasts with `name` at all sizes."""

    def like(self, name: str) -> str | None:
        """The name of a value of the shape and dtype of `name` at all sizes."""

    def shapes(self, name: str) -> list[torch.Size]:
        """The shapes of a value at the program's sizes."""

    def tensor(self, name: str) -> torch.Tensor:
        """A value at the first sizes."""

    def fresh(self) -> str:
        """A name for a result."""


def rank(pool: Pool, name: str) -> int:
    """How many dimensions a value has."""
    return len(pool.shapes(name)[0])


def dim_of(pool: Pool, name: str, extra: int = 0) -> int | None:
    """A dimension of a value, counted from either end."""
    n = rank(pool, name) + extra
    return pool.integer(-n, n - 1) if n else None


def size(pool: Pool, name: str, dim: int) -> int | None:
    """A size that is the same at all of the program's sizes, or None."""
    found = {s[dim] for s in pool.shapes(name)}
    return found.pop() if len(found) == 1 else None


def made(pool: Pool, text: str, *reads: str) -> Step:
    """A step that makes one value."""
    name = pool.fresh()
    return Step(f"{name} = {text}", reads, (name,))


# ---- rows of the operator table, called as their schemas say

BY_HAND = {"reshape", "view", "expand", "permute", "transpose", "pad", "constant_pad_nd", "repeat", "arange", "full"}


def rows(*kinds: Kind) -> list[str]:
    """Operators of the table, by kind, sorted."""
    return sorted(op for op, row in TABLE.items() if row.kind in kinds)


def row(ops: Sequence[str]) -> Callable[[Pool], Step | None]:
    """Draws a call of one of `ops` with arguments of the types its schema names."""

    def draw(pool: Pool) -> Step | None:
        op = pool.pick(ops)
        reads: list[str] = []
        texts: list[str] = []
        results = 1
        schema = resolve(op)._schema
        for argument in schema.arguments:
            if argument.has_default_value() and not pool.maybe(40):
                if not argument.kwarg_only:
                    texts.append("")  # kept for its place; cut below if nothing follows
                continue
            text = _argument(pool, argument, reads)
            if text is None:
                return None
            texts.append(f"{argument.name}={text}" if argument.kwarg_only or "" in texts else text)
        if not reads and any(str(a.type) == "Tensor" for a in schema.arguments):
            return None
        if len(schema.returns) == 1 and str(schema.returns[0].type) == "List[Tensor]":
            return None  # the views below name their parts
        results = len(schema.returns)
        names = tuple(pool.fresh() for _ in range(results))
        call = f"torch.ops.{op}({', '.join(t for t in texts if t)})"
        return Step(f"{', '.join(names)} = {call}", tuple(reads), names)

    return draw


def _argument(pool: Pool, argument: Any, reads: list[str]) -> str | None:
    kind, name = str(argument.type), argument.name
    optional = kind.startswith("Optional[")
    kind = kind.removeprefix("Optional[").removesuffix("]") if optional else kind
    if kind == "Tensor":
        found = pool.beside(reads[0]) if reads else pool.value()
        if found is None:
            return "None" if optional else None
        reads.append(found)
        return found
    if kind in ("List[Tensor]", "List[Optional[Tensor]]"):
        first = pool.value()
        if first is None:
            return None
        found = [first, *(pool.like(first) or first for _ in range(pool.integer(0, 2)))]
        reads.extend(found)
        return f"[{', '.join(found)}]"
    if kind == "number":
        return repr(pool.pick(NUMBERS))
    n = rank(pool, reads[0]) if reads else 0
    if kind == "int":
        if name == "dtype":
            return repr(pool.pick(DTYPES))
        if name in ("layout", "memory_format", "device"):
            return None if not argument.has_default_value() else repr(argument.default_value)
        return str(pool.integer(-n, n - 1) if "dim" in name and n else pool.integer(-1, 3))
    if kind in ("List[int]", "List[SymInt]"):
        if "dim" in name or name == "axis":
            dims = [d for d in range(n) if pool.maybe(50)] or list(range(n))
            return repr([d - n if pool.maybe(30) else d for d in dims])
        if name in ("normalized_shape",):
            tail = pool.integer(1, max(1, n))
            return f"{reads[0]}.shape[-{tail}:]"
        return repr([pool.integer(0, 3) for _ in range(n or 1)])
    if kind == "bool":
        return repr(bool(pool.integer(0, 1)))
    if kind == "float":
        return repr(float(pool.pick(NUMBERS)))
    if kind == "str":
        options = {"approximate": ["none", "tanh"], "rounding_mode": ["floor", "trunc"], "mode": ["constant"]}
        return repr(pool.pick(options.get(name, ["none"])))
    if kind == "Device":
        return "torch.device('cpu')"
    return None


# ---- views and other index maps, as models write them


def view(pool: Pool) -> Step | None:
    """A result that shares its operand's memory, or would if it could."""
    x = pool.value(lambda t: t.ndim > 0)
    if x is None:
        return None
    n, d = rank(pool, x), dim_of(pool, x)
    assert d is not None
    other = pool.integer(-n, n - 1)
    start, step = pool.integer(-3, 3), pool.integer(1, 3)
    colons = ":, " * (d % n)
    order = list(range(n))
    for k in range(n):
        j = pool.integer(k, n - 1)
        order[k], order[j] = order[j], order[k]
    known = size(pool, x, d)
    options = [
        f"{x}.transpose({d}, {other})",
        f"{x}.permute({', '.join(map(str, order))})",
        f"{x}.unsqueeze({dim_of(pool, x, extra=1)})",
        f"{x}[{colons}{start}:]",
        f"{x}[{colons}:{start}]",
        f"{x}[{colons}::{step}]",
        f"{x}[{colons}{abs(start)}::{step}]",
        f"{x}[..., {abs(start)}:{abs(start) + step}]",
        f"{x}[{colons}{min(start, 1)}]",
        f"{x}[..., None, :]",
        f"{x}.squeeze({d})",
        f"{x}.squeeze()",
        f"{x}.flatten({min(d % n, other % n)}, {max(d % n, other % n)})",
        f"{x}.reshape(-1)",
        f"{x}.reshape({x}.shape[0], -1)",
        f"{x}.view(*{x}.shape[:-1], -1, 2)",
        f"{x}.unflatten({d}, (-1, {step}))",
        f"{x}.unsqueeze({d}).expand({', '.join(['-1'] * (d % n))}{', ' if d % n else ''}{step}{', -1' * (n - d % n)})",
        f"{x}.expand({step}, {', '.join(['-1'] * n)})",
        f"{x}.narrow({d}, {abs(start)}, {step})",
        f"{x}.mT",
        f"{x}.movedim({d}, {other})",
        f"{x}.diagonal()",
        f"{x}.unfold({d}, {step}, {pool.integer(1, 2)})",
        f"{x}.select({d}, {start})",
        f"{x}.swapaxes({d}, {other})",
        f"{x}.view_as({x})",
        f"{x}.contiguous()",
        f"{x}.clone()",
        f"{x}.detach()",
    ]
    if known is not None and 0 < known <= 6:
        options.append(f"{x}.unbind({d})[{pool.integer(0, known - 1)}]")
    return made(pool, pool.pick(options), x)


def parts(pool: Pool) -> Step | None:
    """Several views of one value."""
    x = pool.value(lambda t: t.ndim > 0)
    if x is None:
        return None
    d = dim_of(pool, x)
    a, b = pool.fresh(), pool.fresh()
    assert d is not None
    known = size(pool, x, d)
    options = [f"{x}.chunk(2, {d})", f"torch.tensor_split({x}, 2, {d})"]
    if known is not None and known > 1:
        first = pool.integer(1, known - 1)
        options += [f"{x}.split([{first}, {known - first}], {d})", f"torch.split({x}, {-(-known // 2)}, dim={d})"]
        if known == 2:
            options.append(f"{x}.unbind({d})")
    return Step(f"{a}, {b} = {pool.pick(options)}", (x,), (a, b))


def join(pool: Pool) -> Step | None:
    """A result whose elements lie in several operands, or at other places of one."""
    x = pool.value(lambda t: t.ndim > 0)
    if x is None:
        return None
    y, z = pool.like(x) or x, pool.like(x) or x
    d = dim_of(pool, x)
    k, m = pool.integer(0, 2), pool.integer(-1, 2)
    options = [
        f"torch.cat(({x}, {y}), {d})",
        f"torch.cat(({x}, {y}, {z}), dim={d})",
        f"torch.cat((-{x}[..., 1:], {x}[..., :1]), dim=-1)",
        f"torch.stack(({x}, {y}), {dim_of(pool, x, extra=1)})",
        f"F.pad({x}, ({m}, {k}))",
        f"F.pad({x}, ({k}, {m}), value={pool.pick(NUMBERS)!r})",
        f"F.pad({x}, ({k}, 1, {m}, {k}))",
        f"{x}.flip({d})",
        f"torch.roll({x}, {m}, {d})",
        f"{x}.repeat({', '.join(['1'] * (rank(pool, x) - 1) + ['2'])})",
        f"{x}.repeat(2, {', '.join(['1'] * rank(pool, x))})",
        f"{x}.repeat_interleave(2, dim={d})",
        f"torch.tril({x}, {m})",
        f"torch.triu({x}, {m})",
        f"torch.diff({x}, dim={d})",
    ]
    return made(pool, pool.pick(options), x, y, z)


def create(pool: Pool) -> Step | None:
    """A tensor made of sizes and numbers."""
    x = pool.value(lambda t: t.ndim > 0)
    if x is None:
        return None
    d = dim_of(pool, x)
    number, dtype = pool.pick(NUMBERS), pool.pick(DTYPES)
    options = [
        f"torch.arange({x}.shape[{d}])",
        f"torch.arange({x}.shape[{d}], dtype={dtype})",
        f"torch.arange(1, {x}.shape[{d}] + 1, 2)",
        f"torch.zeros({x}.shape[{d}], 2)",
        f"torch.ones({x}.shape, dtype={dtype})",
        f"torch.full(({x}.shape[{d}], 1), {number!r})",
        f"torch.zeros_like({x})",
        f"torch.ones_like({x}, dtype={dtype})",
        f"torch.full_like({x}, {number!r})",
        f"{x}.new_ones(({x}.shape[{d}],))",
        f"{x}.new_zeros({x}.shape)",
        f"{x}.new_full((2,), {number!r})",
        f"torch.eye({x}.shape[{d}])",
        f"torch.tensor({number!r})",
        f"torch.tensor([{number!r}, 1.0])",
        f"torch.arange({x}.shape[{d}])[:, None] >= torch.arange({x}.shape[{d}])",
    ]
    return made(pool, pool.pick(options), x)


def convert(pool: Pool) -> Step | None:
    """Another dtype."""
    x = pool.value()
    if x is None:
        return None
    y = pool.value() or x
    options = [
        f"{x}.to({pool.pick(DTYPES)})",
        f"{x}.float()",
        f"{x}.type_as({y})",
        f"{x}.to({y}.dtype)",
        f"{x}.double()",
    ]
    return made(pool, pool.pick(options), x, y)


# ---- arithmetic as models write it


def arithmetic(pool: Pool) -> Step | None:
    """Operators between two values, or a value and a number."""
    x = pool.value()
    if x is None:
        return None
    y = pool.beside(x) or x
    number = pool.pick(NUMBERS)
    options = [
        f"{x} + {y}", f"{x} - {y}", f"{x} * {y}", f"{x} / {y}", f"{x} * {number!r}", f"{x} + {number!r}", f"{number!r} - {x}",
        f"{number!r} / {x}", f"-{x}", f"{x} == {y}", f"{x} > {y}", f"{x} < {number!r}", f"{x} & {y}", f"{x} | {y}", f"~{x}",
        f"{x} // {y}", f"{x} % {y}", f"{x} ** 2", f"{x} ** {number!r}", f"torch.where({x} > 0, {x}, {y})",
        f"{x}.masked_fill({y} == 0, {number!r})", f"torch.maximum({x}, {y})", f"{x}.clamp({number!r})",
        f"torch.clamp({x}, -1, 1)", f"torch.add({x}, {y}, alpha={number!r})",
    ]  # fmt: skip
    return made(pool, pool.pick(options), x, y)


def activation(pool: Pool) -> Step | None:
    """Functions of floating values."""
    x = pool.value(lambda t: t.is_floating_point())
    if x is None:
        return None
    names = (
        "relu", "silu", "gelu", "sigmoid", "tanh", "softplus", "exp", "sin", "cos", "sqrt", "rsqrt", "log1p", "abs",
        "leaky_relu", "logsigmoid", "erf", "log", "square", "reciprocal", "floor", "round", "trunc", "expm1",
    )  # fmt: skip
    name = pool.pick(names)
    where = "F" if name in ("relu", "silu", "gelu", "softplus", "leaky_relu", "logsigmoid") else "torch"
    return made(pool, f"{where}.{name}({x})", x)


def reduction(pool: Pool) -> Step | None:
    """A sum, an extreme, a norm or a scan, over one dimension or several."""
    x = pool.value()
    if x is None:
        return None
    n = rank(pool, x)
    dims = [d - n for d in range(n) if pool.maybe(40)] or [-1]
    d, keep = dims[-1], bool(pool.integer(0, 1))
    some = repr(tuple(dims))
    options = [
        f"{x}.sum({d}, keepdim={keep})", f"{x}.mean({d}, keepdim={keep})", f"{x}.amax({some}, {keep})", f"{x}.sum()",
        f"{x}.amin({some}, {keep})", f"{x}.sum({some}, {keep})", f"{x}.mean({some}, {keep})", f"{x}.mean()", f"{x}.max()",
        f"torch.softmax({x}, {d})", f"torch.log_softmax({x}, {d})", f"torch.logsumexp({x}, {some}, {keep})",
        f"{x}.cumsum({d})", f"{x}.any({d}, {keep})", f"{x}.all({d})", f"{x}.any()", f"{x}.argmax({d})", f"{x}.argmin({d}, {keep})",
        f"{x}.var({some}, keepdim={keep})", f"{x}.std({d})", f"{x}.max({d}).values", f"{x}.min({d}, {keep})[0]",
        f"torch.linalg.vector_norm({x}, dim={some}, keepdim={keep})", f"{x}.prod({d})", f"{x}.sum({d}, dtype=torch.float32)",
        f"F.layer_norm({x}, {x}.shape[{d}:])", f"F.rms_norm({x}, {x}.shape[-1:])", f"F.normalize({x}, dim={d})",
        f"{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-5)", f"({x} != 0).long().cumsum({d}) - 1",
        f"torch.softmax({x}, {d}, dtype=torch.float32).to({x}.dtype)",
    ]  # fmt: skip
    return made(pool, pool.pick(options), x)


def sized(pool: Pool) -> Step | None:
    """A size in arithmetic, or one that decides what is computed."""
    x = pool.value(lambda t: t.ndim > 0)
    if x is None:
        return None
    d = dim_of(pool, x)
    y = pool.beside(x) or x
    options = [
        f"{x} * {x}.shape[{d}]",
        f"{x} / {x}.size({d}) ** 0.5",
        f"{x} + {x}.numel()",
        f"{x} + 1 if {x}.shape[{d}] > {pool.integer(2, 7)} else {y} * 2",
        f"{x} if {x}.shape[{d}] % 2 else {y} - {x}",
        f"{x}[: {x}.shape[0] // 2]",
        f"{x}[{x}.shape[0] - 1 :]",
        f"{x} + {x}.dim()",
    ]
    return made(pool, pool.pick(options), x, y)


# ---- writes


def write(pool: Pool) -> Step | None:
    """A write to a value that exists: whole, through a view, or as an operator's `out`."""
    x = pool.value(lambda t: True) if pool.maybe(15) else pool.temporary()
    if x is None:
        return None
    y = pool.beside(x) or x
    number = pool.pick(NUMBERS)
    d = dim_of(pool, x)
    options = [
        f"{x}.add_({number!r})", f"{x}.mul_({y})", f"{x}.sub_({y})", f"{x}.copy_({y})", f"{x}.fill_({number!r})", f"{x}.zero_()",
        f"{x}.masked_fill_({y} > 0, {number!r})", f"{x}.clamp_(-1, 1)", f"{x} += {y}", f"{x} *= 2", f"{x}.neg_()", f"{x}.relu_()",
        f"torch.add({x}, {y}, out={x})", f"{x}.copy_({x} * 2 - {y})",
    ]  # fmt: skip
    if d is not None:
        options += [
            f"{x}[..., 1:] = {number!r}", f"{x}[..., :1] += 1", f"{x}[..., ::2] = {y}[..., ::2]", f"{x}[0] = {number!r}",
            f"{x}.select({d}, 0).mul_(3)", f"{x}.transpose(0, -1).add_({number!r})", f"{x}[{x} > 1] = {number!r}",
            f"{x}.view(-1)[1:] = {number!r}", f"{x}.cumsum_({d})",
        ]  # fmt: skip
    return Step(pool.pick(options), tuple(dict.fromkeys((x, y))))


# ---- what stays outside kernels


def library(pool: Pool) -> Step | None:
    """Matrix products, indexing, sorting."""
    x = pool.value(lambda t: t.ndim > 0)
    if x is None:
        return None
    y = pool.like(x) or x
    index = pool.value(lambda t: t.dtype is torch.int64) or x
    d = dim_of(pool, x)
    options = [
        f"{x} @ {y}.mT", f"torch.matmul({x}, {y}.transpose(-1, -2))", f"F.linear({x}, {y})", f"{x}.index_select({d}, {index}.flatten().abs() % 2)",
        f"torch.gather({x}, {d}, torch.zeros_like({x}, dtype=torch.int64))", f"{x}.topk(1, {d}).values", f"{x}.sort({d}).values",
        f"{x}[{index}.abs() % 2]", f"F.one_hot({index}.abs() % 4, 4)", f"F.scaled_dot_product_attention({x}, {y}, {y})",
        f"F.embedding({index}.abs() % 2, {x})",
    ]  # fmt: skip
    return made(pool, pool.pick(options), x, y, index)


def island(pool: Pool) -> Step | None:
    """A call with a Python side effect."""
    x = pool.value()
    return made(pool, f"cache.update({x}, {pool.integer(0, 3)})", x) if x is not None else None
