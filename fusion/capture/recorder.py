"""A recorder: what watches one run on real tensors and writes down what torch, and other code, is asked to do.

A dispatch mode sees every operator below autograd; a function mode answers size questions with symbols and notices
reads of tensor data. Once something cannot be recorded, the recorder notes the first such thing as a Refusal and lets
the rest of the run pass by untouched: the caller always gets the eager result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.capture.function_mode import ShapeMode
from fusion.capture.python import interception
from fusion.capture.python.call_operands import CallOperands
from fusion.capture.python.object_reads import ObjectReads
from fusion.capture.python.opaque_calls import AROUND, OpaqueCalls
from fusion.capture.python.state_at_calls import StateAtCalls
from fusion.capture.released_memory import without_contents
from fusion.capture.trace_state import TraceState
from fusion.capture.tracer import OperatorTracer
from fusion.patterns.leaves import Path


@contextlib.contextmanager
def below_autograd(
    session: contextlib.AbstractContextManager[None], functions: TorchFunctionMode, operators: TorchDispatchMode
) -> Iterator[None]:
    """The modes under which whole operators are seen: linear and attention are not taken apart.

    Args:
        session: routes calls that are not torch's.
        functions: sees torch's functions and methods.
        operators: sees what they come down to.
    """
    with torch.no_grad(), session, torch._C._AutoDispatchBelowAutograd(), functions, operators:
        yield
        left_enabled = torch.is_grad_enabled()
    if left_enabled:
        torch.set_grad_enabled(True)  # as what ran inside has left it


class Recorder:
    """Records one run. Use `with recorder.active(): result = scope(...)`.

    Args:
        inputs: (value name, path, tensor) of the tensors among the arguments.
        parameters: tensors of the scope's modules by id, with their paths.
        objects: argument objects by id: their paths.
        steps: modules that are called natively, by path.
        attributes: other objects that the scope's modules hold, by id: their paths and themselves.
        watched: the modules whose state the plan's snapshot watches; None where nothing is watched.
        generators: random generators among the arguments.
        max_ops: operators that a recording may have.
        options: of the `TraceState`.

    Attributes:
        state: what is known of the run.
        operands: how calls name what they are given.
        reads: what was found inside objects.
        calls: what was called natively.
    """

    def __init__(
        self,
        inputs: Iterable[tuple[str, Path, torch.Tensor]],
        parameters: Mapping[int, tuple[str, torch.Tensor]],
        objects: Mapping[int, Path],
        *,
        steps: Mapping[str, torch.nn.Module] | None = None,
        attributes: Mapping[int, tuple[str, Any]] | None = None,
        watched: Iterable[torch.nn.Module] | None = None,
        generators: Sequence[torch.Generator] = (),
        max_ops: int = 4096,
        **options: Any,
    ) -> None:
        self.state = TraceState(parameters, generators=generators, **options)
        self.operands = CallOperands(self.state, objects, steps or {}, attributes or {}, generators)
        self.reads = ObjectReads(self.state, self.operands)
        self.calls = OpaqueCalls(self.state, self.operands, self.reads, watched)
        self._tracer = OperatorTracer(self.state, self.operands, self.calls, self.reads, max_ops)
        for name, path, tensor in inputs:
            self.state.add_input(name, path, tensor)

    @contextlib.contextmanager
    def active(
        self,
        kinds: tuple[type, ...] = (),
        modules: Iterable[torch.nn.Module] = (),
        around: torch.nn.Module | None = None,
    ) -> Iterator[None]:
        """Records what runs inside the block.

        Args:
            kinds: classes whose instances' attributes are watched.
            modules: modules, calls of which (and of others of their classes) are watched.
            around: the module that holds the steps; None where there are none.
        """
        session = interception.session(self.calls, self.reads, kinds, modules)
        with below_autograd(session, ShapeMode(self.state, self.reads), self._tracer):
            self.calls.begun = self.state.quiet(lambda: StateAtCalls(around))
            yield
            if switched := self.calls.begun.switched():
                self.state.refuse("active_mode", f"the forward switches {switched} and leaves it so", None, AROUND)

    def give_up(self) -> None:
        """Lets go of all that the run has made, so that it can be made again without a recorder."""
        kept = {
            *(i.name for i in self.state.arguments.inputs),
            *self.state.values.parameters,
            *self.state.values.constants,
        }
        for name in self.state.values.real.keys() - kept:
            self.state.values.real[name] = without_contents(self.state.values.real[name])
        self.state.values.names.clear()
