"""`fusion doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .config import FusionConfig
from .kernels.backend import Finding, State, backends
from .patterns.errors import FusionError
from .reporting.text import size

MARKS: dict[State, tuple[str, str]] = {"works": ("ok", "green"), "missing": ("no", "yellow"), "fact": ("", "")}
OLDEST_TORCH = (2, 11)


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
    of_backends = (finding for backend in backends() for finding in backend.doctor())
    return (*_versions(), *_devices(), *of_backends, _cache(config))


def main_job_works(findings: Sequence[Finding]) -> bool:
    """Whether this torch is supported and kernels can be made for at least one of its devices."""
    supported = any(finding.name == "torch" and finding.state == "works" for finding in findings)
    return supported and any(finding.kernels and finding.state == "works" for finding in findings)


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
    version = version_of("transformers")
    advice = "" if version else "pip install 'opfusion[hf]', for the demo; fusing does not need it."
    return [*findings, Finding("transformers", "works" if version else "missing", version, advice)]


def _devices() -> list[Finding]:
    findings = [Finding("cpu", "fact", f"{_processor()}, {torch.get_num_threads()} threads used by torch")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {size(properties.total_memory)}, capability {properties.major}.{properties.minor}"
        findings.append(Finding(f"gpu {index}", "fact", text))
    return findings


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
