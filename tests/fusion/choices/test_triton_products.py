"""Matrix products of a model on a GPU become Triton kernels, and only where they are faster than the library's."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import triton_model_worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.timeout(0),  # a process of its own, and a busy machine is no fault
]


def test_products_are_regions_that_are_measured_against_the_library() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    worker = [sys.executable, triton_model_worker.__file__ or ""]
    done = subprocess.run(worker, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    by_rule, measured = found["by rule"], found["measured"]
    # Sums of 48 terms in another order, none above 4: at most 48 half ulps of 1.2e-7.
    assert max(by_rule["error"], measured["error"]) < 1e-5
    names = {name for name, _, _ in by_rule["regions"]}
    assert names == {"linear*2+SwiGLU", "linear+add"}, "with what is computed of the products"
    assert all(decision == "fused" for _, decision, _ in by_rule["regions"])
    # The interpreter is slower than torch, so that measuring keeps the library's products.
    assert {name for name, _, _ in measured["regions"]} >= names
    assert {(decision, code) for _, decision, code in measured["regions"]} == {("refused", "slower")}
