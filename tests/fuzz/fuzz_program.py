"""Random programs as immutable values: what one is, the Python text it stands for, and what it is called on.

A program is a list of steps over named values: inputs x0.., state of the module b0.. and p0.., results v0... Its text
is a module's source, so that what is tested, what is printed and what a failure's script holds are one and the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fuzz_around
import torch

Sizes = tuple[tuple[str, int], ...]  # what the letters in shapes stand for in a call


def fill(shape: tuple[int, ...], dtype: torch.dtype, data: str, seed: int) -> torch.Tensor:
    """A dense tensor; the same for the same arguments. `data` is "normal", "small" (whole numbers) or "special"."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-3, 4, shape, generator=generator)
    if dtype is torch.bool:
        return whole > 0
    if dtype is torch.uint8:
        whole = whole.abs()
    made = whole.to(dtype)
    if dtype.is_floating_point and data != "small":
        made = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if data == "special":
        if dtype.is_floating_point:
            tiny = torch.finfo(dtype).smallest_normal
            choice = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, tiny / 4, -tiny, 1.0]
        else:
            most = torch.iinfo(dtype).max
            choice = [most, 0, 1, 2, most - 1] if dtype is torch.uint8 else [most, -most, 0, -1, 1]
        picked = torch.tensor(choice, dtype=dtype)[torch.randint(0, len(choice), shape, generator=generator)]
        made = torch.where(torch.rand(shape, generator=generator) < 0.3, picked, made)
    return made


