"""A recording with a node of each kind that is no operator."""

from __future__ import annotations

import torch

from fusion.patterns.leaves import Attribute, Expect, Ref
from fusion.patterns.python_nodes import Item, Method, NewObject, ObjectRead, OpaqueCall, PythonNode, TensorRead
from fusion.patterns.recorded import GraphInput, HeldObject, RecordedGraph, SymbolSource
from fusion.patterns.specs import TensorSpec

ROW = TensorSpec(torch.float32, (1,), (1,))

LENGTH = OpaqueCall(Method(("cache",), "length"), (), (), ("n0",), False, "leaf")
LAYERS = ObjectRead(("cache",), Attribute("layers"), ("o0",), kind=list)
LAYER = ObjectRead(Ref("o0"), Item("__getitem__", (0,)), ("v1",))
TRUTH = TensorRead(Ref("v1"), "__bool__", Expect(True))
STATE = NewObject(Ref("h0"), (Ref("x0"), 2), (("scale", 0.5),), "o1")
BLOCK = OpaqueCall(Ref("h1"), (Ref("v1"),), (("state", Ref("o1")),), ("v2",), True, "leaf")
NODES: tuple[PythonNode, ...] = (LENGTH, LAYERS, LAYER, TRUTH, STATE, BLOCK)

GRAPH = RecordedGraph(
    inputs=(GraphInput("x0", ("x",)),),
    parameters=(),
    constants=(),
    mutated=(),
    nodes=NODES,
    outputs=(Ref("v2"),),
    structure="*",
    specs=(("x0", ROW), ("v1", ROW), ("v2", ROW)),
    symbols=(SymbolSource("s0", "n0", "result"),),
    guards=(),
    objects=(HeldObject("h0", "class", "cache.State"), HeldObject("h1", "module", "block")),
)
