"""The Triton kernel of a bundle: a range of the programs for each part."""

from __future__ import annotations

from fusion.kernels.backends.triton.schedule import AnySchedule, PartSchedule, parameters
from fusion.kernels.bundle import Bundle
from fusion.kernels.loops import LoopNest
from fusion.patterns import symbols


def divided(bundle: Bundle, schedule: AnySchedule) -> str:
    """The kernel that hands each of its programs to a part's function, `<name>_part<k>`.

    Args:
        bundle: the kernel.
        schedule: its launch data; the parts' programs stand in their order.
    """
    constants = [f"{name}: tl.constexpr" for name in (*schedule.constants, "INDEX")]
    lines = [f"{s.symbol} = tl.cast({s.symbol}, INDEX)" for s in bundle.sizes]
    lines.append("program = tl.program_id(0).to(INDEX)")
    last = len(bundle.parts) - 1
    for k, (part, own) in enumerate(zip(bundle.parts, schedule.parts, strict=True)):
        before = f"end{k - 1} + " if k else ""
        if k < last:
            lines.append(f"end{k} = {before}{_count(part, own, str(k))}")
    for k, (part, own) in enumerate(zip(bundle.parts, schedule.parts, strict=True)):
        own_program = f"program - end{k - 1}" if k else "program"
        given = ", ".join((own_program, *parameters(part), *(f"{name}{k}" for name in own.constants), "INDEX"))
        lines.append(f"{'elif' if k else 'if'} program < end{k}:" if k < last else "else:")
        lines.append(f"    {bundle.name}_part{k}({given})")
    body = "\n".join(f"    {line}" for line in lines)
    return f"@triton.jit\ndef {bundle.name}({', '.join((*parameters(bundle), *constants))}):\n{body}\n"


def _count(part: LoopNest, schedule: PartSchedule, suffix: str) -> str:
    """How many programs a part has, as `schedule.programs` counts them."""
    counts = []
    for size, constant in schedule.grid(part):
        text, block = symbols.print_python(size), f"{constant}{suffix}"
        counts.append(f"(({text} + ({block} - 1)) // {block})" if constant else f"({text})")
    return " * ".join(counts)
