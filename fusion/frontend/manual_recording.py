"""Recording a block of torch code by hand: `fusion.record(...)`, and the callable it becomes."""

from __future__ import annotations

import keyword
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fusion.capture.finish import finish
from fusion.capture.recorded_call import RecordedCall
from fusion.capture.recorder import Recorder
from fusion.choices.kernel_cache import Kernel
from fusion.config import FusionConfig
from fusion.jit.scope import Scope
from fusion.jit.stages import Stages
from fusion.patterns.errors import RecordingError, StructureMismatch
from fusion.patterns.graph import SubGraph
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.source import define, renamed
from fusion.reporting.collect import kernels_of, report_of
from fusion.reporting.model import FusionReport
from fusion.runtime.plan import MISS, Conditions, PlanSpec, standing
from fusion.runtime.plan_writer import write_plan

Config = FusionConfig | Mapping[str, Any] | str | None
_ACTIVE: list[Recording] = []


class Recording:
    """What a `with fusion.record(...)` block ran; also a callable graph once the block is over.

    Attributes:
        graph: the RecordedGraph.
        subgraphs: the regions found in it, named by their pattern where one matches.
    """

    def __init__(self, inputs: Mapping[str, torch.Tensor], config: Config) -> None:
        # What is recorded is asked for by name: it is waited for, and its products are not left to torch for long.
        self.stages = Stages(FusionConfig.resolve(config).replace(compile="blocking", product_seconds=0.0))
        for name, value in inputs.items():
            if not isinstance(value, torch.Tensor):
                raise RecordingError(
                    f"record() takes tensors as inputs; {name!r} is a {type(value).__name__}.",
                    remedy="Close over other values instead.",
                )
        self._inputs = dict(inputs)
        self._marked: dict[str, torch.Tensor] = {}
        self._recorder: Recorder | None = None
        self._recorded: RecordedCall | None = None
        self._context: Any = None
        self._names: tuple[str, ...] = ()
        self._function: Callable[..., Any] | None = None

    # ---- recording

    def __enter__(self) -> Recording:
        if _ACTIVE:
            raise RecordingError("A recording is active already.", remedy="Stop it before starting another.")
        if self._recorder is not None:
            raise RecordingError("This recording is over.", remedy="Start a new one with fusion.record().")
        self._start = time.perf_counter()
        named = [(f"x{i}", (name,), value) for i, (name, value) in enumerate(self._inputs.items())]
        self._recorder = Recorder(named, {}, {}, adopts=not named, max_ops=self.stages.config.max_graph_size)
        self._context = self._recorder.active()
        self._context.__enter__()
        _ACTIVE.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _ACTIVE.remove(self)
        self._context.__exit__(*error)
        if error[0] is None:
            self._finish()

    def output(self, **named: torch.Tensor) -> None:
        """Names results of the block. Without any, the results are the values that nothing in the block read."""
        self._marked.update(named)

    def _finish(self) -> None:
        recorder = self._recorder
        assert recorder is not None
        if not self._marked:
            read = {name for node in recorder.state.nodes for name in node.refs}
            made = [o for node in recorder.state.nodes for o in node.outputs if isinstance(o, str) and o not in read]
            found = [
                recorder.state.values.real[name] for name in dict.fromkeys(made) if name in recorder.state.values.real
            ]
            made = ["output"] if len(found) == 1 else [f"output{i}" for i in range(len(found))]
            self._marked = dict(zip(made, found, strict=True))
        names = tuple(self._inputs) or tuple(str(i.path[0]) for i in recorder.state.arguments.inputs)
        result = self._marked["output"] if list(self._marked) == ["output"] else dict(self._marked)
        self._recorded = finish(
            recorder, result, Conditions((), (), (), tuple(recorder.state.arguments.aliases)), self._start
        )
        self._names = names
        if self._recorded.refusal is None and not self._marked:
            raise RecordingError("The block ran no torch operator.", remedy="Put the computation inside the block.")

    def _done(self) -> RecordedCall:
        if self._recorded is None:
            raise RecordingError("The recording is not over yet.", remedy="Leave the with block first.")
        if self._recorded.refusal is not None:
            raise RecordingError(f"The block cannot be replayed: {self._recorded.refusal}")
        return self._recorded

    # ---- afterwards

    @property
    def graph(self) -> RecordedGraph:
        """The recorded graph.

        Raises:
            RecordingError: the block is not over, or could not be recorded; the message says why.
        """
        graph = self._done().graph
        assert graph is not None
        return graph

    @property
    def subgraphs(self) -> tuple[SubGraph, ...]:
        """The regions that could be one kernel each."""
        recorded = self._done()
        return tuple(r.subgraph for r in self.stages.template(recorded, self._names).partition.regions)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order `compile()`'s callable takes them."""
        self._done()
        return self._names

    def compile(self) -> Callable[..., Any]:
        """A callable for new inputs of the recorded structure, by position or name.

        It returns the one result, or a dict of them by name. Sizes may differ from the recorded ones wherever the
        recording did not depend on them; sizes 0 and 1 are fixed.

        Raises (when called):
            StructureMismatch: the inputs differ in structure; record again.
        """
        if self._function is None:
            self._function = self._compile()
        return self._function

    def run(self, *args: torch.Tensor, **named: torch.Tensor) -> Any:
        """Calls `compile()`'s callable."""
        return self.compile()(*args, **named)

    def report(self) -> FusionReport:
        """What was fused and why, once `compile()` was called."""
        self.compile()
        return report_of([self._scope], self.stages)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels `compile()`'s callable uses."""
        self.compile()
        return kernels_of([self._scope])

    def _compile(self) -> Callable[..., Any]:
        recorded = self._done()
        assert recorded.graph is not None and recorded.conditions is not None
        devices = tuple(recorded.devices.values())
        shape = PlanSpec(recorded.graph, recorded.conditions, self._names, devices, recorded.tree)
        steps = tuple(("node", i) for i in range(len(recorded.graph.nodes)))
        held = standing(recorded.conditions, recorded.bound.parameters)
        bound = {**recorded.bound.tensors, **held, "FAIL": _raise}
        unfused = write_plan(shape, steps).bind(bound).run

        specs = {str(i.path[0]): shape.graph.spec[i.name].text() for i in shape.graph.inputs}
        for path, first in recorded.conditions.aliases:
            specs[str(path[0])] = f"the same tensor as {first[0]}"
        wanted = ", ".join(f"{name}: {specs[name]}" for name in self._names)

        def eager(*tensors: Any) -> Any:
            result = unfused(*tensors)
            if result is MISS:
                raise StructureMismatch(
                    f"The inputs do not have the recorded structure: got {_described(self._names, tensors)}; "
                    f"recorded was {wanted}.",
                    remedy="Record again with inputs like these.",
                )
            return result

        self._scope = Scope("recording", with_parameters(self._names, eager), self.stages, records=False)
        inputs = {str(i.path[0]): recorded.run.real[i.name] for i in recorded.graph.inputs}
        self._scope.adopt(recorded, [self._inputs.get(name, inputs.get(name)) for name in self._names])
        entry = self._scope.entry

        def call(*args: Any, **kwargs: Any) -> Any:
            _check_given(self._names, args, kwargs)
            if not torch.is_grad_enabled():
                return entry(*args, **kwargs)
            with torch.no_grad():
                return entry(*args, **kwargs)

        return call


