"""Runs a case through the pass without a compiler, and writes what each stage made of it as text.

In place of its kernel a region's operators run, so that nothing is compiled or measured, and yet every call meets the
plans that it would meet with kernels. The texts hold no places in source files: those are no part of what runs.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import sympy
import torch
from replay_cases import Case
from torch.utils import _pytree as pytree

import fusion
from fusion.choices.decision import Decision
from fusion.choices.kernel_cache import Backends, Kernel, KernelChoice
from fusion.kernels import given_symbols, kernel_sources
from fusion.kernels.bundle import Bundle, Nest
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import show
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.reference import bind_symbols
from fusion.reporting.model import FusionReport
from fusion.runtime import guard_writer
from fusion.runtime.measure import eager_function

STAGES = ("scopes", "graph", "partition", "kernels", "plan")
_CONFIG = {"profile": False, "verify": False, "enable_cache": False, "debug_mode": True}
_PRINTED = (
    sympy.Basic, pytree.TreeSpec, torch.dtype, torch.device, torch.layout, torch.memory_format, torch._ops.OpOverload,
)  # fmt: skip
_PLACE = re.compile(r" \([^()\s]+:\d+\)")  # " (folder/file.py:12)"


def texts(case: Case) -> dict[str, str]:
    """What every stage made of a case: its text by the name of the stage.

    - scopes: what became of each scope, and the calls that plans answered in the end.
    - graph: the recordings.
    - partition: their regions, and each decision.
    - kernels: loops, C++ and Triton of the regions.
    - plan: the Python of guards and plans, and what its names are bound to.
    """
    with _traced() as trace, _uncompiled():
        fused = fusion.fuse(case.make(), {**_CONFIG, **case.config})
        with torch.inference_mode():
            torch.manual_seed(0)
            for call in case.first:
                call(fused)
            before = fusion.report(fused)
            for call in case.again:
                call(fused)
        report = fusion.report(fused)
        found = {"scopes": _scopes(before, report), **_stages(trace, report)}
    if isinstance(fused, torch.nn.Module):
        fusion.disable(fused)
    return found


# ---- without a compiler


@contextmanager
def _traced() -> Iterator[list[tuple[str, Any]]]:
    """Collects what `debug_mode` logs: the stages' values, each with its stage."""
    trace: list[tuple[str, Any]] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple) and len(record.args) == 2:
                trace.append((str(record.args[0]), record.args[1]))

    logger, collector = logging.getLogger("fusion"), Collector()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield trace
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Inside the block regions are lowered and not compiled, and guards say what they check."""
    make = guard_writer.make_guard

    def described(*checked: Any) -> Any:
        return _Described(make(*checked), _bound(checked))

    with mock.patch.object(Backends, "compile", _lowered), mock.patch.object(guard_writer, "make_guard", described):
        yield


@dataclasses.dataclass(frozen=True)
class _Described:
    """A guard that can be printed."""

    guard: Callable[..., Any]
    text: str

    def __call__(self, *tensors: Any) -> Any:
        return self.guard(*tensors)


def _lowered(backends: Backends, graphs: Sequence[SubGraph]) -> list[KernelChoice]:
    """`Backends.compile` up to the compiler."""
    for graph in graphs:
        if graph.digest in backends.kernels:
            continue
        try:
            nest = backends.lower(graph)
        except LoweringError as error:
            backends.kernels[graph.digest] = KernelChoice({"": Decision(False, error.code, error.message)})
        else:
            compiled: Any = SimpleNamespace(digest=graph.digest)
            kernel = Kernel(_operators(graph.canonical, nest), nest, compiled, "cpp")
            backends.kernels[graph.digest] = KernelChoice({"cpp": kernel})
    return [backends.kernels[graph.digest] for graph in graphs]


def _operators(graph: SubGraph, nest: Nest) -> Callable[..., Any]:
    """A launcher that runs a region's operators."""
    eager, sizes, count = eager_function(graph), given_symbols(nest), len(graph.inputs)

    def launch(*arguments: Any) -> Any:
        given = dict(zip(sizes, arguments[count:], strict=True))
        values = bind_symbols(graph, dict(zip(graph.inputs, arguments, strict=False)), given)
        return eager(*arguments[:count], *(values[s] for s in graph.symbols))

    return launch


# ---- texts


