"""The C++ compiler of this machine: found, described, and called."""

from __future__ import annotations

import collections
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion.kernels import processes
from fusion.patterns.errors import CompileError

_REMEDY = "Install g++ (Debian, Ubuntu: apt install g++) or clang++, or name one in the environment variable CXX."
_COMPILERS = ("g++", "clang++", "c++")
_PROCESSOR_S = 20.0  # that a compiler may use for one source, and for each of its characters in addition
_PROCESSOR_S_PER_CHARACTER = 2e-3  # six times what the slowest kernel takes that was met
_TRIFLE_S = 2.0  # of a processor: what takes longer is suspicious, and a compiler that takes it for a trifle hangs
_TELLS_VERSION_S = 3.0  # asleep, or of a processor
_MOST_OVERRUNS = 3
_hung: dict[tuple[str, ...], str] = {}  # compilers that hung, and how: in this process they are not tried again
_overruns: collections.Counter[tuple[str, ...]] = collections.Counter()  # sources that compilers did not end with
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

    def compile_library(
        self, sources: tuple[str, ...], path: Path, objects: Sequence[Path] = (), shared: str = ""
    ) -> None:
        """Compiles translation units, side by side, to the one shared library `path`.

        Args:
            sources: the units.
            path: of the library.
            objects: object files that it is linked with.
            shared: another unit, whose object file is kept for other libraries, too: beside `path`, with the suffix .o.

        Compiled and linked in two steps: linked with -fopenmp, the compiler would add its own OpenMP runtime, and two
        runtimes in a process start twice the threads.

        Raises:
            CompileError: with the compiler's own words.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="fusion-") as folder:
                self._compile(sources, Path(folder), path, objects, shared)
        except OSError as error:
            raise CompileError(f"The compiler's files could not be written: {error}.") from error

    def _compile(
        self, sources: tuple[str, ...], folder: Path, path: Path, objects: Sequence[Path], shared: str
    ) -> None:
        compiled = [folder / f"kernels{number}.o" for number in range(len(sources))]
        if shared:
            sources, compiled = (*sources, shared), [*compiled, path.with_suffix(".o")]
        commands = []
        for number, (source, made) in enumerate(zip(sources, compiled, strict=True)):
            unit = folder / f"unit{number}.cpp"
            unit.write_text(source)
            commands.append([*self.command, *self.flags, "-c", str(unit), "-o", str(made)])
        _call(self.command, commands, max(map(len, sources)), folder)
        linked = map(str, [*compiled, *objects, *([self.runtime] if self.runtime else [])])
        link = [*self.command, "-shared", "-Wl,--as-needed", *linked, "-lm", "-o", str(path)]
        _call(self.command, [link], 0, folder)


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
    command = [*toolchain.command, *language, f"-I{include}", str(source_path), "-o", str(out_path)]
    _call(toolchain.command, [command], source_path.stat().st_size)


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
    if tuple(command) in _hung:
        return ""
    try:
        (told,) = processes.run([[*command, "--version"]], processor_s=_TELLS_VERSION_S, quiet_s=_TELLS_VERSION_S)
    except processes.Hung as hung:
        _hung[tuple(command)] = hung.why
        return ""
    except (OSError, ValueError):
        return ""
    return "" if told.status else told.output.partition("\n")[0].strip()


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


def _call(
    compiler: tuple[str, ...], commands: Sequence[Sequence[str]], characters: int, temporary: Path | None = None
) -> None:
    """Runs calls of a compiler side by side; `characters` is the length of the longest source, `temporary` a folder for
    its files."""
    if compiler in _hung:
        raise _hangs(compiler)
    try:
        ended = processes.run(
            commands,
            processor_s=_PROCESSOR_S + _PROCESSOR_S_PER_CHARACTER * characters,
            temporary=temporary,
            on_look=_Suspicion(compiler).look,
        )
    except processes.Hung as hung:
        _overruns[compiler] += hung.computes
        if hung.computes and _overruns[compiler] < _MOST_OVERRUNS:  # of this source alone, as far as is known
            raise CompileError(f"The compiler {compiler[0]} {hung.why} for one source, and was stopped.") from hung
        _hung.setdefault(compiler, hung.why)
        raise _hangs(compiler) from hung
    except OSError as error:
        raise CompileError(f"The compiler {compiler[0]} could not run: {error}.", remedy=_REMEDY) from error
    for command, (status, _, words) in zip(commands, ended, strict=True):
        if status:
            lines = words.strip().splitlines()
            first = next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
            raise CompileError(
                f"{compiler[0]} failed with status {status}: {first}\n{' '.join(command)}\n{words.strip()}"
            )


class _Suspicion:
    """Finds out, once, whether a compiler that takes long ends with a trifle: if not, it is no large source that takes
    it long."""

    def __init__(self, compiler: tuple[str, ...]) -> None:
        self._compiler = compiler
        self._asked = False

    def look(self, used: float) -> None:
        """Told of the processor seconds that the compiler has used.

        Raises:
            Hung: it hangs, or did meanwhile in another call.
        """
        if self._compiler in _hung:
            raise processes.Hung(_hung[self._compiler])
        if used < _TRIFLE_S or self._asked:
            return
        self._asked = True
        with tempfile.TemporaryDirectory(prefix="fusion-") as folder:
            source = Path(folder, "trifle.cpp")
            source.write_text("int trifle;\n")
            command = [*self._compiler, "-c", str(source), "-o", str(source.with_suffix(".o"))]
            try:
                processes.run([command], processor_s=_TRIFLE_S, quiet_s=_TELLS_VERSION_S)
            except processes.Hung as hung:
                raise processes.Hung(f"{hung.why} for a source of one line") from hung


def _hangs(compiler: tuple[str, ...]) -> CompileError:
    return CompileError(
        f"The compiler {compiler[0]} hangs: it {_hung[compiler]}, and is not tried again in this process.",
        remedy=_REMEDY,
    )
