"""One recording of a scope, the plans made from it, and how far they are proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.recorded_call import RecordedCall
from fusion.choices.kernel_cache import Kernel
from fusion.choices.select import given_dims
from fusion.jit.compiled import Compiled, Template
from fusion.jit.pipeline import Pipeline
from fusion.patterns.graph import SubGraph
from fusion.patterns.guards import GuardMiss
from fusion.patterns.reference import bind_symbols
from fusion.refusal import Refusal
from fusion.runtime.measure import eager_function
from fusion.runtime.plan import MISS, Missed, Plan, call_constants, input_symbols, standing
from fusion.runtime.pytrees import flatten
from fusion.runtime.rollback import UndoLog


class CacheEntry:
    """One recording of a scope, with the plans made from it.

    Attributes:
        proved: values of the input symbols that a plan was checked at.
        exact: whether the plan without kernels agreed with the recorded run to the bit, not only but for rounding.
        generalized: whether it was checked at a shape other than the recorded one.
        structure: of the calls, as `BoundCall.structure`.
        reader: path of the module whose forward went by numbers that tensors held, or None.
        unbacked_symbols: size symbols that only an opaque call tells, and no guard ties to others.
        missed: the guard that ended the last checked run before anything had happened, or None.
    """

    def __init__(
        self, recording: RecordedCall, template: Template, pipeline: Pipeline, reader: str | None = None
    ) -> None:
        assert recording.graph is not None
        self.graph = recording.graph
        self.template = template
        self.reader = reader
        self.structure: Any = None
        self.pipeline = pipeline
        self.tensors = {**recording.parameters, **recording.constants}
        self.objects = recording.objects
        self.recorded_values = dict(recording.values)
        self.symbols = [s.symbol for s in input_symbols(recording.graph)]
        self.unbacked_symbols = (
            {s.symbol for s in recording.graph.symbols} - set(self.symbols) - _settled(recording.graph.guards)
        )
        self.proved: set[tuple[int, ...]] = set()
        self.exact = False
        self.generalized = not recording.graph.symbols
        self.refusal: Refusal | None = None
        self.failures = 0
        self.failed_at = 0
        self.missed: GuardMiss | None = None
        self.recording = recording
        self.fingerprint: Any = None
        self.plans: dict[Any, tuple[Compiled, Plan]] = {}
        assert recording.conditions is not None
        held = standing(recording.conditions, recording.parameters)
        self.binding: dict[str, Any] = {
            **self.tensors, **self.objects, **call_constants(recording.graph), **held
        }  # fmt: skip
        self.match = pipeline.source(template, None, "match").bind(self.binding).run

    def key(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The input symbols' values in order."""
        return tuple(values[s] for s in self.symbols)

    def release(self, recording: RecordedCall) -> None:
        """Lets go of the recorded run's tensors; its structure stays for twins to follow."""
        bare = replace(recording, result=None, real={}, log=[], parameters={}, constants={})
        self.recording = replace(bare, undo=UndoLog(), left=((), ()), given=ArgumentSnapshot({}), values_set=())

    def plan(self, compiled: Compiled, fail: Callable[..., Any], note: Callable[[Exception], None]) -> None:
        """Makes the plan of a bucket, pinned to what was proved until the recording is trusted.

        Args:
            fail: the plan's `FAIL`.
            note: told of a kernel that failed and was stood in for by the eager operators.
        """
        source = self.pipeline.source(self.template, compiled, "fused", pinned=not self.generalized)
        graphs = [c.region.subgraph for c in compiled.candidates if c.kernel is not None]
        launchers = {
            f"kernel{i}": self._launcher(kernel, graph, note)
            for i, (kernel, graph) in enumerate(zip(compiled.kernels, graphs, strict=True))
        }
        names = {**self.binding, **launchers, "FAIL": fail, "PROVED": self.proved}
        self.plans[compiled.bucket] = (compiled, source.bind(names))

    def _launcher(self, kernel: Kernel, graph: SubGraph, note: Callable[[Exception], None]) -> Callable[..., Any]:
        """A kernel's launcher. Where a plan cannot be run again because it has written or drawn, a kernel that fails is
        stood in for by its operators."""
        if not self.graph.lasting:
            return kernel.launch
        eager, given = eager_function(graph), given_dims(graph, kernel)

        def launch(*arguments: Any) -> Any:
            try:
                return kernel.launch(*arguments)
            except Exception as error:
                note(error)
            count = len(graph.inputs)
            sizes = {str(symbol): size for symbol, size in zip(given, arguments[count:], strict=True)}
            values = bind_symbols(graph, dict(zip(graph.inputs, arguments, strict=False)), sizes)
            return eager(*arguments[:count], *(values[s] for s in graph.symbols))

        return launch

    def checked_run(
        self, arguments: Sequence[Any], taps: frozenset[str], undo: UndoLog | None = None
    ) -> tuple[Any, list[Any], list[list[torch.Tensor]], dict[str, torch.Tensor]]:
        """Runs the unfused plan: result, log, arguments of logged calls, tapped tensors.

        Args:
            arguments: in signature order.
            taps: values wanted.
            undo: what the run writes and draws is kept here.

        Raises:
            PlanStopped: the plan did not apply or failed; it carries the log.
        """
        tap: dict[str, torch.Tensor] = {}
        seen: list[list[torch.Tensor]] = []

        def fail(error: BaseException, log: list[Any], *_: Any) -> Any:
            if isinstance(error, Missed):
                self.missed = error.miss
                return MISS
            raise PlanStopped(error, log)

        self.missed = None
        source = self.pipeline.source(self.template, None, "unfused", taps=taps, log=True).telling
        logged: list[Any] = []
        kept = {} if undo is None else {"UNDO": lambda limit: undo}
        plan = source.bind({**self.binding, "FAIL": fail, "TAP": tap, "SEEN": seen, "LOGGED": logged, **kept})
        try:
            result = plan.run(*arguments)
        except Missed:  # of an argument that answers otherwise than a moment ago
            result = MISS
        finally:
            plan.release()
        return result, logged, seen, tap


