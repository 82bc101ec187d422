"""What a user can do about each refusal, in words: one row for every code of `refusal.CODES`."""

from __future__ import annotations

NOTHING = "nothing to do: "  # how a remedy begins where eager's own call is as good as it gets
_REPORT = "the result is eager's; please report it, with the forward"

# code -> what to do about it. A refusal that knows more, such as which argument it is about, says so itself.
REMEDIES: dict[str, str] = {
    # recording a scope
    "grad_enabled": "call the model under torch.inference_mode() or torch.no_grad()",
    "training": "call eval() on that module",
    "active_mode": "call the model outside of that mode",
    "autocast": "cast the model instead: model.to(torch.bfloat16)",
    "hook": "remove the hook, or move what it does into the forward",
    "collecting": NOTHING + "such calls run eagerly, calls that do not ask for it are fused",
    "data_read": "choose by torch.where or by masks, or read the value before the call and pass it",
    "numpy": "use torch's operators in its place, or do it before the call",
    "python_state": "do it outside the forward: a plan would not do it again",
    "unknown_tensor": "pass it as an argument, or hold it as a parameter or buffer of the module",
    "opaque_argument": "pass what the forward reads of it: tensors, numbers, strings; lists, tuples, dicts of them",
    "opaque_output": "return tensors, numbers, strings; lists, tuples, dicts or dataclasses of them",
    "foreign_weight": NOTHING
    + "its own library runs the module that holds it, and what is around that module is fused",
    "unsupported_layout": "pass plain strided tensors on a CPU or CUDA device",
    "outer_write": "write to a copy, or return the new value",
    "random": "draw before the call, or with a torch.Generator that is an argument",
    "shape_mismatch": "report it to torch: the operator's shape function does not give what its kernel does",
    "fixed_size": "compute with the size as it comes, without int(), float() or lists made of it",
    "guard": "call it with inputs like those before, or let what it depends on stay the same",
    "step_error": "mend the error: it is the called module's own",
    "too_large": "raise max_graph_size",
    "too_many_plans": "raise max_plans, or pass what varies as a tensor",
    "recorder_error": _REPORT,
    "stack": "raise sys.setrecursionlimit(), or call the model from less deep",
    "disabled": "set enable_fusion to True",
    "compiling": "nothing to do: later calls use them; fusion.wait(model) waits for the compilers",
    "out_of_memory": "free some memory; a later call is recorded",
    # trusting a plan
    "plan_mismatch": _REPORT,
    "plan_error": _REPORT,
    # fusing a region
    "not_fusable": NOTHING + "the library's own kernel runs",
    "operator_use": NOTHING + "the operator runs eagerly",
    "dtype": NOTHING + "the operator runs eagerly",
    "device": "move the tensors to one device",
    "aliased": "write to a copy instead of in place",
    "not_convex": NOTHING + "the call in between has to run first",
    "different_domain": NOTHING + "each result has its own kernel or call",
    "operand": NOTHING + "it has its own kernel or call",
    "reduction_in_column": NOTHING + "the reduction runs by itself",
    "broadcast_recompute": NOTHING + "the value is computed once, by itself",
    "domain": NOTHING + "each result has its own kernel or call",
    "reduction_in_join": NOTHING + "the reduction runs by itself",
    "scan_index": NOTHING + "the scan runs by itself",
    "index": NOTHING + "the operator runs eagerly",
    "output_layout": "call contiguous() on the result",
    "footprint": NOTHING + "what is left over has a kernel of its own",
    "too_deep": NOTHING + "its operators run in smaller kernels or eagerly",
    "no_gain": NOTHING + "eager is as fast",
    "too_small": NOTHING + "one call would only replace another; min_nodes says how many operators are enough",
    "few_elements": "lower min_tensor_elements, if such small tensors are what counts",
    "few_calls": "nothing to do: calls are counted; fusion.warmup, or product_seconds=0, has its kernel made at once",
    "fuel": "raise max_fusions",
    "no_backend": "install a C++ compiler (g++) for CPUs, Triton for GPUs, or set backend='auto'",
    "primitive": NOTHING + "the operator runs eagerly",
    "compiler_fault": _REPORT,
    "compile_error": "mend the compiler that the message names, or choose another by backend=",
    "inaccurate": NOTHING + "eager's operators run, which round as they always did",
    "unproved": NOTHING + "a later call may prove it",
    "slower_plan": NOTHING
    + "the forward runs as it is; larger tensors, or fewer writes to arguments, leave more to gain",
    "slower": NOTHING + "eager is faster here; fusion_ratio is the bar",
    "launch_error": "run `fusion doctor`, which tries the compilers and the device",
    # fused
    "faster": NOTHING + "it is fused",
    "unmeasured": NOTHING + "with profile=True a call like this one measures it",
}
