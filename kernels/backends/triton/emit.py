"""The Triton emitter: a LoopNest as the text of a Python module with one kernel.

The module needs nothing but Triton. The kernel's parameters are the inputs, the outputs, the sizes, then the constants
of the compilation: ROWS and COLS (block sizes, see `Schedule`; of products DEPTH and GROUP too, see `ProductSchedule`),
INDEX (tl.int32, or tl.int64 where offsets need it). A bundle's kernel has those of each part, and calls the function
of the part that a program belongs to.
"""

from __future__ import annotations

import re

from fusion.kernels.backends.triton import math as triton_math
from fusion.kernels.backends.triton.bundle import divided
from fusion.kernels.backends.triton.kernel import Kernel
from fusion.kernels.backends.triton.names import check_names, printable
from fusion.kernels.backends.triton.product_kernel import ProductKernel
from fusion.kernels.backends.triton.product_schedule import ProductSchedule
from fusion.kernels.backends.triton.schedule import AnySchedule, PartSchedule, forms
from fusion.kernels.bundle import Bundle, Nest, parts_of
from fusion.kernels.loops import LoopNest


def emit(nest: Nest, schedule: AnySchedule) -> str:
    """The text of a module that defines the kernel `nest.name`; the same text for the same nest and schedule.

    Args:
        nest: the kernel.
        schedule: its launch data.

    Raises:
        LoweringError: code "primitive", a primitive that has no form in its dtype; "name", a name in the
            nest that is no plain identifier.
    """
    for part in parts_of(nest):
        check_names(part)
    texts = [
        _function(part, own, f"{nest.name}_part{k}" if isinstance(nest, Bundle) else nest.name)
        for k, (part, own) in enumerate(zip(parts_of(nest), schedule.parts, strict=True))
    ]
    body = "\n\n".join([*texts, *([divided(nest, schedule)] if isinstance(nest, Bundle) else [])])
    helpers = triton_math.source_of(set(re.findall(r"\b_\w+", body)))
    loop_nest = "\n".join(f"# {line}" for line in str(nest).splitlines())
    origin = "\n".join(f"#   {printable(line)}" for line in nest.origin)
    head = f"{loop_nest}\n# made of\n{origin}\n" if origin else f"{loop_nest}\n"
    imports = "import triton\nimport triton.language as tl\n"
    return "\n\n".join(filter(None, (f"{head}\n{imports}", helpers, body)))


def _function(nest: LoopNest, schedule: PartSchedule, name: str) -> str:
    if isinstance(schedule, ProductSchedule):
        return ProductKernel(nest, schedule, name).text()
    return Kernel(nest, schedule, name).text()


def emit_all(nest: Nest, schedule: AnySchedule) -> str:
    """The text of all that a launcher may run for `nest`: a module, and those that take its place where rows are cut.

    Raises:
        LoweringError: as `emit`.
    """
    return "\n\n".join(emit(*form) for form in forms(nest, schedule))
