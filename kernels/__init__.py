"""The kernel compiler: SubGraphs become LoopNests or Bundles of them, and backends make kernels of those.

nest = lower(create_swiglu_pattern())
print(nest)                          # the loops
print(kernel_sources(nest)["cpp"])   # what they become
"""

from __future__ import annotations

import fusion.kernels.backends  # noqa: F401  registers them
from fusion.kernels.backend import backends
from fusion.kernels.bundle import Bundle, Nest
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import given_symbols, lower, lower_kernel
from fusion.patterns.errors import LoweringError


def kernel_sources(nest: Nest) -> dict[str, str]:
    """A kernel's text at every stage: "loops", and by the name of each backend, such as "cpp" and "triton".

    No compiler and no GPU is needed. A backend that cannot express the kernel says so in a comment.
    """
    sources = {"loops": str(nest)}
    for backend in backends():
        try:
            sources[backend.name] = backend.emit(nest, backend.schedules(nest)[0])
        except LoweringError as error:
            sources[backend.name] = f"# {error}"
    return sources


__all__ = ["Bundle", "LoopNest", "Nest", "given_symbols", "kernel_sources", "lower", "lower_kernel"]
