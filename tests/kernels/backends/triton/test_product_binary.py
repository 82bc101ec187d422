"""Products compiled for a GPU that is not here: tensor cores, loads of 16 bytes, no spills.

`python -m bench triton_products` reads the same of many more.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from by_rule import compile_ahead
from graphs import trace

from fusion.kernels.backends.triton import toolchain
from fusion.kernels.backends.triton.binary import instructions
from fusion.kernels.lower import lower

triton = pytest.importorskip("triton", reason="Triton is not installed")
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


def kernel_of(rows: int) -> toolchain.TritonKernel:
    """SwiGLU of two products."""
    x, gate, up = torch.empty(rows, 1024), torch.empty(3072, 1024), torch.empty(3072, 1024)
    inputs = (x.bfloat16(), gate.bfloat16(), up.bfloat16())
    return compile_ahead(lower(trace(lambda x, g, u: F.silu(F.linear(x, g)) * F.linear(x, u), *inputs)), "sm_90")


@pytest.mark.skipif(not PTXAS.is_file(), reason="Triton came without ptxas")
@pytest.mark.skipif(toolchain.interpreted(), reason="TRITON_INTERPRET is set: nothing is compiled")
@pytest.mark.parametrize("rows", [256, 1])
def test_a_product_uses_what_the_gpu_has(rows: int) -> None:
    kernel = kernel_of(rows)
    held = kernel.instructions
    assert bool(held.tensor_core) == (rows > 1)
    assert "wgmma.mma_async" in kernel.asm["ptx"] or rows == 1
    assert held.loads[16] >= 8 and held.whole > 0.85  # what one row's activations leave
    assert not kernel.spills and not held.local
    if held.tensor_core_binary is not None:
        assert bool(held.tensor_core_binary) == (rows > 1)


def test_instructions_are_told_from_text() -> None:
    ptx = """
        ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        ld.global.L1::evict_last.v2.b64 { %rd1, %rd2 }, [ %rd1 + 0 ];
        ld.global.nc.b16 { %rs1 }, [ %rd1 + 0 ];
        cp.async.cg.shared.global [ %r5 + 0 ], [ %rd2 + 0 ], 0x10, %r6;
        cp.async.ca.shared.global [ %r5 + 0 ], [ %rd2 + 0 ], 0x4, 0x4;
        cp.async.commit_group;
        wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r1}, %rd3, %rd4, p, 1, 1, 0, 1;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
    """
    held = instructions(ptx, b"")
    assert held.loads == {2: 1, 4: 1, 16: 3} and held.tensor_core == 2
    assert held.whole == 48 / 54
