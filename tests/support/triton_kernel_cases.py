"""What a kernel is besides its arithmetic: parts, a standalone program, checked inputs, exact and far offsets."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bundles
import reduction_cases
import torch
import triton_nests as nests
from by_rule import emit, make_cuda_launcher
from graphs import LENGTH
from triton_outcomes import Case, Outcome, same

from fusion.kernels.backends.triton.schedule import BundleSchedule, schedule_for
from fusion.kernels.backends.triton.script import standalone
from fusion.kernels.bundle import Nest
from fusion.kernels.lower import lower_kernel
from fusion.patterns.errors import StructureMismatch


def bundle() -> Outcome:
    """Parts over different indices and dtypes at lengths that give each its own number of programs, or none."""
    graph = bundles.graph_of()
    nest = lower_kernel(graph)
    small = BundleSchedule(tuple(dataclasses.replace(part, rows=1) for part in schedule_for(nest).parts))
    for tried in (schedule_for(nest), small):
        run = make_cuda_launcher(nest, schedule=tried)
        for length in (LENGTH, 2, 40, 0):
            given = bundles.inputs(length)
            why = reduction_cases.judge(graph, run(*given), given)
            if why:
                return {"ok": False, "why": f"length {length}, {tried}: {why}"}
    return {"ok": True}


def bundle_script() -> Outcome:
    """The standalone program of a bundle launches it over all of its parts' programs."""
    return standing_alone(lower_kernel(bundles.graph_of()))


def script() -> Outcome:
    """The standalone program runs and prints one line per output."""
    return standing_alone(nests.row_sum(64))


def standing_alone(nest: Nest) -> Outcome:
    """Whether the standalone program of a kernel prints its outputs."""
    schedule = schedule_for(nest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(standalone(nest, schedule, emit(nest, schedule)))
        done = subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    ok = done.returncode == 0 and [line.split()[0] for line in lines] == [o.name for o in nest.outputs]
    return {"ok": ok, "why": done.stderr[-2000:] or done.stdout}


def mismatch() -> Outcome:
    """Inputs of another structure are refused by name, before anything runs."""
    run = make_cuda_launcher(nests.row_sum(64))
    x = torch.randn(4, 64)
    wrong = {
        "dtype": (x.double(),), "number of dimensions": (x[0],), "shape": (x[:, :32].contiguous(),),
        "strides": (x.t().contiguous().t(),), "arguments": (x, x), "strided": ([1.0],),
    }  # fmt: skip
    for what, arguments in wrong.items():
        try:
            run(*arguments)
        except StructureMismatch as error:
            if what in str(error) and (what == "arguments" or "a0" in str(error)):
                continue
            return {"ok": False, "why": f"{what}: {error}"}
        return {"ok": False, "why": f"{what}: not refused"}
    return {"ok": True}


def rotate_exact() -> Outcome:
    """Each case of a Select takes its own elements, up to the ends: the NaN around the tensor stays out."""
    around = torch.full((64 + 3 * 64 + 64,), float("nan"), dtype=torch.bfloat16)
    x = around[64:-64].view(3, 64).copy_(torch.randn(3, 64))
    return same(make_cuda_launcher(nests.rotate(64))(x), torch.cat((-x[:, 32:], x[:, :32]), -1))


def wide() -> Outcome:
    """Offsets beyond 2**31: a stride no 32 bits hold, over memory that is never touched in between."""
    nest = nests.far_rows()
    base = torch.empty(2**31 + 16, dtype=torch.uint8)  # pages that are not written take no memory
    x = base.as_strided((2, 8), (2**31, 1))
    x.copy_(torch.arange(16, dtype=torch.uint8).view(2, 8))
    return same(make_cuda_launcher(nest)(x), x.contiguous())


def cases() -> Iterator[tuple[str, Case]]:
    """Every case by name."""
    for case in (bundle, bundle_script, script, mismatch, rotate_exact, wide):
        yield f"feature/{case.__name__}", case
