"""A kernel as a Python program that runs alone."""

from __future__ import annotations

import inspect

from fusion.kernels.backends.cpp import native_call
from fusion.kernels.backends.cpp.toolchain import find_toolchain
from fusion.kernels.bundle import Nest
from fusion.patterns import symbols


def standalone(nest: Nest, symbol: str, source: str) -> str:
    """The program's text.

    Args:
        nest: the kernel's nest, for the structure of its tensors.
        symbol: its C name.
        source: a translation unit that holds it.
    """
    # Small and different from each other, so that no two sizes are equal by accident.
    values = {s.symbol: 24 + 8 * k for k, s in enumerate(nest.sizes)}
    given = [0] * max((s.argument + 1 for s in nest.sizes if s.source == "given"), default=0)
    for size in nest.sizes:
        if size.source == "given":
            given[size.argument] = values[size.symbol]
    inputs = [
        (a.dtype, *(tuple(symbols.evaluate(d, values) for d in dims) for dims in (a.shape, a.strides)))
        for a in nest.inputs
    ]
    parameters = {
        "symbol": repr(symbol),
        "sizes": repr(len(nest.sizes)),
        "given": repr(given),
        "inputs": _listing([f"({dtype}, {shape}, {strides})" for dtype, shape, strides in inputs]),
        "outputs": _listing([f"({o.dtype}, {o.order}, {tuple(dim for dim, _ in o.loose)})" for o in nest.outputs]),
    }
    assignments = "\n".join(f"{name.upper()} = {text}" for name, text in parameters.items())
    escaped = source.replace("\\", "\\\\").replace('"""', r"\"\"\"")
    return "\n".join(
        [
            f'"""The kernel {symbol}, alone: compiles it, runs it on random inputs, prints checksums."""',
            "",
            inspect.getsource(native_call).partition('"""\n')[2].strip(),
            "",
            "",
            f'SOURCE = """\\\n{escaped}"""',
            assignments,
            f"FLAGS = {_listing([repr(f) for f in _script_flags()])}",
            _MAIN,
        ]
    )


def _script_flags() -> tuple[str, ...]:
    toolchain = find_toolchain()
    return toolchain.flags if toolchain else ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fopenmp-simd")


def _listing(items: list[str]) -> str:
    return "[\n" + "".join(f"    {item},\n" for item in items) + "]"


_MAIN = """

def main() -> None:
    import os, shlex, shutil, statistics, subprocess, tempfile, time

    def random(dtype, shape, strides):
        length = 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if all(shape) else 0
        if dtype is torch.bool:
            flat = torch.rand(length) < 0.5
        elif dtype.is_floating_point:
            flat = torch.randn(length).to(dtype)
        else:
            flat = torch.randint(0, 100, (length,)).to(dtype)
        return flat.as_strided(shape, strides)

    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/kernel.cpp", "w") as file:
            file.write(SOURCE)
        files = ["-shared", f"{folder}/kernel.cpp", "-lm", "-o", f"{folder}/kernel.so"]
        subprocess.run([*compiler, *FLAGS, *files], check=True)
        kernel = NativeKernel(f"{folder}/kernel.so", SYMBOL, SIZES, OUTPUTS)
        inputs = [random(*structure) for structure in INPUTS]
        wrong, outputs = kernel(inputs, GIVEN)
        if wrong:
            raise SystemExit(f"input {wrong - 1} does not fit")
        for k, output in enumerate(outputs):
            print(f"o{k}: {output.dtype} {list(output.shape)} sum {output.double().sum().item():.9g}")
        times = []
        for _ in range(200):
            began = time.perf_counter()
            kernel(inputs, GIVEN)
            times.append(time.perf_counter() - began)
        print(f"{SYMBOL}: {1e6 * statistics.median(times):.1f} us a call, ctypes included")


if __name__ == "__main__":
    main()
"""
