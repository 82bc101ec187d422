"""A recording by hand with one of everything that a recording may hold."""

from __future__ import annotations

import torch

from fusion.patterns import symbols
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.python_nodes import Method, OpaqueCall
from fusion.patterns.recorded import GraphInput, HeldObject, RecordedGraph, SymbolSource
from fusion.patterns.specs import TensorSpec

ROW = TensorSpec.contiguous(torch.float32, (symbols.symbol("s0"),))
SHAPED = SymbolSource("s0", "x0", "shape", 0)


def exp(source: str = "x0", made: str = "v1") -> OpNode:
    """A call of exp."""
    return OpNode("aten.exp.default", (Ref(source),), (), (made,))


GOOD = RecordedGraph(
    inputs=(GraphInput("x0", ("x",)),),
    parameters=(("p0", "weight"),),
    constants=("c0",),
    mutated=("v1",),
    nodes=(
        exp(),
        OpNode("aten.add_.Tensor", (Ref("v1"), Ref("p0")), (), ("v1",)),
        OpaqueCall(Method(("cache",), "length"), (), (), ("n2",), False, "leaf"),
        OpNode("aten.expand.default", (Ref("c0"), (symbols.symbol("s1"),)), (), ("v3",)),
    ),
    outputs=(Ref("v1"), Ref("v3"), symbols.symbol("s0")),
    structure="",
    specs=(
        ("x0", ROW),
        ("p0", ROW),
        ("c0", TensorSpec(torch.float32, (1,), (1,))),
        ("v1", ROW),
        ("v3", TensorSpec(torch.float32, (symbols.symbol("s1"),), (0,))),
    ),
    symbols=(SHAPED, SymbolSource("s1", "n2", "result")),
    guards=("s0 <= 3*s1", "not (max(s0, s1) == 7)"),
    objects=(HeldObject("o0", "class", "cache.Cache"),),
)
