"""Rows of the operator table against torch's own samples (OpInfo), under Triton's interpreter, by the fp64 rule.

The samples are the first ones of `cpp/test_opinfo.py`, in fewer dtypes: by default float32 and one of each two others,
the next operator in the other one; with `make test-all` all five. They run in a process of their own, `opinfo_worker`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import opinfo_cases
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),  # all cases run in one process, and a busy machine is no fault
]
WORKER = Path(opinfo_cases.__file__).with_name("opinfo_worker.py")

# Primitives that Triton kernels do not hold, so that the operator is refused there, with the reason.
_NOT_IN_TRITON = (
    "atan2", "log1p has no Triton form in torch.float64", "expm1 has no Triton form in torch.float64", "a Dot",
)  # fmt: skip
_WHOLE_POWERS = ("pow has no Triton form in torch.int64", "pow has no Triton form in torch.int32")
# The interpreter's, of comparisons of a single number; a GPU has no such limit.
_NUMBERS = "interpreter: TypeError(\"ufunc 'bitwise_or'"


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, Any]]:
    """By case, what Triton's interpreter made of it."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(WORKER)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    made: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return made


def test_triton_kernels_are_right(interpreted: dict[str, dict[str, Any]]) -> None:
    assert not [f"{name}: {found['wrong']}" for name, found in interpreted.items() if found["wrong"]]
    assert sum(not found["refused"] for found in interpreted.values()) > 400


def test_triton_refuses_only_what_it_lacks(interpreted: dict[str, dict[str, Any]]) -> None:
    reasons = {found["refused"] for found in interpreted.values() if found["refused"]}
    known = (*_NOT_IN_TRITON, *_WHOLE_POWERS, _NUMBERS)
    assert not {reason for reason in reasons if not any(part in reason for part in known)}
