"""Runs a sample of every row of the table under Triton's interpreter and prints what came out, as one JSON object.

A process of its own with TRITON_INTERPRET=1, as `triton_worker`. By name of the case: the operators it tests, why it is
wrong ("" where it is right), and which primitive Triton has no form of, if that is why it did not run.

By default an operator is taken in float32 and in one other dtype; FUSION_OPINFO=full takes it in all.
"""

from __future__ import annotations

import json
from dataclasses import replace

import interpreting
import opinfo_cases
import torch
from by_rule import make_cuda_launcher
from thorough import FULL
from triton.runtime.errors import InterpreterError

from fusion.patterns.errors import LoweringError
from fusion.patterns.ops import Kind, kind_of

_BOUNDED = ("aten.sin.default", "aten.cos.default")
GROUPS = ((torch.float32,), (torch.bfloat16, torch.int64, torch.uint8, torch.bool))


def main() -> None:
    """Runs the cases and prints their results."""
    interpreting.prepare()
    torch._C._set_mkldnn_enabled(
        False
    )  # with AVX512-BF16 it takes subnormal numbers as 0, so that inf times one is NaN
    groups = [(dtype,) for group in GROUPS for dtype in group] if FULL else GROUPS
    cases = opinfo_cases.collect(groups, 1, layouts=0).cases
    print(json.dumps({case.name: outcome(case) for case in cases}, indent=1))


def outcome(case: opinfo_cases.Case) -> dict[str, object]:
    """What came of one case."""
    found: dict[str, object] = {"operators": sorted(case.operators), "wrong": "", "refused": ""}
    # Conversions of numbers an integer cannot hold are NumPy's here, and the hardware's on a GPU; sines are reduced in
    # double up to 2**30. NumPy adds a row of float32 in another order than a GPU, and than torch, which adds in double.
    plain = _makes_integers(case) or not case.operators.isdisjoint(_BOUNDED)
    reducing = any(kind_of(op) is Kind.REDUCTION for op in case.operators)
    case = replace(case, inputs=case.inputs[:1]) if plain or reducing else case
    try:
        launch = make_cuda_launcher(case.nest)

        def run(inputs: opinfo_cases.Tensors) -> opinfo_cases.Tensors:
            made = launch(*inputs)
            return made if isinstance(made, tuple) else (made,)

        found["wrong"] = opinfo_cases.verdict(case, run, ulps=4 if reducing else 0)
    except LoweringError as error:
        found["refused"] = f"{error.code}: {error.message}"
    except InterpreterError as error:  # it cannot combine comparisons of a single number
        number = "bitwise_or" in str(error) and all(not a.shape for a in case.nest.inputs)
        found["refused" if number else "wrong"] = f"interpreter: {error}"
    except Exception as error:
        found["wrong"] = f"{type(error).__name__}: {error}"
    return found


def _makes_integers(case: opinfo_cases.Case) -> bool:
    takes_floats = any(a.dtype.is_floating_point for a in case.nest.inputs)
    made = {o.dtype for o in case.nest.outputs}
    return takes_floats and any(not t.is_floating_point and t is not torch.bool for t in made)


if __name__ == "__main__":
    main()
