"""Triton kernels on a GPU: every example against eager on the same device, by the rule of `patterns/verify.py`.

What the other tiers cannot show: the launcher's specialisations (alignment, divisibility, sizes of 1), streams,
devices, 64-bit offsets, and the hardware's arithmetic.
"""

from __future__ import annotations

import long_rows
import pytest
import torch
import triton_nests as nests
import triton_primitive_cases as primitives
import triton_product_cases as products
from by_rule import make_cuda_launcher
from graphs import EXAMPLES, LENGTH
from reduction_cases import judge
from torch.nn import functional
from triton_example_cases import lowered
from triton_row_cases import launched

from fusion.patterns import reference, verify

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NO_GPU = "torch.cuda.is_available() is False: there is no GPU here, or torch is a CPU build"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]


def check(name: str, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    """One kernel at several lengths; inputs, layouts and dtypes as eager leaves them."""
    nest, graph = lowered(name, dtype)
    run = make_cuda_launcher(nest)
    for length in lengths:
        inputs = [x.to(DEVICE) for x in EXAMPLES[name].inputs(dtype, length)]
        before = [x.clone() for x in inputs]
        for _ in range(2):  # the second goes by the remembered binary
            fused = run(*inputs)
        fused = fused if isinstance(fused, tuple) else (fused,)
        named = dict(zip(graph.inputs, inputs, strict=True))
        eager, exact = reference.run(graph, named), reference.run_fp64(graph, named)
        verdict = verify.accept_all({o: (f, eager[o], exact[o]) for o, f in zip(graph.outputs, fused, strict=True)})
        assert verdict.ok, f"length {length}: {verdict.reason}"
        assert all(f.device.type == DEVICE for f in fused)
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_meets_the_fp64_rule(name: str, dtype: torch.dtype) -> None:
    check(name, dtype, (LENGTH, 16, 19, 300))  # a size of 16 is a specialisation of its own


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_size_of_one_is_a_specialisation_of_its_own(name: str) -> None:
    # In bfloat16, whose rounding hides the order of a sum: the rule's sample of eager's error is but two rows here.
    check(name, torch.bfloat16, (1, 17, 1))


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "qk_norm_rope"])  # whose view(2, 0, -1, 16) eager refuses
def test_no_elements_launch_nothing(name: str) -> None:
    check(name, torch.bfloat16, (0,))


@pytest.mark.parametrize("fn", primitives.UNARY)
def test_unary_primitives_keep_their_bounds(fn: str) -> None:
    low, high, bound = primitives.UNARY[fn]
    x = torch.rand(100000, generator=torch.Generator().manual_seed(1)) * (high - low) + low
    found = make_cuda_launcher(nests.unary(fn))(x.to(DEVICE)).cpu()
    exact = getattr(torch, fn)(x.double())
    error = (found.double() - exact).abs() / verify.ulp(exact, torch.float32)
    # erf is the vendor's: at most 2 ulp by CUDA's programming guide, appendix on mathematical functions.
    assert error.max() <= max(bound, 2 if fn == "erf" else bound) * (1 + 1e-6)
    special = make_cuda_launcher(nests.unary(fn))(primitives.SPECIAL.to(DEVICE)).cpu()
    want = getattr(torch, fn)(primitives.SPECIAL.double()).float()
    assert torch.equal(special.isnan(), want.isnan()) and torch.equal(special.isinf(), want.isinf())


def test_an_address_that_is_not_aligned_gets_its_own_binary() -> None:
    run = make_cuda_launcher(nests.row_sum(64, dtype=torch.bfloat16))
    around = torch.randn(1 + 32 * 64, device=DEVICE).to(torch.bfloat16)
    aligned, shifted = around[:-1].view(32, 64), around[1:].view(32, 64)
    for x in (aligned, shifted, aligned, shifted):
        total, rest = run(x)
        torch.testing.assert_close(total, x.float().sum(-1), rtol=0, atol=64 * 2.0**-24 * 64 * 4)
        assert torch.equal(rest, (x.float() - total[:, None]).to(torch.bfloat16))


def test_it_runs_on_the_current_stream() -> None:
    run = make_cuda_launcher(nests.binary("add"))
    x = torch.randn(1 << 20, device=DEVICE)
    run(x, x)  # compiled before the streams part
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what is queued before it on this stream holds it up
        y = x * 2
        total = run(y, y)
    stream.synchronize()
    assert torch.equal(total, x * 4)


def test_it_runs_on_the_inputs_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x = torch.randn(1000, device="cuda:1")
    total = make_cuda_launcher(nests.binary("add"))(x, x)
    assert total.device == x.device and torch.equal(total, x * 2)


def test_offsets_beyond_32_bits() -> None:
    if torch.cuda.mem_get_info()[0] < 4 << 30:
        pytest.skip("less than 4 GiB of free GPU memory")
    x = torch.empty(2**31 + 16, dtype=torch.uint8, device=DEVICE).as_strided((2, 8), (2**31, 1))
    x.copy_(torch.arange(16, dtype=torch.uint8).view(2, 8))
    assert torch.equal(make_cuda_launcher(nests.far_rows())(x), x.contiguous())


