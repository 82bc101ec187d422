"""Values of Triton kernels, under Triton's interpreter: no GPU needed. The cases are those of `triton_worker`.

The interpreter computes with NumPy, element for element what the kernel says, but for three things: it cuts float32
to bfloat16 off instead of rounding (the toolchain replaces that), it sums in another order than a GPU, and it does not
fuse `tl.fma`. So it proves masks, offsets, casts and formulas; what only a GPU can prove is in tests/gpu.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton_worker

from fusion.patterns import scalar

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),  # all cases run in one process, and a busy machine is no fault
]
CASES = [name for name, _ in triton_worker.cases()]


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, object]]:
    worker = Path(triton_worker.__file__)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(worker)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


def outcome(case: str, results: dict[str, dict[str, object]]) -> dict[str, object]:
    found = results[case]
    # Triton 3.6 takes int() of a one-element array for a loop's bound, which NumPy 2.4 refuses; 3.7 squeezes it first.
    if triton.__version__.startswith("3.6") and "only 0-dimensional arrays" in str(found.get("why")):
        pytest.skip("Triton 3.6's interpreter cannot loop to a run-time bound under this NumPy; Triton 3.7 can")
    return found


@pytest.mark.parametrize("case", CASES)
def test_values(case: str, results: dict[str, dict[str, object]]) -> None:
    found = outcome(case, results)
    assert found["ok"], found["why"]


def test_every_primitive_has_a_case() -> None:
    tested = {
        name.split("/")[1]
        for name in CASES
        if not name.startswith(("feature", "pieces", "product", "example", "reduction", "cast"))
    }
    casts = {"cast", "round_bfloat16", "round_float16"}  # the cast cases
    assert tested | casts == set(scalar.PRIMITIVES)


def test_every_kind_of_schedule_ran(results: dict[str, dict[str, object]]) -> None:
    kinds = {outcome(case, results)["kind"] for case in CASES if case.startswith("example/")}
    assert kinds == {"flat", "tile", "rows", "looped"}
