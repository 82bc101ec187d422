"""Scalar expressions as C++: the table of primitives, literals, and blocks of statements with named temporaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fusion.kernels.backends.cpp.dependence import Dependence, split_column
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Apply, Constant, Load, Reduced, Scalar, Scanned, Select, Size
from fusion.patterns.symbols import Dim

# Element types in memory and in arithmetic.
STORAGE = {
    torch.float32: "float", torch.float64: "double", torch.bfloat16: "uint16_t", torch.float16: "uint16_t",
    torch.int64: "int64_t", torch.int32: "int32_t", torch.int16: "int16_t", torch.int8: "int8_t",
    torch.uint8: "uint8_t", torch.bool: "uint8_t",
}  # fmt: skip
COMPUTE = {
    torch.float32: "float", torch.float64: "double", torch.int64: "int64_t", torch.int32: "int32_t",
    torch.bool: "bool",
}  # fmt: skip

FLOATING = (torch.float32, torch.float64)

# Primitive -> its C++ expression over floating-point operands, and over integers and bools where that differs.
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "neg": ("(-{0})", "neg_of({0})"),
    "abs": ("abs_of({0})",),
    "exp": ("exp_of({0})",),
    "expm1": ("expm1_of({0})",),
    "log": ("log_of({0})",),
    "log1p": ("log1p_of({0})",),
    "sqrt": ("sqrt_of({0})",),
    "rsqrt": ("rsqrt_of({0})",),
    "sin": ("sin_of({0})",),
    "cos": ("cos_of({0})",),
    "tanh": ("tanh_of({0})",),
    "erf": ("erf_of({0})",),
    "floor": ("floor_of({0})", "{0}"),
    "ceil": ("ceil_of({0})", "{0}"),
    "trunc": ("trunc_of({0})", "{0}"),
    "round": ("round_of({0})", "{0}"),
    "not": ("(!{0})",),
    "isnan": ("is_nan({0})",),
    "add": ("({0} + {1})", "add_of({0}, {1})"),
    "sub": ("({0} - {1})", "sub_of({0}, {1})"),
    "mul": ("({0} * {1})", "mul_of({0}, {1})"),
    "div": ("({0} / {1})", "quotient_of({0}, {1})"),
    "pow": ("pow_of({0}, {1})", "whole_pow({0}, {1})"),
    "fmod": ("fmod_of({0}, {1})",),
    "atan2": ("atan2_of({0}, {1})",),
    "shl": ("shl_of({0}, {1})",),
    "shr": ("shr_of({0}, {1})",),
    "max": ("max_of({0}, {1})",),
    "min": ("min_of({0}, {1})",),
    "lt": ("({0} < {1})",),
    "le": ("({0} <= {1})",),
    "gt": ("({0} > {1})",),
    "ge": ("({0} >= {1})",),
    "eq": ("({0} == {1})",),
    "ne": ("({0} != {1})",),
    "and": ("({0} & {1})",),
    "or": ("({0} | {1})",),
    "xor": ("({0} ^ {1})",),
    "where": ("({0} ? {1} : {2})",),
    "fma": ("fma_of({0}, {1}, {2})",),
    "cast": ("(({type}){0})",),
    "round_bfloat16": ("round_bfloat16({0})",),
    "round_float16": ("round_float16({0})",),
    "wrap_int8": ("((int32_t)(int8_t){0})",),
    "wrap_int16": ("((int32_t)(int16_t){0})",),
    "wrap_uint8": ("((int32_t)(uint8_t){0})",),
}

# Rough cost of a primitive in vector instructions, for the choice of threads; the rest count 1.
COSTS = {
    "exp": 18, "expm1": 20, "log": 22, "log1p": 24, "sin": 80, "cos": 80, "tanh": 36, "erf": 36, "pow": 300,
    "atan2": 300, "fmod": 100, "div": 8, "sqrt": 8, "rsqrt": 14, "round_bfloat16": 6, "round_float16": 3,
}  # fmt: skip

_INLINE_LIMIT = 90  # longer expressions get a name, for the reader


def apply_text(node: Apply, operands: Sequence[str]) -> str:
    """The expression of a primitive over the texts of its operands."""
    templates = EXPRESSIONS[node.fn]
    template = templates[0] if node.args[-1].dtype.is_floating_point else templates[-1]
    if node.fn == "cast" and node.dtype is torch.bool:
        template = "({0} != 0)"
    if node.fn == "cast" and node.dtype.is_floating_point and _was_floating(node.args[0]):
        template = "(({type})unseen({0}))"
    if node.fn == "neg" and isinstance(node.args[0], Apply) and node.args[0].fn == "fma":
        template = "flipped({0})"
    if node.fn in ("and", "or", "xor") and node.dtype is torch.bool:
        template = f"((bool){template})"  # C++ makes an int of two bools, and max_of wants two of a kind
    return template.format(*operands, type=COMPUTE[node.dtype])


def _was_floating(node: Scalar) -> bool:
    """Whether an integer is a converted float."""
    while isinstance(node, Apply) and node.fn == "cast" and node.dtype not in (torch.bool, *FLOATING):
        node = node.args[0]
        if node.dtype in FLOATING:
            return True
    return False


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A number as a C++ literal of exactly that value in `dtype`."""
    if dtype is torch.bool:
        return "true" if value else "false"
    if not dtype.is_floating_point:
        if int(value) in (-(2**63), -(2**31)):
            return "INT64_MIN" if dtype is torch.int64 and int(value) == -(2**63) else f"({COMPUTE[dtype]})INT32_MIN"
        text = f"INT64_C({int(value)})" if dtype is torch.int64 else str(int(value))
        return f"({text})" if value < 0 else text
    suffix = "f" if dtype is torch.float32 else ""
    with np.errstate(over="ignore"):
        number = np.float32(value) if suffix else np.float64(value)
    if np.isnan(number):
        return f'__builtin_nan{suffix}("")'
    if np.isinf(number):
        return f"{'(-' if number < 0 else ''}__builtin_inf{suffix}(){')' if number < 0 else ''}"
    text = str(number) + suffix
    return f"({text})" if text.startswith("-") else text


