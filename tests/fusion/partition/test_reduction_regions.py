"""Regions around reductions and scans over any dimensions: recorded, fused into one kernel, called on new inputs."""

from __future__ import annotations

import pytest
import torch
from graphs import normal, trace
from reduction_cases import judge, regions

import fusion
from fusion.kernels.backends.cpp.toolchain import find_toolchain
from fusion.patterns.ops import Kind, kind_of

REGIONS = {name: region for name, region in regions().items() if name != "native layer norm"}  # three results


@pytest.mark.skipif(find_toolchain() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", REGIONS)
def test_one_kernel_computes_the_region(name: str, quick: fusion.FusionConfig) -> None:
    fn, inputs = REGIONS[name]
    config = fusion.FusionConfig(profile=False, min_nodes=1, cache_dir=quick.cache_dir)
    with torch.no_grad(), fusion.record(*inputs, config=config) as recording:
        fn(*inputs)
    computing = [n for n in recording.graph.nodes if kind_of(n.op) is not Kind.VIEW and n.op != "aten.to.dtype"]
    (region,) = recording.subgraphs
    assert {n.op for n in computing} <= {n.op for n in region.nodes}
    compiled = recording.compile()
    others = tuple(
        x.roll(1, 0) if not x.is_floating_point() else normal(*x.shape, seed=7 + k) for k, x in enumerate(inputs)
    )
    for given in (inputs, others):
        before = [x.clone() for x in given]
        found = compiled(*given)
        found = found if isinstance(found, tuple) else (found,)
        assert not judge(trace(fn, *given), found, given)
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
    assert len(recording.kernels) == 1, "the fused path ran"


def test_both_results_of_a_maximum_are_used(quick: fusion.FusionConfig) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = (x * 2.0).max(-1, keepdim=True)
        return (x - values).exp(), indices

    x = normal(6, 40)
    with torch.no_grad(), fusion.record(x, config=quick) as recording:
        fn(x)
    assert [s.ops for s in recording.subgraphs] == [("mul", "max", "sub", "exp")]
    made = {t.dtype: t for t in recording.compile()(x).values()}
    for eager in fn(x):
        torch.testing.assert_close(made[eager.dtype], eager)
    assert len(recording.kernels) == 1, "the fused path ran"