def laid_out(layout: str, shape: tuple[int, ...], dtype: torch.dtype, data: str, seed: int) -> torch.Tensor:
    """A tensor of `shape` whose memory is laid out in one of the ways a caller's may be."""
    rank = len(shape)
    if layout == "odd" and 1 in shape:  # strides that no element depends on
        dense = fill(shape, dtype, data, seed)
        strides = [
            (0, 7, 3 * stride)[seed % 3] if n == 1 else stride for n, stride in zip(shape, dense.stride(), strict=True)
        ]
        return dense.as_strided(shape, strides)
    if layout == "transposed" and rank > 1:
        return fill((*shape[:-2], shape[-1], shape[-2]), dtype, data, seed).transpose(-1, -2)
    if layout == "stepped" and rank:
        return fill((*shape[:-1], 2 * shape[-1]), dtype, data, seed)[..., ::2]
    if layout == "offset" and rank:
        return fill((shape[0] + 1, *shape[1:]), dtype, data, seed)[1:]
    if layout == "expanded" and rank:
        return fill((1, *shape[1:]), dtype, data, seed).expand(shape)
    return fill(shape, dtype, data, seed)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input, or a buffer or parameter of the module.

    Attributes:
        name: "x0" of an input, "b0" of a buffer, "p0" of a parameter.
        shape: sizes; a letter stands for a size that differs between calls.
        dtype: element type.
        layout: see `laid_out`.
        data: see `fill`.
        alias: instead of a tensor of its own, an expression over inputs before it: "x0", "x0[1:]".
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    layout: str = "dense"
    data: str = "normal"
    alias: str = ""

    def text(self, seed: str) -> str:
        """The expression that makes it, in a scope where the letters of sizes are bound."""
        if self.alias:
            return self.alias
        shape = "(" + ", ".join(map(str, self.shape)) + ("," if len(self.shape) == 1 else "") + ")"
        return f"laid_out({self.layout!r}, {shape}, {self.dtype}, {self.data!r}, {seed})"


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a forward.

    Attributes:
        text: the statement.
        reads: names of the values it reads or writes to.
        makes: names of the values it makes.
        inside: whether it is in the program's block, as are all between the first such step and the last.
    """

    text: str
    reads: tuple[str, ...]
    makes: tuple[str, ...] = ()
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """One argument of a forward: a tensor, or a container of tensors.

    Attributes:
        name: the parameter's name.
        kind: "plain", "tuple", "list" or "dict".
        inputs: names of the inputs in it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]

    def packed(self, key: Callable[[str], str]) -> str:
        """The expression that a caller passes; `key` gives an input's key in a dict."""
        if self.kind == "plain":
            return self.inputs[0]
        if self.kind == "dict":
            return "{" + ", ".join(f"{key(i)!r}: {i}" for i in self.inputs) + "}"
        inside = ", ".join(self.inputs)
        return f"[{inside}]" if self.kind == "list" else f"({inside},)"

    def unpacked(self, key: Callable[[str], str]) -> list[str]:
        """The statements with which a forward begins."""
        if self.kind == "plain":
            return [] if self.name == self.inputs[0] else [f"{self.inputs[0]} = {self.name}"]
        if self.kind == "dict":
            return [f"{i} = {self.name}[{key(i)!r}]" for i in self.inputs]
        return [f"{', '.join(self.inputs)}, = {self.name}"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Modules in a row that a forward calls.

    Attributes:
        count: how many; with 0 their steps stand in the forward.
        carry: a value that the next block reads in place of another, and that other.
        within: where blocks have parts, and so are scopes of their own, the context in which the forward calls them, as
            an expression, or ""; None where they have none.
    """

    count: int = 0
    carry: tuple[str, str] | None = None
    within: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A forward, what it is called on, and at which sizes.

    Attributes:
        inputs, state: tensors that come by argument, and those the module holds.
        groups: the forward's arguments.
        steps: its statements.
        result: the expression it returns.
        sizes: what the letters stand for, call structure by call structure; the first is recorded.
        min_nodes: the config's.
        cache: whether the forward takes a `Store` whose `update` is an island.
        number: whether the forward takes an integer `n0`, which is 3 in all calls but one.
        blocks: what runs the steps that are `inside`.
        around: whether the steps find what `fuzz_around.SOURCE` defines.
        events: statements about `module` that a caller runs between calls, each with the number of the call after it.
        hostile: whether state and dict keys have the names of `fuzz_around.hostile`.
    """

    inputs: tuple[Tensor, ...]
    state: tuple[Tensor, ...]
    groups: tuple[Group, ...]
    steps: tuple[Step, ...]
    result: str
    sizes: tuple[Sizes, ...]
    min_nodes: int = 1
    cache: bool = False
    number: bool = False
    blocks: Blocks = Blocks()
    around: bool = False
    events: tuple[tuple[int, str], ...] = ()
    hostile: bool = False
    letters: tuple[str, ...] = field(default=("B", "N"))

    def _key(self, name: str) -> str:
        return fuzz_around.hostile(name) if self.hostile else name

    def text(self) -> str:
        """The source of the module, of `arguments(sizes, seed)`, and of what both need but torch."""
        extra = [name for name, there in (("cache", self.cache), ("n0", self.number)) if there]
        forward = [line for g in self.groups for line in g.unpacked(self._key)]
        forward += [f"{s.name} = getattr(self, {self._key(s.name)!r})" for s in self.state]
        inside = [k for k, step in enumerate(self.steps) if step.inside] if self.blocks.count else []
        block, between = self._block(extra) if inside else ([], [])
        forward += [step.text for step in self.steps[: inside[0] if inside else None]] + between
        forward += [step.text for step in self.steps[inside[-1] + 1 :]] if inside else []
        held = [f"self.blocks = torch.nn.ModuleList(Block() for _ in range({self.blocks.count}))"] if inside else []
        for k, s in enumerate(self.state):
            made = s.text(str(1000 + k))
            if s.name.startswith("p"):
                parameter = f"torch.nn.Parameter({made}, requires_grad=False)"
                held.append(f"self.register_parameter({self._key(s.name)!r}, {parameter})")
            else:
                held.append(f"self.register_buffer({self._key(s.name)!r}, {made})")
        given = [f"{x.name} = {x.text(f'seed + {k}')}" for k, x in enumerate(self.inputs)]
        packed = [g.packed(self._key) for g in self.groups]
        packed += (["Store()"] if self.cache else []) + (["2 if seed == 300 else 3"] if self.number else [])
        return "\n".join(
            [
                *(fuzz_around.SOURCE.splitlines() if self.around else []),
                *(_STORE.splitlines() if self.cache else []),
                *block,
                f"class Forward({self._base}):",
                "    def __init__(self):",
                "        super().__init__()",
                *(f"        {line}" for line in held),
                "",
                f"    def forward({', '.join(['self', *(g.name for g in self.groups), *extra])}):",
                *(f"        {line}" for line in forward),
                f"        return {self.result}",
                "",
                "",
                *(fuzz_around.OTHER.format("Forward").splitlines() if self.around else []),
                f"def arguments({', '.join(self.letters)}, seed):",
                *(f"    {line}" for line in given),
                f"    return ({', '.join(packed)}{',' if packed else ''})",
                "",
            ]
        )

    @property
    def _base(self) -> str:
        return "Around" if self.around else "torch.nn.Module"

    def _block(self, extra: list[str]) -> tuple[list[str], list[str]]:
        """The source of the block's class, and the lines of the forward that call it."""
        steps = [step for step in self.steps if step.inside]
        made = list(dict.fromkeys(name for step in steps for name in step.makes))
        reads = dict.fromkeys(name for step in steps for name in step.reads if name not in made)
        given = [*reads, *(name for name in extra if any(name in step.text for step in steps))]
        parts = ["    def __init__(self):", "        super().__init__()", "        self.part = torch.nn.Identity()", ""]
        source = [
            f"class Block({self._base}):",
            *([] if self.blocks.within is None else parts),
            f"    def forward({', '.join(['self', *given])}):",
            *(f"        {step.text}" for step in steps),
            f"        return {', '.join(made) or None}",
            "",
            "",
            *(fuzz_around.OTHER.format("Block").splitlines() if self.around else []),
        ]
        call = f"    {', '.join(made)}{' = ' if made else ''}block({', '.join(given)})"
        calls = [f"    with {self.blocks.within}:", f"    {call}"] if self.blocks.within else [call]
        carried = [f"    {self.blocks.carry[1]} = {self.blocks.carry[0]}"] if self.blocks.carry else []
        return source, ["for block in self.blocks:", *calls, *carried]

    @property
    def digest(self) -> str:
        """Names the program: the start of a SHA-256 over its text."""
        return hashlib.sha256(f"{self.text()}{self.sizes}{self.min_nodes}{self.events}".encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.text()}\nsizes = {[dict(s) for s in self.sizes]}, min_nodes = {self.min_nodes}"


_STORE = '''\
class Store:
    """Keeps what it was given before, and hands back all of it: a call with a Python side effect."""

    def __init__(self):
        self.kept = []

    def update(self, value, layer):
        self.kept.append(value.clone())
        return value + len(self.kept)


fusion.register_island(Store, "update")


'''


def load(program: Program, names: Mapping[str, Any]) -> dict[str, Any]:
    """What a program's text defines: its module class "Forward", its "arguments", and what is around them.

    Args:
        program: what to load.
        names: what its text may name beside torch and this module's functions.
    """
    scope: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "laid_out": laid_out, **names}
    exec(compile(program.text(), "fuzzed.py", "exec"), scope)
    return scope