def load_text(storage: torch.dtype, element: str) -> str:
    """An element of memory widened to the dtype arithmetic runs in."""
    if storage is torch.bfloat16:
        return f"widen_bfloat16({element})"
    if storage is torch.float16:
        return f"widen_float16({element})"
    if storage is torch.bool:
        return f"({element} != 0)"
    compute = scalar.compute_type(storage)
    return element if compute is storage else f"({COMPUTE[compute]}){element}"


def store_text(storage: torch.dtype, value: str, *, plain_bfloat16: bool) -> str:
    """A value narrowed to an element of memory; `plain_bfloat16` as in `Values`."""
    if storage is torch.bfloat16:
        return f"narrow_bfloat16{'_plain' if plain_bfloat16 else ''}({value})"
    if storage is torch.float16:
        return f"narrow_float16({value})"
    if storage in (torch.float32, torch.float64, torch.int64, torch.int32):
        return value
    return f"({STORAGE[storage]}){value}"


def _added_exp(node: Scalar) -> Scalar | None:
    """The exponential in `constant + exp(x)`, if the constant is so large that subnormal results vanish in the sum."""
    if isinstance(node, Apply) and node.fn == "add":
        for constant, other in (node.args, node.args[::-1]):
            large = isinstance(constant, Constant) and abs(constant.value) >= 1e-20
            if large and isinstance(other, Apply) and other.fn == "exp":
                return other
    return None


def stored_value(value: Scalar, storage: torch.dtype) -> Scalar:
    """`value` without a rounding that `store_text` repeats."""
    name = {torch.bfloat16: "round_bfloat16", torch.float16: "round_float16"}.get(storage)
    return value.args[0] if isinstance(value, Apply) and value.fn == name else value


