"""`fusion doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .config import FusionConfig
from .patterns.errors import FusionError
from .reporting.text import size

State = Literal["works", "missing", "fact"]

MARKS: dict[State, tuple[str, str]] = {"works": ("ok", "green"), "missing": ("no", "yellow"), "fact": ("", "")}
CPU_KERNELS = "kernels on the CPU"
GPU_KERNELS = "kernels on the GPU"
OLDEST_TORCH = (2, 11)

_PROBE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination.

    Attributes:
        name: what was looked at.
        state: "works", "missing", or "fact" where nothing can be wrong.
        found: version, path or reason.
        remedy: what to do where it is missing.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def version_of(distribution: str) -> str:
    """The installed version of a distribution, or ""."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def examine(config: FusionConfig | None = None) -> tuple[Finding, ...]:
    """Looks at everything the pass needs. Compiles one small library, writes one cache folder.

    Args:
        config: whose cache folder to look at; None reads the environment.
    """
    return (*_versions(), *_devices(), *_cpu_toolchain(), *_gpu_toolchain(), _cache(config))


def main_job_works(findings: Sequence[Finding]) -> bool:
    """Whether this torch is supported and kernels can be made for at least one of its devices."""
    states = {finding.name: finding.state for finding in findings}
    return states["torch"] == "works" and "works" in (states[CPU_KERNELS], states[GPU_KERNELS])


def show(findings: Sequence[Finding], console: Console) -> None:
    """Prints one row per finding, then a sentence for the whole."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.state]
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"{' ' if finding.found else ''}{finding.remedy}", style="bold")
        table.add_row(Text(mark, style=style), Text(finding.name), found)
    console.print(table)
    works = main_job_works(findings)
    verdict = (
        "Fusing works on this machine." if works else "Models run eagerly on this machine until the above is done."
    )
    console.print(Text(verdict, style="bold green" if works else "bold yellow"))


def _versions() -> list[Finding]:
    remedy = f"Install torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer."
    supported = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= OLDEST_TORCH
    findings = [
        Finding("opfusion", "fact", version_of("opfusion") or "not installed"),
        Finding("python", "fact", f"{platform.python_version()} ({sys.executable})"),
        Finding("torch", "works" if supported else "missing", torch.__version__, "" if supported else remedy),
    ]
    optional = (
        ("transformers", "pip install 'opfusion[hf]', for the demo; fusing does not need it."),
        ("triton", "pip install triton (Linux), for GPUs."),
    )
    for name, advice in optional:
        version = version_of(name)
        findings.append(Finding(name, "works" if version else "missing", version, "" if version else advice))
    return findings


def _devices() -> list[Finding]:
    findings = [Finding("cpu", "fact", f"{_processor()}, {torch.get_num_threads()} threads used by torch")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {size(properties.total_memory)}, capability {properties.major}.{properties.minor}"
        findings.append(Finding(f"gpu {index}", "fact", text))
    return findings


def _cpu_toolchain() -> list[Finding]:
    from fusion.kernels.backends.cpp import toolchain as cpp_toolchain

    toolchain = cpp_toolchain.find_toolchain()
    if toolchain is None:
        return [
            Finding("C++ compiler", "missing", "", cpp_toolchain.why_missing()),
            Finding(CPU_KERNELS, "missing", "no C++ compiler"),
        ]
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    has_headers = headers.is_file()
    advice = "Install them (Debian, Ubuntu: apt install python3-dev) for faster calls of kernels."
    threads = Finding("OpenMP runtime", "works", toolchain.runtime)
    if not toolchain.runtime:
        loaded = cpp_toolchain.openmp_runtime()
        why = f"{toolchain.version} cannot share {loaded}." if loaded else "torch has loaded none."
        threads = Finding(
            "OpenMP runtime", "missing", why, "Kernels run on one thread; with g++ they would share torch's."
        )
    return [
        Finding("C++ compiler", "works", f"{toolchain.version} ({' '.join(toolchain.command)})"),
        Finding("Python headers", *(("works", str(headers)) if has_headers else ("missing", f"no {headers}", advice))),
        threads,
        _compiles(toolchain),
    ]


def _compiles(toolchain: Any) -> Finding:
    """Compiles, loads and calls one library, as the pass does."""
    try:
        with tempfile.TemporaryDirectory(prefix="fusion-") as folder:
            library = Path(folder, "probe.so")
            toolchain.compile_library((_PROBE,), library)
            answer = ctypes.CDLL(str(library)).answer()
    except (FusionError, OSError) as error:
        return Finding(CPU_KERNELS, "missing", " ".join(str(error).split()), "Name another compiler in CXX.")
    if answer != 42:
        return Finding(CPU_KERNELS, "missing", f"a probe returned {answer}, not 42.", "Name another compiler in CXX.")
    return Finding(CPU_KERNELS, "works", "a probe compiled, loaded and ran")


def _gpu_toolchain() -> list[Finding]:
    from fusion.kernels.backends.triton import toolchain as triton_toolchain

    reason = triton_toolchain.available()
    if reason is None:
        return [Finding(GPU_KERNELS, "works", "Triton runs here")]
    return [Finding(GPU_KERNELS, "missing", reason)]


def _cache(config: FusionConfig | None) -> Finding:
    from .kernels.store import Store, default_directory

    resolved = FusionConfig.resolve(config)
    if not resolved.enable_cache:
        return Finding("cache folder", "fact", "off (enable_cache=False)")
    folder = resolved.cache_dir or default_directory()
    try:
        store = Store(folder)
    except FusionError as error:
        return Finding("cache folder", "missing", error.message, error.remedy)
    if not store.enabled or not os.access(folder, os.W_OK):
        why = store.reason or f"{folder} is not writable."
        return Finding("cache folder", "missing", why, "Name another with FUSION_CACHE_DIR; kernels are compiled anew.")
    files = [path for path in folder.rglob("*") if path.is_file()]
    used = size(sum(path.stat().st_size for path in files))
    return Finding("cache folder", "works", f"{folder}, {len(files)} files, {used}")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