def _check_given(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Exactly the recorded inputs are given."""
    if len(args) + len(kwargs) != len(names) or not set(names[len(args) :]) == set(kwargs):
        raise StructureMismatch(
            f"The recording's inputs are {list(names)}; given were {len(args)} by position, {sorted(kwargs)} by name.",
            remedy="Pass each of them once.",
        )


def _raise(error: BaseException, log: Any, arguments: Any, undo: Any) -> Any:
    raise error


def _described(names: tuple[str, ...], tensors: tuple[Any, ...]) -> str:
    def one(value: Any) -> str:
        if not isinstance(value, torch.Tensor):
            return type(value).__name__
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} strides {list(value.stride())}"

    return ", ".join(f"{n}: {one(v)}" for n, v in zip(names, tensors, strict=False))


def with_parameters(names: tuple[str, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with parameters called `names`."""
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise RecordingError(f"{name!r} is no name for an input.", remedy="Use identifiers.")
    ours = ", ".join(f"a{i}" for i in range(len(names)))
    text = f"def recorded({ours}):\n    return function({ours})"
    return renamed(define(text, "recorded", {"function": function}, "<fusion recording>"), names)


def record(*inputs: torch.Tensor, config: Config = None, **named: torch.Tensor) -> Recording:
    """Records the torch operators of a `with` block.

        with fusion.record(gate=g, up=u) as recording:
            y = torch.nn.functional.silu(g) * u
        swiglu = recording.compile()
        swiglu(g2, u2)

    Args:
        inputs, named: the tensors that will differ between calls. Without any, every tensor the block did not make is
            an input, in the order of first use.
        config: as for `enable`.

    Raises:
        RecordingError: a recording is active already.
    """
    return Recording({**{f"arg{i}": t for i, t in enumerate(inputs)}, **named}, config)


def start_recording(*inputs: torch.Tensor, config: Config = None, **named: torch.Tensor) -> Recording:
    """`record` for code that cannot use a `with` block; `stop_recording` ends it.

    Raises:
        RecordingError: a recording is active already.
    """
    return record(*inputs, config=config, **named).__enter__()


def stop_recording(**outputs: torch.Tensor) -> Recording:
    """Ends the recording that `start_recording` began.

    Args:
        outputs: results by name; without any, the values that nothing in the recording read.

    Returns:
        the recording: `.graph`, `.subgraphs`, `.compile()`, `.run(...)`.

    Raises:
        RecordingError: none is active.
    """
    if not _ACTIVE:
        raise RecordingError("No recording is active.", remedy="Call fusion.start_recording() first.")
    recording = _ACTIVE[-1]
    recording.output(**outputs)
    recording.__exit__(None, None, None)
    return recording
