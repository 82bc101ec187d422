"""C++ on CPUs as a backend."""

from __future__ import annotations

import ctypes
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from fusion.kernels.backend import Finding, Launcher, Schedule
from fusion.kernels.backends.cpp import compile as compiler
from fusion.kernels.backends.cpp import emit as emitter
from fusion.kernels.backends.cpp import toolchain
from fusion.kernels.backends.cpp.compile import CompiledKernel
from fusion.kernels.backends.cpp.expressions import STORAGE
from fusion.kernels.backends.cpp.isolated import FirstRuns
from fusion.kernels.backends.cpp.launch import make_cpp_launcher
from fusion.kernels.backends.cpp.trial_sizes import FIRST_SIZES, branch_sizes
from fusion.kernels.bundle import Nest
from fusion.kernels.store import Store
from fusion.patterns.errors import FusionError

KERNELS = "kernels on the CPU"
_PROBE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
_OTHER_COMPILER = "Name another compiler in CXX."


class CppIsolation:
    """C++ kernels are run first in a process of their own: one that writes astray would harm the user's."""

    def sizes(self, nest: Nest) -> Iterator[Sequence[Mapping[str, int]]]:
        """Sizes for every branch of a kernel: odd ones at first, then even ones, which is all some operators take."""
        for first in FIRST_SIZES:
            yield branch_sizes(nest, first)

    def start(self) -> FirstRuns:
        """Starts the process."""
        return FirstRuns()


class CppBackend:
    """Compiles kernels with this machine's C++ compiler; a nest has one schedule, which the emitter lays down."""

    name = "cpp"
    targets = frozenset({"cpu"})
    dtypes = frozenset(STORAGE)
    isolation = CppIsolation()

    def why_unavailable(self) -> str | None:
        """Why there is no compiler, or None."""
        return None if toolchain.find_toolchain() else toolchain.why_missing()

    def identity(self) -> str:
        """The compiler with its flags, and the processor; "" without a compiler."""
        found = toolchain.find_toolchain()
        return found.identity if found else ""

    def schedules(self, nest: Nest) -> tuple[Schedule, ...]:
        """The only one."""
        return (None,)

    def emit(self, nest: Nest, schedule: Schedule) -> str:
        """A translation unit that holds the kernel alone."""
        return emitter.translation_unit([nest])

    def is_new(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> bool:
        """Whether the compiler is going to be called."""
        return compiler.needs_compiler([nest for nest, _ in jobs], store)

    def prepare(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> None:
        """Compiles them to one library, for `compile` to load."""
        compiler.prepare_cpp([nest for nest, _ in jobs], store)

    def compile(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> list[CompiledKernel]:
        """Kernels in one library."""
        return compiler.compile_cpp([nest for nest, _ in jobs], store)

    def launch(self, kernel: CompiledKernel, extension: ModuleType | None) -> Launcher:
        """A launcher in C, or through ctypes."""
        return make_cpp_launcher(kernel, extension)

    def synchronize(self) -> None:
        """Nothing to wait for: the work is done when a call returns."""

    def doctor(self) -> tuple[Finding, ...]:
        """The compiler, what it needs, and whether a library that it makes can be called."""
        found = toolchain.find_toolchain()
        if found is None:
            return (
                Finding("C++ compiler", "missing", "", toolchain.why_missing()),
                Finding(KERNELS, "missing", "no C++ compiler", kernels=True),
            )
        compiler_line = Finding("C++ compiler", "works", f"{found.version} ({' '.join(found.command)})")
        return (compiler_line, _headers(), _threads(found), _compiles(found))


def _headers() -> Finding:
    path = Path(sysconfig.get_paths()["include"], "Python.h")
    if path.is_file():
        return Finding("Python headers", "works", str(path))
    advice = "Install them (Debian, Ubuntu: apt install python3-dev) for faster calls of kernels."
    return Finding("Python headers", "missing", f"no {path}", advice)


def _threads(found: toolchain.Toolchain) -> Finding:
    if found.runtime:
        return Finding("OpenMP runtime", "works", found.runtime)
    loaded = toolchain.openmp_runtime()
    why = f"{found.version} cannot share {loaded}." if loaded else "torch has loaded none."
    return Finding("OpenMP runtime", "missing", why, "Kernels run on one thread; with g++ they would share torch's.")


def _compiles(found: toolchain.Toolchain) -> Finding:
    """Compiles, loads and calls one library, as the pass does."""
    try:
        with tempfile.TemporaryDirectory(prefix="fusion-") as folder:
            library = Path(folder, "probe.so")
            found.compile_library((_PROBE,), library)
            answer = ctypes.CDLL(str(library)).answer()
    except (FusionError, OSError) as error:
        return Finding(KERNELS, "missing", " ".join(str(error).split()), _OTHER_COMPILER, kernels=True)
    if answer != 42:
        return Finding(KERNELS, "missing", f"a probe returned {answer}, not 42.", _OTHER_COMPILER, kernels=True)
    return Finding(KERNELS, "works", "a probe compiled, loaded and ran", kernels=True)
