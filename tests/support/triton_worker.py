"""Runs many Triton kernels under Triton's interpreter and prints what came out, as one JSON object.

A process of its own with TRITON_INTERPRET=1, which Triton reads when it is imported. Each entry says whether the values
meet the rule of the case, and why not. The cases are in `MODULES`.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator

import interpreting
import triton_example_cases
import triton_kernel_cases
import triton_primitive_cases
import triton_product_cases
import triton_row_cases
from triton_outcomes import Case, Outcome

from fusion.kernels.backends.triton import schedule as schedules

MODULES = (triton_primitive_cases, triton_kernel_cases, triton_row_cases, triton_product_cases, triton_example_cases)


def main() -> None:
    """Runs the cases whose names contain an argument, or all, and prints their results."""
    interpreting.prepare()
    schedules.LONG = triton_row_cases.LONG
    found: dict[str, Outcome] = {}
    for name, case in cases():
        if len(sys.argv) > 1 and not any(part in name for part in sys.argv[1:]):
            continue
        began = time.perf_counter()
        try:
            found[name] = {**case(), "seconds": round(time.perf_counter() - began, 3)}
        except Exception:
            found[name] = {"ok": False, "why": traceback.format_exc()}
    print(json.dumps(found, indent=1))


def cases() -> Iterator[tuple[str, Case]]:
    """Every case by name."""
    for module in MODULES:
        yield from module.cases()


if __name__ == "__main__":
    main()
