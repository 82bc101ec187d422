"""Triton kernels of matrix products compiled ahead of time, without a GPU: what ptxas made of the shapes of Qwen3-0.6B.

Nothing is timed. A row has how often its kernel falls short of what it is made for: products of halves on tensor cores
where rows are many, loads of 16 bytes, nothing spilled. Pointers are specialised as Triton's JIT does for tensors of
torch, whose addresses are multiples of 16; a number of rows that only a call knows is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from fusion.kernels.backends.triton import toolchain
from fusion.kernels.backends.triton.product_schedule import ProductSchedule
from fusion.kernels.backends.triton.schedule import schedule_for
from fusion.kernels.lower import lower_kernel
from fusion.patterns import symbols
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.scalar import HALF_TYPES
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim

from .options import Options
from .rows import Row, Target, make_row

TARGETS = ("sm_80", "sm_90")
NAMES = ("up", "down + residual", "swiglu", "q/k/v")
HIDDEN, INNER, QUERIES, KEYS = 1024, 3072, 2048, 1024
_MOST_NARROW = 0.15  # of the loaded bytes: one row's activations and residuals are narrow, weights are not
_WIDTH = 190  # columns of the table where there is no terminal


@dataclass(frozen=True)
class Case:
    """A kernel: the calls it fuses, for a number of rows that is known or any."""

    name: str
    rows: Dim
    dtype: torch.dtype

    @property
    def label(self) -> str:
        """What it is called in the table."""
        return f"{self.name}, {symbols.render(self.rows)} rows, {str(self.dtype).removeprefix('torch.')}"


class _Calls:
    """A SubGraph while it is written."""

    def __init__(self, case: Case) -> None:
        self.rows, self.dtype = case.rows, case.dtype
        self.specs: dict[str, TensorSpec] = {}
        self.inputs: list[str] = []
        self.nodes: list[OpNode] = []

    def given(self, rows: Dim, columns: int) -> str:
        """An input matrix."""
        name = self._named("x", rows, columns)
        self.inputs.append(name)
        return name

    def linear(self, x: str, outputs: int) -> str:
        """A product with a weight of its own."""
        terms = self.specs[x].shape[1]
        assert isinstance(terms, int)
        return self.call("linear.default", outputs, x, self.given(outputs, terms))

    def call(self, op: str, columns: int, *operands: str) -> str:
        """An operator's result of as many rows."""
        name = self._named("t", self.rows, columns)
        self.nodes.append(OpNode(f"aten.{op}", tuple(map(Ref, operands)), (), (name,)))
        return name

    def graph(self, *outputs: str, bundle: tuple[int, ...] = ()) -> SubGraph:
        """All of it."""
        return SubGraph(
            tuple(self.inputs), tuple(self.nodes), outputs, tuple(self.specs.items()), pattern=None, bundle=bundle
        )

    def _named(self, kind: str, rows: Dim, columns: int) -> str:
        name = f"{kind}{len(self.specs)}"
        self.specs[name] = TensorSpec.contiguous(self.dtype, (rows, columns), "cuda")
        return name


def graph_of(case: Case) -> SubGraph:
    """The calls of a case: of its inputs, the activations come first, then a residual, then the weights."""
    calls = _Calls(case)
    x = calls.given(case.rows, INNER if case.name == "down + residual" else HIDDEN)
    if case.name == "up":
        return calls.graph(calls.linear(x, INNER))
    if case.name == "down + residual":
        residual = calls.given(case.rows, HIDDEN)
        return calls.graph(calls.call("add.Tensor", HIDDEN, residual, calls.linear(x, HIDDEN)))
    if case.name == "swiglu":
        gate = calls.call("silu.default", INNER, calls.linear(x, INNER))
        return calls.graph(calls.call("mul.Tensor", INNER, gate, calls.linear(x, INNER)))
    queries, keys, values = (calls.linear(x, outputs) for outputs in (QUERIES, KEYS, KEYS))
    return calls.graph(queries, keys, values, bundle=(1, 2))


def cases() -> Iterator[Case]:
    """Every kernel: prefill and decode in each dtype; in bfloat16 a few rows, many, and any number of them, too."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        other = (8, 4096, symbols.symbol("s0")) if dtype is torch.bfloat16 else ()
        for rows in (256, 1, *other):
            for name in NAMES:
                yield Case(name, rows, dtype)


def run(options: Options) -> list[Row]:
    """A row for each kernel and target, or none where nothing can be compiled."""
    if not toolchain.version() or toolchain.interpreted():
        print("Nothing was compiled: Triton is not installed, or TRITON_INTERPRET is set.")
        return []
    chosen = list(cases())[:2] if options.quick else list(cases())
    rows = [_row(case, target, options) for case in chosen for target in TARGETS]
    _show(rows)
    return rows


def _row(case: Case, target: str, options: Options) -> Row:
    nest = lower_kernel(graph_of(case))
    schedule = schedule_for(nest)
    kernel = toolchain.compile_ahead(nest, schedule, target, even=isinstance(case.rows, int))
    held = kernel.instructions
    products = [part for part in schedule.parts if isinstance(part, ProductSchedule)]
    tiles = all(not part.few for part in products)
    shortfalls = [
        reason
        for reason, short in (
            ("no tensor core", tiles and case.dtype in HALF_TYPES and not held.tensor_core),
            ("narrow loads", held.whole < 1 - _MOST_NARROW),
            ("spills", bool(kernel.spills or held.local)),
        )
        if short
    ]
    facts = {
        "target": target, "blocks": [f"{p.rows}x{p.columns}x{p.depth}" for p in products],
        "schedule": "tiles" if tiles else "few rows", "warps": schedule.options(nest)["num_warps"],
        "stages": schedule.options(nest)["num_stages"], "registers": kernel.registers, "spilled_bytes": kernel.spills,
        "spill_instructions": held.local, "shared_bytes": kernel.shared, "tensor_core_ptx": held.tensor_core,
        "tensor_core_binary": held.tensor_core_binary, "loads_by_bytes": held.loads,
        "share_of_bytes_loaded_16_at_a_time": round(held.whole, 3), "shortfalls": shortfalls,
    }  # fmt: skip
    why = [] if kernel.registers is not None else ["no lister of NVIDIA's binaries was found"]
    return make_row(
        "triton_products", options.label(f"{case.label}, {target}: shortfalls"), float(len(shortfalls)), "",
        Target("at most", 0), why=why, facts=facts, command=options.command("triton_products"),
    )  # fmt: skip


def _show(rows: list[Row]) -> None:
    """Prints what was read of each kernel."""
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    columns = ("kernel", "blocks", "warps", "stages", "registers", "spilled", "shared", "tensor core", "in binary")
    for name in (*columns, "16-byte loads", "of bytes"):
        table.add_column(name, justify="left" if name in ("kernel", "blocks") else "right", no_wrap=True)
    for row in rows:
        facts = row.facts
        table.add_row(
            row.measured.split(": ")[0], " ".join(facts["blocks"]), str(facts["warps"]),
            str(facts["stages"]), str(facts["registers"]), str(facts["spilled_bytes"]),
            f"{facts['shared_bytes'] / 1024:.0f}K", str(facts["tensor_core_ptx"]), str(facts["tensor_core_binary"]),
            str(facts["loads_by_bytes"].get(16, 0)), f"{facts['share_of_bytes_loaded_16_at_a_time']:.0%}",
        )  # fmt: skip
    console.print(table)