def _stages(trace: Sequence[tuple[str, Any]], report: FusionReport) -> dict[str, str]:
    recordings = [graph_text(value) for stage, value in trace if stage == "recording"]
    regions = [_region(value) for stage, value in trace if stage == "region"]
    nests = [value for stage, value in trace if stage == "kernel"]
    plans = [_plan(stage, value) for stage, value in trace if stage.endswith(" plan")]
    kernels = dict.fromkeys(_kernel(nest) for nest in nests)  # of two buckets often the same
    parts = {"graph": recordings, "partition": [*regions, _decisions(report)], "kernels": kernels, "plan": plans}
    return {stage: "\n\n".join(pieces) + "\n" for stage, pieces in parts.items()}


def graph_text(graph: RecordedGraph) -> str:
    """A recording as it prints, and what that leaves out."""
    lines = [str(graph), *_keywords(graph.nodes)]
    lines += [f"  parameter {name} = {path}: {graph.spec[name].text()}" for name, path in graph.parameters]
    lines += [f"  size {s.symbol} = {s.value}.{s.kind}[{s.dim}]" for s in graph.symbols]
    lines += [f"  object {held.name} = {held.kind} {held.path}" for held in graph.objects]
    values = [*graph.constants, *graph.mutated, *graph.opaque]
    lines += [f"  value {name}: {graph.spec[name].text()}" for name in dict.fromkeys(values) if name in graph.spec]
    lines += [f"  constants {graph.constants}, written to {graph.mutated}, checked when made {graph.opaque}"]
    lines += [f"  lasting writes {graph.outer_writes}, draws {graph.draws}, result {graph.structure}"]
    return "\n".join(lines)


def _region(graph: SubGraph) -> str:
    return "\n".join([str(graph), *_keywords(graph.nodes), f"  bundle {graph.bundle}"])


def _keywords(nodes: Sequence[Any]) -> list[str]:
    """What calls are given by keyword."""
    return [
        f"  {', '.join(map(str, node.outputs))} with "
        f"{', '.join(f'{keyword}={show(value)}' for keyword, value in node.kwargs)}"
        for node in nodes
        if node.kwargs
    ]


def _decisions(report: FusionReport) -> str:
    rows = [row for scope in report.scopes for row in (*scope.regions, *scope.refusals)]
    return "\n".join(
        f"{row.scope}: {row.decision} {'+'.join(row.ops)} ({row.pattern}) of {row.shapes}: "
        f"{row.code}, {_PLACE.sub('', row.reason)}; bytes {row.bytes_before} to {row.bytes_after}"
        for row in rows
    )


def _kernel(nest: Nest) -> str:
    """A kernel in every language."""
    return "\n".join(f"---- {language}\n{text}" for language, text in kernel_sources(_without_places(nest)).items())


def _without_places(nest: Nest) -> Nest:
    if isinstance(nest, Bundle):
        parts = tuple(dataclasses.replace(part, origin=()) for part in nest.parts)
        return dataclasses.replace(nest, parts=parts, origin=())
    return dataclasses.replace(nest, origin=())


def _plan(stage: str, source: Any) -> str:
    names = [f"# {name} = {_bound(value)}" for name, value in source.names.items()]
    return "\n".join([f"---- {stage}", source.text, *names])


def _bound(value: Any) -> str:
    """What a name of a plan stands for, the same in every process."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_bound, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_bound(key)}: {_bound(held)}" for key, held in value.items()) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(_bound, value))) + "}"
    if isinstance(value, _Described):
        return value.text
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, _PRINTED):
        return str(value)
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)} {value.tolist() if value.numel() == 1 else ''}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "[" + ", ".join(_bound(getattr(value, f.name)) for f in dataclasses.fields(value)) + "]"
    return _named(value if callable(value) else type(value))


def _named(value: Any) -> str:
    """A function or class by its name. Those of this package are told by what the plan calls them."""
    module = getattr(value, "__module__", None) or ""
    if module.partition(".")[0] == "fusion":
        return "its own"
    return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _scopes(before: FusionReport, report: FusionReport) -> str:
    """What became of each scope. How often it ran eagerly before that depends on how the processor rounds."""
    earlier = {scope.name: scope.fused_calls for scope in before.scopes}
    lines = [
        f"{scope.name}: {scope.state}, {scope.recordings} recordings, {scope.guard_misses} guard misses, "
        f"{scope.fallbacks} fallbacks, {scope.fused_calls - earlier.get(scope.name, 0)} planned in the end, "
        f"launches {scope.launches_before} to {scope.launches_after}, {_PLACE.sub('', scope.reason)}"
        for scope in report.scopes
    ]
    return "\n".join(lines) + "\n"
