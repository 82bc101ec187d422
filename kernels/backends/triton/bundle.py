"""The Triton kernel of a bundle: a range of the programs for each part."""

from __future__ import annotations

from fusion.kernels.backends.triton.schedule import AnySchedule, Kind, Schedule, column_count, parameters, row_count
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
    for k, part in enumerate(bundle.parts):
        own_program = f"program - end{k - 1}" if k else "program"
        given = ", ".join((own_program, *parameters(part), f"ROWS{k}", f"COLS{k}", "INDEX"))
        lines.append(f"{'elif' if k else 'if'} program < end{k}:" if k < last else "else:")
        lines.append(f"    {bundle.name}_part{k}({given})")
    body = "\n".join(f"    {line}" for line in lines)
    return f"@triton.jit\ndef {bundle.name}({', '.join((*parameters(bundle), *constants))}):\n{body}\n"


def _count(part: LoopNest, schedule: Schedule, suffix: str) -> str:
    """How many programs a part has, as `Schedule.programs` counts them."""
    rows, columns = symbols.print_python(row_count(part)), symbols.print_python(column_count(part))
    down = f"(({rows} + (ROWS{suffix} - 1)) // ROWS{suffix})"
    across = f"(({columns} + (COLS{suffix} - 1)) // COLS{suffix})"
    return f"{down} * {across}" if schedule.kind in (Kind.FLAT, Kind.TILE) else down
