"""The kernel compiler: SubGraphs become LoopNests or Bundles of them, and those become C++ and Triton.

nest = lower(create_swiglu_pattern())
print(nest)                          # the loops
print(kernel_sources(nest)["cpp"])   # what they become
"""

from __future__ import annotations

from collections.abc import Callable

from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.kernels.backends.triton import emit as triton_emit
from fusion.kernels.bundle import Bundle, Nest
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import given_symbols, lower, lower_kernel
from fusion.patterns.errors import LoweringError


def kernel_sources(nest: Nest) -> dict[str, str]:
    """A kernel's text at every stage: "loops", and "cpp" and "triton" where the backend can express it.

    Both texts are made here; no compiler and no GPU is needed.
    """
    sources = {"loops": str(nest)}
    writers: dict[str, Callable[[Nest], str]] = {
        "cpp": lambda n: cpp_emit.translation_unit([n]),
        "triton": triton_emit.emit_all,
    }
    for name, write in writers.items():
        try:
            sources[name] = write(nest)
        except LoweringError as error:
            sources[name] = f"# {error}"
    return sources


__all__ = ["Bundle", "LoopNest", "Nest", "given_symbols", "kernel_sources", "lower", "lower_kernel"]
