"""Why something did not happen, as a value: every `no` of the pass carries a code and a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.remedies import REMEDIES

# code -> what it means; the report shows the code and the refusal's own sentence. `REMEDIES` has what to do about it.
CODES: dict[str, str] = {
    # recording a scope
    "grad_enabled": "autograd is recording; fusion is for inference",
    "training": "a module of the scope is in training mode",
    "active_mode": "another torch dispatch or function mode is active",
    "autocast": "autocast is enabled",
    "hook": "a module inside the scope has forward hooks",
    "collecting": "the call asks for what its modules give on the way",
    "data_read": "the forward reads tensor data in Python",
    "numpy": "the forward passes through NumPy",
    "python_state": "the forward changes Python state",
    "unknown_tensor": "the forward uses a tensor of unknown origin",
    "opaque_argument": "an argument is an object the recorder cannot look into",
    "opaque_output": "the result holds an object the recorder cannot rebuild",
    "foreign_weight": "a weight is quantised or a tensor subclass, which only its own library computes with",
    "unsupported_layout": "a tensor has a layout, subclass or device the recorder does not cover",
    "outer_write": "the forward writes to a tensor it was given",
    "random": "the forward draws random numbers",
    "shape_mismatch": "the symbolic shapes disagree with the real ones",
    "fixed_size": "the forward needs a size that varies as a Python number",
    "guard": "a guard cannot be expressed",
    "step_error": "a module that the forward calls raised an error",
    "too_large": "the recording has more ops than max_graph_size",
    "too_many_plans": "the scope needed more plans than max_plans",
    "recorder_error": "the recorder failed",
    "out_of_memory": "memory ran out while the call was recorded or its kernels were proved",
    "disabled": "fusion is switched off",
    "compiling": "its kernels are being compiled",
    "stack": "the call is near Python's recursion limit",
    # trusting a plan
    "plan_mismatch": "the plan's result differs from eager's",
    "plan_error": "the plan failed",
    # fusing a region
    "not_fusable": "a library call",
    "operator_use": "a use of an operator that its table row does not cover",
    "dtype": "a dtype the kernels do not cover",
    "device": "a device the kernels do not cover",
    "aliased": "the value's memory is written to",
    "not_convex": "a path leaves the region and comes back",
    "different_domain": "the outputs do not share one iteration space",
    "operand": "a matrix product reads the value from memory",
    "reduction_in_column": "a reduction would be recomputed for every element",
    "broadcast_recompute": "a value would be recomputed for every element it is broadcast to",
    "domain": "the outputs do not share one iteration space",
    "reduction_in_join": "a reduction over rows that only a part of a cat has",
    "scan_index": "a scan that is not read along the column a kernel runs over",
    "index": "an index expression that cannot be simplified",
    "output_layout": "an output's memory layout is not dense",
    "footprint": "the kernel would hold more operators than its instructions and registers allow",
    "too_deep": "the region's expressions are too many, or too deep, for one kernel",
    "no_gain": "the cost model expects no gain on this device",
    "too_small": "fewer ops than min_nodes",
    "few_elements": "fewer elements than min_tensor_elements",
    "few_calls": "too few calls so far for its kernel to be worth compiling",
    "fuel": "max_fusions reached",
    "no_backend": "no compiler for this device",
    "primitive": "the backend has no form for an operation in its dtype",
    "compile_error": "the kernel did not compile",
    "compiler_fault": "the compiler failed on it; please report this",
    "inaccurate": "the kernel's error is larger than eager's allows",
    "unproved": "the kernel's proof could not be made",
    "slower": "the kernel did not measure faster",
    "slower_plan": "calls took longer by the plan than without it",
    "launch_error": "the kernel could not be launched",
    # fused
    "faster": "measured faster than eager",
    "unmeasured": "not measured: fused by rule, or eager until a call measures it",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A typed `no`.

    Attributes:
        code: one of `CODES`.
        sentence: what was met, in words.
        origin: "file:line" of the user's code, or "".
        remedy: what to do about it; that of the code where nothing more is known.
    """

    code: str
    sentence: str
    origin: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"{self.code!r} is no refusal code; add it to CODES.")
        if not self.remedy:
            object.__setattr__(self, "remedy", REMEDIES[self.code])

    def __str__(self) -> str:
        where = f" ({self.origin})" if self.origin else ""
        return f"{self.code}: {self.sentence}{where}; {self.remedy}"


class Refused(Exception):
    """Carries a Refusal out of a step; never reaches the user."""

    def __init__(self, code: str, sentence: str, origin: str = "", remedy: str = "") -> None:
        self.refusal = Refusal(code, sentence, origin, remedy)
        super().__init__(str(self.refusal))
