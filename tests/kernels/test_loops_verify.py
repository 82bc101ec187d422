"""What the verifier of LoopNests turns down."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from graphs import normal
from lowered import nest_of

from fusion.kernels.loops import Axis
from fusion.patterns import scalar, symbols
from fusion.patterns.errors import GraphError
from fusion.patterns.scalar import Apply, Constant, Load, Reduce, Reduced, Scan, Scanned, Select


def malformed(**changes: Any) -> str:
    """What is said of a kernel of a sum and a scan of it with changes."""
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    with pytest.raises(GraphError) as caught:
        dataclasses.replace(nest, **changes)
    return str(caught.value)


def test_malformed_reductions_and_scans() -> None:
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    scan, total = nest.reductions
    (store,) = nest.stores
    f32 = torch.float32
    assert scan.running and not total.running
    again = dataclasses.replace(total, name=scan.name)
    assert "two reductions are called" in malformed(reductions=(scan, total, again))
    assert "takes bools" in malformed(reductions=(scan, dataclasses.replace(total, body=Constant(torch.bool, True))))
    assert "is no scan" in malformed(reductions=(dataclasses.replace(scan, fn="max"), total))
    assert "is no reduction" in malformed(reductions=(scan, dataclasses.replace(total, fn="mean")))
    over_column = dataclasses.replace(total, extent=symbols.index_symbol("j"))
    assert "depends on the column" in malformed(reductions=(scan, over_column))
    assert "uses ['s9']" in malformed(reductions=(scan, dataclasses.replace(total, extent=symbols.symbol("s9"))))
    assert "before it is computed" in malformed(reductions=(total,))
    for wrong in (Reduced(f32, scan.name), Scanned(f32, total.name)):
        assert ", not so" in malformed(stores=(dataclasses.replace(store, value=wrong),))
    per_row = dataclasses.replace(store, value=Scanned(f32, scan.name), offset=0, per_row=True)
    assert "once per row but reads the scan" in malformed(stores=(per_row,))
    assert "beyond its 6 columns" in malformed(column=Axis("j", 7))
    nested = Reduce(f32, "sum", total.body, 6)
    assert "not hoisted" in malformed(stores=(dataclasses.replace(store, value=nested),))
    nested = Scan(f32, "sum", total.body, 6)
    assert "not hoisted" in malformed(stores=(dataclasses.replace(store, value=nested),))


def test_malformed_bounds_and_sizes() -> None:
    """Every size, index and bound of a kernel is made of sizes and indices that it has."""
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    (store,), (argument,), (output,) = nest.stores, nest.inputs, nest.outputs
    (row,) = nest.rows
    one, strange = Constant(torch.float32, 1.0), symbols.symbol("s9")
    j = symbols.index_symbol("j")

    def storing(value: scalar.Scalar) -> str:
        return malformed(stores=(dataclasses.replace(store, value=value),))

    unknown = "uses ['s9'], which are no index or size"
    assert unknown in storing(Select(torch.float32, j, (strange,), (one, one)))
    assert unknown in storing(Select(torch.float32, strange, (3,), (one, one)))
    assert "2 cases by 2 bounds" in storing(Select(torch.float32, j, (2, 3), (one, one)))
    assert unknown in storing(scalar.Size(torch.float32, strange))
    assert unknown in storing(Load(torch.float32, argument.name, strange, torch.float32))
    assert unknown in malformed(stores=(dataclasses.replace(store, offset=strange),))
    assert unknown in malformed(rows=(dataclasses.replace(row, extent=strange),))
    assert unknown in malformed(column=Axis("j", strange))
    assert unknown in malformed(inputs=(dataclasses.replace(argument, strides=(strange, 1)),))
    assert unknown in malformed(outputs=(dataclasses.replace(output, shape=(strange, 6)),))


def test_malformed_stores() -> None:
    nest = nest_of(lambda x: x.cumsum(-1) - x.sum(-1, keepdim=True), normal(4, 6))
    (store,), (argument,) = nest.stores, nest.inputs
    j = symbols.index_symbol("j")
    x = Load(torch.float32, argument.name, j, torch.float32)
    assert "stores nothing" in malformed(stores=())
    assert "'o9', which is no output" in malformed(stores=(dataclasses.replace(store, output="o9"),))
    assert "without a column axis" in malformed(column=None)
    nowhere = dataclasses.replace(x, argument="a9")
    assert "loads from 'a9', which is no input" in malformed(stores=(dataclasses.replace(store, value=nowhere),))
    per_row = dataclasses.replace(store, value=x, offset=0, per_row=True)
    assert "once per row but depends on the column" in malformed(stores=(per_row,))
    strange = dataclasses.replace(store, value=Apply(torch.float32, "sinc", (x,)))
    assert "applies 'sinc', which is no primitive" in malformed(stores=(strange,))