class Interner:
    """Makes structurally equal expressions one object, so that each is computed once."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], Scalar] = {}

    def __call__(self, root: Scalar) -> Scalar:
        memo: dict[int, Scalar] = {}
        for node in scalar.walk(root):
            made = scalar.rebuild(node, lambda _: None, memo)
            memo[id(node)] = self._nodes.setdefault(_key(made), made)
        return memo[id(root)]


def _key(node: Scalar) -> tuple[object, ...]:
    below = tuple(id(c) for c in scalar.children(node))
    match node:
        case Constant(value=value):
            return ("constant", node.dtype, repr(value))
        case Size(dim=dim):
            return ("size", node.dtype, symbols.render(dim))
        case Load(argument=argument, offset=offset, storage=storage):
            return ("load", node.dtype, argument, symbols.render(offset), storage)
        case Apply(fn=fn):
            return ("apply", node.dtype, fn, below)
        case Select(index=index, bounds=bounds):
            return ("select", node.dtype, symbols.render(index), tuple(map(symbols.render, bounds)), below)
        case Reduced(name=name) | Scanned(name=name):
            return (type(node).__name__, node.dtype, name)
        case _:
            return ("other", id(node))


@dataclass
class Block:
    """Statements under construction.

    Attributes:
        kind: "row" (straight-line code of a row), "loop" (the body of a column loop; what does not run with the
            column goes to the parent), "branch" (one side of an `if`; nothing leaves it, as it may not be taken).
        parent: the block around it.
        lines: statements, each with its indentation relative to the block.
        names: the variable that holds each expression computed here, by the expression's id; and each index by text.
    """

    kind: str = "row"
    parent: Block | None = None
    lines: list[str] = field(default_factory=list)
    names: dict[int | str, str] = field(default_factory=dict)

    def find(self, key: int | str) -> str | None:
        """The variable that holds an expression, computed here or around here."""
        block: Block | None = self
        while block is not None:
            if key in block.names:
                return block.names[key]
            block = block.parent
        return None

    @property
    def row(self) -> Block:
        """The nearest block outside the column loop."""
        block = self
        while block.kind != "row" and block.parent is not None:
            block = block.parent
        return block

    def nest(self, block: Block) -> None:
        """Appends the statements of an inner block, indented."""
        self.lines += ["    " + line for line in block.lines]


class Values:
    """Writes expressions into blocks, each shared one once.

    Args:
        plain_bfloat16: no NaN of the kernel has bits in the lower half of a float, so that rounding need not care.
    """

    def __init__(self, *, plain_bfloat16: bool) -> None:
        self.plain_bfloat16 = plain_bfloat16
        self.runs_with_column = Dependence()
        self._uses: Counter[int] = Counter()
        self._added: set[int] = set()  # exponentials that only a sum with a constant uses
        self._temporaries = 0

    def count(self, roots: Iterable[Scalar]) -> None:
        """Takes note of what `roots` share."""
        roots = tuple(roots)
        nodes = tuple(scalar.walk(*roots))
        self._uses = Counter(id(root) for root in roots)
        self._uses.update(id(child) for node in nodes for child in scalar.children(node))
        self._added = {id(e) for node in nodes if (e := _added_exp(node)) is not None and self._uses[id(e)] == 1}

    def fresh(self, prefix: str) -> str:
        """A variable name that no other statement of the kernel uses."""
        self._temporaries += 1
        return f"{prefix}{self._temporaries}"

    def stored(self, storage: torch.dtype, text: str) -> str:
        """The text of a value narrowed to an element of memory."""
        return store_text(storage, text, plain_bfloat16=self.plain_bfloat16)

    def write(self, node: Scalar, block: Block) -> str:
        """The text of `node`'s value in `block`, after the statements it needs were appended there."""
        match node:
            case Constant(value=value):
                return literal(value, node.dtype)
            case Reduced(name=name):
                return name
            case Scanned(name=name):
                at = block.find(f"{name} at the column")
                assert at is not None, f"{name} is read outside of a loop that computes it"
                return at
        held = block.find(id(node))
        if held is not None:
            return held
        if block.kind == "loop" and block.parent is not None and not self.runs_with_column(node):
            return self._name(node, self.write(node, block.parent), block.parent)
        if isinstance(node, Select):
            return self._select(node, block)
        text = self._text(node, block)
        wanted = isinstance(node, Load) or self._uses[id(node)] > 1 or len(text) > _INLINE_LIMIT
        return self._name(node, text, block) if wanted else text

    def _name(self, node: Scalar, text: str, block: Block) -> str:
        if text.isidentifier():
            return text
        name = self.fresh("x")
        block.lines.append(f"const {COMPUTE[node.dtype]} {name} = {text};")
        block.names[id(node)] = name
        return name

    def _text(self, node: Scalar, block: Block) -> str:
        match node:
            case Load(argument=argument, offset=offset, storage=storage):
                return load_text(storage, f"{argument}[{self.index(offset, block)}]")
            case Size(dim=dim):
                return f"({COMPUTE[node.dtype]}){symbols.print_c(dim)}"
            case Apply(fn=fn, args=args):
                text = apply_text(node, [self.write(a, block) for a in args])
                if fn == "round_bfloat16" and self.plain_bfloat16:
                    return text.replace(fn, f"{fn}_plain", 1)
                return text.replace("exp_of", "exp_normal_of", 1) if id(node) in self._added else text
            case _:
                raise TypeError(f"{type(node).__name__} is no expression of a kernel's body.")

    def _select(self, node: Select, block: Block) -> str:
        name = self.fresh("x")
        block.lines.append(f"{COMPUTE[node.dtype]} {name};")
        inners = [Block("branch", block) for _ in node.cases]
        for inner, case in zip(inners, node.cases, strict=True):
            inner.lines.append(f"{name} = {self.write(case, inner)};")
        for opening, inner in zip(branches(node), inners, strict=True):
            block.lines.append(opening)
            block.nest(inner)
        block.lines.append("}")
        block.names[id(node)] = name
        return name

    def index(self, offset: Dim, block: Block) -> str:
        """An element offset as C++; what does not run with the column is computed outside its loop."""
        parts = split_column(offset)
        if parts is None:
            return symbols.print_c(offset)
        step, rest = parts
        terms = [] if step == 0 else [scalar.COLUMN if step == 1 else f"{symbols.print_c(step)}*{scalar.COLUMN}"]
        if rest != 0 or not terms:
            terms.insert(0, self._row_index(rest, block))
        return " + ".join(terms)

    def _row_index(self, rest: Dim, block: Block) -> str:
        text = symbols.print_c(rest)
        if isinstance(rest, int) or text.isidentifier():
            return text
        held = block.find(text)
        if held is None:
            row = block.row
            held = self.fresh("at")
            row.lines.append(f"const int64_t {held} = {text};")
            row.names[text] = held
        return held


def branches(node: Select) -> list[str]:
    """The line that opens each case of a Select: `if (...) {`, `} else if (...) {`, `} else {`."""
    index = symbols.print_c(node.index)
    tests = [f"if ({index} < {symbols.print_c(bound)}) {{" for bound in node.bounds]
    return [("} else " if k else "") + test for k, test in enumerate([*tests, "{"])]


def cost(roots: Iterable[Scalar]) -> int:
    """Vector instructions per element, roughly."""
    return sum(_cost(node) for node in scalar.walk(*roots))


def _cost(node: Scalar) -> int:
    if isinstance(node, Apply):
        return COSTS.get(node.fn, 1)
    return 2 if isinstance(node, Load) else 0