@pytest.mark.parametrize("columns", [1, 100, 1024, 11008, 16384, 50000])
def test_rows_of_any_length(columns: int) -> None:
    for extent in (columns, nests.symbols.symbol("s1")):
        x = torch.randn(37, columns, device=DEVICE)
        x[3, columns // 2] = float("nan")
        highest, _ = make_cuda_launcher(nests.row_sum(extent, "max"))(x)
        assert torch.equal(highest.nan_to_num(9e9), x.amax(-1).nan_to_num(9e9))
        total, _ = make_cuda_launcher(nests.row_sum(extent))(x)
        bound = columns * 2.0**-24 * x.double().abs().sum(-1)  # any order of summing
        off = (total.double() - x.double().sum(-1)).abs()
        assert torch.equal(total.isnan(), x.isnan().any(-1)) and bool((off <= bound)[~total.isnan()].all())


@pytest.mark.parametrize("shape", [(1, 128256), (3, 1_000_003), (2, 50000)], ids=str)
@pytest.mark.parametrize("name", long_rows.LONG_ROWS)
def test_few_long_rows_are_cut_into_pieces(name: str, shape: tuple[int, int]) -> None:
    """By the fp64 rule, and the same to the bit in a second call, which goes by the remembered binaries."""
    case, (graph, nest) = long_rows.LONG_ROWS[name], long_rows.lowered(name)
    rows, columns = shape if case.along else (64 * shape[0], shape[1] // 16)
    x = long_rows.values(name, rows, columns).to(DEVICE)
    run = make_cuda_launcher(nest)
    with launched() as grids:
        made = run(x)
    assert len(grids) == case.levels + 1
    made = made if isinstance(made, tuple) else (made,)
    again = run(x)
    again = again if isinstance(again, tuple) else (again,)
    assert not judge(graph, made, (x,))
    assert all(torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9)) for a, b in zip(made, again, strict=True))


def moved(x: torch.Tensor) -> torch.Tensor:
    """A tensor on the GPU, with its strides and whatever else its storage holds."""
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return storage.to(DEVICE).as_strided(x.shape, x.stride(), x.storage_offset())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 16, 17, 64, 100, 256, 1000])
@pytest.mark.parametrize(("columns", "terms"), [(3072, 1024), (1024, 3072), (300, 1000), (77, 129), (2, 16384)])
def test_products_of_every_size_class_meet_the_fp64_rule(
    rows: int, columns: int, terms: int, dtype: torch.dtype
) -> None:
    x, w = products.matrix(rows, terms, dtype), products.matrix(columns, terms, dtype, 1)
    bias = torch.randn(columns, generator=torch.Generator().manual_seed(2)).to(dtype)
    inputs = tuple(map(moved, (x, w, bias)))
    assert not products.judged(lambda x, w, b: functional.gelu(functional.linear(x, w, b)), inputs, times=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("schedule", [None, *products.SCHEDULES.values()], ids=["rule", *products.SCHEDULES])
@pytest.mark.parametrize("name", products.REGIONS)
def test_what_stands_around_products_meets_the_fp64_rule(
    name: str, schedule: products.ProductSchedule | None, dtype: torch.dtype
) -> None:
    region = products.regions(dtype)[name]
    assert not products.judged(region.fn, tuple(map(moved, region.inputs)), schedule, times=2)


def test_one_kernel_of_products_takes_any_sizes() -> None:
    graph, nest = products.sized_by_a_call()
    run = make_cuda_launcher(nest)
    for rows, columns, terms in ((17, 31, 23), (1, 70, 129), (16, 32, 64), (256, 1024, 1024), (0, 3, 5), (4, 5, 0)):
        x, w = products.matrix(rows, terms, torch.bfloat16), products.matrix(columns, terms, torch.bfloat16, 1)
        for _ in range(2):
            assert not judge(graph, (run(moved(x), moved(w)),), (moved(x), moved(w)))


def test_nan_and_infinity_reach_only_the_outputs_that_they_are_terms_of() -> None:
    for rows in (18, 2):
        x, w = (torch.full((40, 60), float("nan"), dtype=torch.bfloat16, device=DEVICE)[1:-1, 3:36] for _ in range(2))
        x = x[:rows]
        x.copy_(products.matrix(rows, 33, torch.bfloat16)), w.copy_(products.matrix(38, 33, torch.bfloat16, 1))
        x[1, 7], w[34, 0] = float("nan"), float("-inf")
        nest = products.lower(products.trace(functional.linear, x, w))
        finite = torch.ones(rows, 38, dtype=torch.bool, device=DEVICE)
        finite[1], finite[:, 34] = False, False
        assert torch.equal(make_cuda_launcher(nest)(x, w).isfinite(), finite)
