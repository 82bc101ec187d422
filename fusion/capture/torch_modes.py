"""Modes of torch's that a call may be made in: which of them keep it eager, and what a default device decides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fusion.refusal import Refusal

_CPU = torch.device("cpu")
_AUTOCASTS = ("cpu", "cuda", "mps", "xpu")
_TELLING = ("torch.testing", "torch.utils.flop_counter", "torch.utils._debug_mode", "torch.utils.module_tracker")
_SETTINGS: list[Callable[[], object]] = [
    torch.get_num_threads,
    *(getattr(torch._C, name)
    for name in (
        "_get_deterministic_algorithms", "_get_float32_matmul_precision", "_get_cublas_allow_tf32",
        "_get_cudnn_allow_tf32", "_get_cudnn_enabled", "_get_mkldnn_enabled", "_get_flash_sdp_enabled",
        "_get_mem_efficient_sdp_enabled", "_get_math_sdp_enabled", "_get_cudnn_sdp_enabled",
    )
    if hasattr(torch._C, name)),
]  # fmt: skip
_AUTOGRAD = [key for name, key in vars(torch._C.DispatchKey).items() if name.startswith("Autograd")]
_function_modes = torch._C._len_torch_function_stack  # found once: it is asked in every call
_known: dict[torch.device, torch.device] = {}  # a snapshot compares by identity


def default_device() -> torch.device:
    """Where new tensors go: what `torch.set_default_device` or a `with torch.device` block says, else the CPU.

    Returns:
        the same object for equal devices.
    """
    if not _function_modes():
        return _CPU
    contexts = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
    device = contexts[-1].device if contexts else _CPU
    return _CPU if device == _CPU else _known.setdefault(device, device)


def in_other_mode() -> bool:
    """Whether a function mode is active that is more than a default device."""
    return any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


def problem() -> Refusal | None:
    """What about the state of torch keeps a call from being recorded or dispatched, or None."""
    if torch.is_grad_enabled():
        return Refusal("grad_enabled", "the model is called while gradients are recorded")
    if torch._C._len_torch_dispatch_stack() or in_other_mode():
        modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
        names = ", ".join(dict.fromkeys(type(m).__name__ for m in modes if not isinstance(m, DeviceContext)))
        return Refusal("active_mode", f"the dispatch or function mode {names or 'of another library'} is active")
    if torch._C._is_any_autocast_enabled():
        return Refusal("autocast", "the model is called under autocast")
    if torch._C._get_tracing_state():
        return Refusal("active_mode", "torch.jit is tracing", remedy="trace the model before fusion.enable(model)")
    if forward_ad._current_level >= 0:
        return Refusal("grad_enabled", "forward-mode differentiation is active", remedy="call the model outside of it")
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        remedy = "remove what torch.nn.modules.module.register_module_forward_hook and its kin returned"
        return Refusal("hook", "hooks for all modules of the process are registered", remedy=remedy)
    return None


def as_outside() -> contextlib.AbstractContextManager[object]:
    """Within a recorded run, which is below autograd: has autograd where a call outside of the run would have it.

    What runs inside may enable gradients and ask for some. Modes stay as they are.
    """
    if torch.is_inference_mode_enabled():
        return contextlib.nullcontext()  # where nothing has autograd
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD:
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def state() -> dict[str, Any]:
    """What of torch's state decides how this thread's calls compute, by what a report calls it."""
    functions, operators = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()
    return {
        "a torch mode": [id(m) for m in (*functions, *operators) if not isinstance(m, DeviceContext)],
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": _autocast(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": default_device(),
        "a setting of torch's": [_told(setting) for setting in _SETTINGS],
    }


def _told(setting: Callable[[], object]) -> object:
    """A setting's value; torch does not tell some where they are set by another of its interfaces."""
    try:
        return setting()
    except RuntimeError as error:
        return str(error)


def _autocast() -> list[tuple[bool, torch.dtype]]:
    """Whether each kind of device is under autocast, and the dtype that this casts to."""
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _AUTOCASTS]


def switched(before: dict[str, Any]) -> str:
    """Which parts of torch's state differ now from `before`, in words; "" where none does."""
    now = state()
    return " and ".join(name for name, value in before.items() if now[name] != value)


def is_known(mode: object) -> bool:
    """Whether a mode does nothing that a plan would leave out: torch's and ours, but for those that count or print."""
    module = type(mode).__module__
    return module.partition(".")[0] in ("torch", "fusion") and not module.startswith(_TELLING)