def _settled(guards: Sequence[str]) -> set[str]:
    """Symbols that a guard gives the value of."""
    return {guard.partition(" == ")[0] for guard in guards if " == " in guard}


class PlanStopped(Exception):
    """An unfused plan failed on the way."""

    def __init__(self, error: BaseException, log: list[Any]) -> None:
        super().__init__(str(error))
        self.error = error
        self.log = log


_LOOSE = 1e-2  # of the greatest value: half precision's rounding, many times over


def same_results(left: Any, right: Any, *, exact: bool = True) -> bool:
    """Whether two results agree bit for bit, in structure, dtypes, shapes and strides; NaN equals NaN.

    Args:
        left, right: results.
        exact: False lets floating values differ as rounding does: torch takes another matrix product for the same
            operands when it is called under a mode, as recorded runs are.
    """
    left_leaves, left_tree = flatten(left)
    right_leaves, right_tree = flatten(right)
    if left_tree != right_tree:
        return False
    return all(_same_leaf(a, b, exact) for a, b in zip(left_leaves, right_leaves, strict=True))


def _same_leaf(a: Any, b: Any, exact: bool) -> bool:
    if a is b:
        return True
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        one_state = getattr(a, "__dict__", a) is getattr(b, "__dict__", b)  # an object that a re-run made anew
        return type(a) is type(b) and (one_state or _equal(a, b) or _both_nan(a, b))
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    if a.stride() != b.stride() and a.numel():
        return False
    if not _compares(a):
        return _same_bytes(a, b)
    if torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()):
        return True
    if exact or not a.is_floating_point():
        return False
    bound = _LOOSE * float(b.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(a, b, rtol=0, atol=bound, equal_nan=True)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # an object of the user's that does not compare: not known to be equal
        return False


_COMPARED = frozenset(
    {
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.complex64, torch.complex128,
    }
)  # fmt: skip


def _compares(tensor: torch.Tensor) -> bool:
    """Whether torch compares such tensors; for float8, wide unsigned and quantised ones it has no kernels."""
    return tensor.dtype in _COMPARED


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether tensors that torch does not compare hold the same bytes."""
    if a.is_quantized:
        if a.qscheme() != b.qscheme() or not torch.equal(a.dequantize(), b.dequantize()):
            return False
        return torch.equal(a.int_repr(), b.int_repr())
    return a.numel() == 0 or torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _both_nan(a: Any, b: Any) -> bool:
    """Whether two Python numbers are NaN, in the same parts."""
    if isinstance(a, float):
        return a != a and b != b
    if isinstance(a, complex):
        parts = ((a.real, b.real), (a.imag, b.imag))
        return all(x == y or (x != x and y != y) for x, y in parts)
    return False
