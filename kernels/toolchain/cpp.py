"""The C++ compiler of this machine: found, described, and called."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fusion.patterns.errors import CompileError

_REMEDY = "Install g++ (Debian, Ubuntu: apt install g++) or clang++, or name one in the environment variable CXX."
_COMPILERS = ("g++", "clang++", "c++")
_TIMEOUT_S = 120.0  # of one library, compiled and linked: long, since a busy machine must not lose its kernels
_hung: set[str] = set()  # compilers that once ran past it: in this process they are not tried again
_OPENMP_RUNTIME = re.compile(r"lib(gomp|omp|iomp5)\b.*\.so")

# No contraction and no -ffast-math: a result rounds where eager rounds it. errno and FP traps are not observed.
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fwrapv",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A C++ compiler and how it is called.

    Attributes:
        command: the compiler, with the arguments CXX may carry.
        version: the first line it prints for --version.
        flags: compile flags.
        runtime: path of the OpenMP runtime torch has loaded, which kernels share; "" compiles without threads.
        cpu: model and features of this processor, which `-march=native` compiles for.
    """

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    runtime: str
    cpu: str

    @property
    def identity(self) -> str:
        """SHA-256 over everything but the source that can change a binary."""
        parts = [*self.command, self.version, *self.flags, os.path.basename(self.runtime), self.cpu, platform.machine()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def compile_library(self, sources: tuple[str, ...], path: Path) -> None:
        """Compiles translation units, side by side, to the one shared library `path`.

        Compiled and linked in two steps: linked with -fopenmp, the compiler would add its own OpenMP runtime, and two
        runtimes in a process start twice the threads.

        Raises:
            CompileError: with the compiler's own words.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        with tempfile.TemporaryDirectory(prefix="fusion-") as folder:
            names = [str(Path(folder, f"kernels{number}")) for number in range(len(sources))]
            for name, source in zip(names, sources, strict=True):
                Path(f"{name}.cpp").write_text(source)
            commands = [[*self.command, *self.flags, "-c", f"{name}.cpp", "-o", f"{name}.o"] for name in names]
            with ThreadPoolExecutor(len(commands)) as pool:
                list(pool.map(functools.partial(_call, deadline=deadline), commands))
            compiled = [f"{name}.o" for name in names]
            runtime = [self.runtime] if self.runtime else []
            _call([*self.command, "-shared", "-Wl,--as-needed", *compiled, *runtime, "-lm", "-o", str(path)], deadline)


def find_toolchain() -> Toolchain | None:
    """The compiler named by CXX, else g++, clang++ or c++; None if there is none (`why_missing` says why).

    The answer is kept for each value of CXX and PATH.
    """
    return _find(os.environ.get("CXX", ""), os.environ.get("PATH", ""), openmp_runtime())


def why_missing() -> str:
    """A sentence that says why `find_toolchain` found nothing and what to do; "" if it found one."""
    if find_toolchain() is not None:
        return ""
    named = os.environ.get("CXX", "")
    tried = f"CXX={named!r} and {', '.join(_COMPILERS)}" if named else ", ".join(_COMPILERS)
    return f"No C++ compiler that runs was found (tried {tried}). {_REMEDY}"


def openmp_runtime() -> str:
    """Path of the OpenMP runtime that this process has loaded (torch brings its own), or ""."""
    try:
        return _loaded_openmp_runtime()
    except LookupError:
        return ""


@functools.cache  # which keeps no error: a runtime stays once it is loaded, and may come later
def _loaded_openmp_runtime() -> str:
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError as error:
        raise LookupError from error
    for line in lines:
        path = line.partition("/")[2]
        if path and _OPENMP_RUNTIME.match(os.path.basename(path)):
            return f"/{path}"
    raise LookupError


def compile_c_extension(source_path: Path, out_path: Path) -> None:
    """Compiles a C file to a Python extension module.

    Raises:
        CompileError: no compiler, no Python.h, or the compiler's own words.
    """
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").is_file():
        raise CompileError(
            f"Python.h is not in {include}.",
            remedy="Install Python's headers (Debian, Ubuntu: apt install python3-dev).",
        )
    toolchain = find_toolchain()
    if toolchain is None:
        raise CompileError(why_missing())
    language = ["-x", "c", "-std=c11", "-O2", "-fPIC", "-shared"]
    _call(
        [*toolchain.command, *language, f"-I{include}", str(source_path), "-o", str(out_path)],
        time.monotonic() + _TIMEOUT_S,
    )


@functools.cache
def _find(named: str, path: str, runtime: str) -> Toolchain | None:
    candidates = [tuple(shlex.split(named))] if named.strip() else []
    for command in [*candidates, *((name,) for name in _COMPILERS)]:
        executable = shutil.which(command[0], path=path)
        version = _version((executable, *command[1:])) if executable else ""
        if executable and version:
            threads = runtime if _can_use(version, runtime) else ""
            return Toolchain((executable, *command[1:]), version, _flags(version, bool(threads)), threads, _cpu())
    return None


def _version(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _can_use(version: str, runtime: str) -> bool:
    """clang calls entry points that libgomp does not have; the LLVM and Intel runtimes have those of both."""
    return bool(runtime) and ("clang" not in version or "libgomp" not in os.path.basename(runtime))


def _flags(version: str, threads: bool) -> tuple[str, ...]:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    wide = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
    return (*_FLAGS, native, *wide, *(("-fopenmp",) if threads else ()))


def _cpu() -> str:
    """Model and feature lines of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return f"{platform.processor()} {platform.machine()}"
    wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))


def _call(command: Sequence[str], deadline: float) -> None:
    """Runs a compiler in a session of its own, so that all it has started ends with it."""
    if command[0] in _hung:
        raise _hangs(command[0])
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        raise CompileError(f"The compiler {command[0]} could not run: {error}.", remedy=_REMEDY) from error
    with process:
        try:
            told = process.communicate(timeout=max(0.0, deadline - time.monotonic()))[1].decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            _hung.add(command[0])
            raise _hangs(command[0]) from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        lines = told.strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
        status = f"failed with status {process.returncode}"
        raise CompileError(f"{command[0]} {status}: {first}\n{' '.join(command)}\n{told.strip()}")


def _hangs(compiler: str) -> CompileError:
    return CompileError(
        f"The compiler {compiler} ran past {_TIMEOUT_S:g} s and is not tried again in this process.", remedy=_REMEDY
    )
