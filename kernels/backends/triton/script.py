"""A Triton kernel as a program a user can run, send and read: the emitted module, inputs, a launch, checksums."""

from __future__ import annotations

import torch

from fusion.kernels.backends.triton.schedule import AnySchedule, PartSchedule, parameters, tensors
from fusion.kernels.bundle import Nest, parts_of
from fusion.kernels.loops import LoopNest
from fusion.patterns import symbols
from fusion.patterns.symbols import Dim

SIZE = 96  # what every size symbol is in the program, unless its reader changes it

_PROGRAM = '''

def tensor(shape, strides, dtype):
    """A tensor of random elements with the given strides."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if dtype.is_floating_point:
        storage = torch.randn(length, generator=generator).to(dtype)
    else:
        storage = torch.randint(0, 2, (length,), generator=generator).to(dtype)
    return storage.to(device).as_strided(shape, strides)


def main():
{body}


device = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
generator = torch.Generator().manual_seed(0)
if __name__ == "__main__":
    main()
'''


def standalone(nest: Nest, schedule: AnySchedule, source: str) -> str:
    """The program's text. On a machine without a GPU it runs under TRITON_INTERPRET=1.

    Args:
        nest: the kernel.
        schedule: its launch data.
        source: the emitted module.
    """
    lines = [f"{size.symbol} = {SIZE}  # {_where(size.source, size.argument, size.dim)}" for size in nest.sizes]
    for tensor in tensors(nest):
        lines.append(f"{tensor.name} = tensor({_dims(tensor.shape)}, {_dims(tensor.strides)}, {tensor.dtype})")
    grid = " + ".join(_programs(part, own) for part, own in zip(parts_of(nest), schedule.parts, strict=True))
    constants = ", ".join(f"{name}={size}" for name, size in schedule.constants.items())
    arguments = parameters(nest)
    options = "".join(f", {key}={value}" for key, value in schedule.options(nest).items())
    lines.append(f"{nest.name}[({grid},)](")
    lines.append(f"    {', '.join(arguments)}, {constants}, INDEX=tl.int64{options}")
    lines.append(")")
    for output in nest.outputs:
        total = f"{output.name}.double()" if output.dtype is not torch.bool else f"{output.name}.long()"
        lines.append(f'print("{output.name}", tuple({output.name}.shape), {total}.sum().item())')
    body = "\n".join(f"    {line}" for line in lines)
    return source.replace("import triton\n", "import os\n\nimport torch\nimport triton\n", 1) + _PROGRAM.format(
        body=body
    )


def _programs(nest: LoopNest, schedule: PartSchedule) -> str:
    counts = []
    for size, constant in schedule.grid(nest):
        text = symbols.print_python(size)
        counts.append(f"triton.cdiv({text}, {schedule.constants[constant]})" if constant else f"({text})")
    return " * ".join(counts)


def _dims(dims: tuple[Dim, ...]) -> str:
    return "(" + "".join(f"{symbols.print_python(d)}, " for d in dims) + ")"


def _where(source: str, argument: int, dim: int) -> str:
    return f"integer argument {argument}" if source == "given" else f"a{argument}.{source}[{dim}]"
