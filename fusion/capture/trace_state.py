"""What is known of a run while it is recorded: values by name, calls so far, and the first reason against it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from fusion.capture.mutation import MutationTracker, storage_key
from fusion.capture.symbolic_shapes import FakeValues
from fusion.capture.traced_values import TracedArguments, TracedValues
from fusion.capture.unsupported import unsupported
from fusion.capture.user_frame import user_line
from fusion.faults import recording_code
from fusion.patterns.leaves import Path, path_text
from fusion.patterns.nodes import Node
from fusion.patterns.recorded import GraphInput
from fusion.refusal import Refusal, Refused


class TraceState:
    """What is known of a run while it is recorded.

    Args:
        parameter_tensors: tensors of the scope's modules by id, with their paths.
        generators: random generators among the arguments.
        varying: (input's name, dimension) of sizes that other recordings fixed to other numbers.
        static: whether the arguments' sizes are numbers.
        adopts: whether a tensor of unknown origin is an input.
        forgets: whether large values that the forward has dropped let go of their memory.

    Attributes:
        fake_values: the symbols, and makes fake tensors.
        effects: what the run changes.
        values: its tensors by name.
        arguments: what the call was given.
        nodes: what was met, in order; arguments still hold torch's symbolic sizes.
        refusal: the first reason the run cannot be replayed, or None.
        numbers: sizes that calls made natively have returned, by value name.
        log: results of calls made natively, and of reads inside objects, in order.
        module: the innermost module of the scope that is running; None in the scope's own forward.
        reader: in whose forward data decided, first, what Python did next.
        paused: how many of the recorder's own calls of torch are running: they are not recorded.
        thread: the thread that is recorded.
    """

    def __init__(
        self,
        parameter_tensors: Mapping[int, tuple[str, torch.Tensor]],
        *,
        generators: Sequence[torch.Generator] = (),
        varying: Iterable[tuple[str, int]] = (),
        static: bool = False,
        adopts: bool = False,
        forgets: bool = False,
    ) -> None:
        self.fake_values = FakeValues(varying)
        self.effects = MutationTracker(generators)
        self.values = TracedValues(forgets=forgets)
        self.arguments = TracedArguments()
        self.parameter_tensors = parameter_tensors
        self.nodes: list[Node] = []
        self.refusal: Refusal | None = None
        self.numbers: dict[str, int] = {}
        self.log: list[Any] = []
        self.module: torch.nn.Module | None = None
        self.reader: torch.nn.Module | None = None
        self.paused = 0
        self.thread = threading.get_ident()
        self._static = static
        self._adopts = adopts

    def add_input(self, name: str, path: Path, tensor: torch.Tensor) -> None:
        """A tensor that enters by argument; one that came in already under another path is the same value."""
        known = self.values.names.get(id(tensor))
        if known is not None:
            first = next(i.path for i in self.arguments.inputs if i.name == known)
            self.arguments.aliases.append((path, first))
            return
        problem = unsupported(tensor)
        if problem:
            self.refuse("unsupported_layout", f"the argument {path_text(path)} is {problem}")
            return
        self.arguments.inputs.append(GraphInput(name, path))
        fixed, sized = self.fake_values.static, self.fake_values.of_input
        self.bind(name, tensor, self.quiet(lambda: fixed(tensor) if self._static else sized(name, tensor)))

    def bind(self, name: str, tensor: torch.Tensor, fake: torch.Tensor) -> str:
        """Gives a tensor, and its fake one, a value name."""
        self.values.real[name] = tensor
        self.values.fakes[name] = fake
        self.values.names[id(tensor)] = name
        self.effects.memory[name] = storage_key(tensor)
        return name

    def made(self, name: str) -> bool:
        """Whether a value is a result, rather than given, found or a constant."""
        return (
            name not in self.values.parameters
            and name not in self.values.constants
            and name not in {i.name for i in self.arguments.inputs}
        )

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The value name of a tensor that is known."""
        return self.values.names.get(id(tensor))

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a value of the recording, or may become one."""
        return id(tensor) in self.values.names or id(tensor) in self.parameter_tensors

    def known(self, tensor: torch.Tensor) -> str:
        """The value name of a tensor; a parameter that is met for the first time gets one.

        Raises:
            Refused: no plan would find the tensor again.
        """
        name = self.values.names.get(id(tensor))
        if name is not None:
            return name
        if id(tensor) in self.parameter_tensors:
            path, _ = self.parameter_tensors[id(tensor)]
            problem = unsupported(tensor)
            if problem:
                raise Refused("foreign_weight", f"{path} is {problem}", user_line())
            name = f"p{len(self.values.parameters)}"
            self.values.parameters[name] = path
            return self.bind(name, tensor, self.quiet(lambda: self.fake_values.static(tensor)))
        if self._adopts:
            name = f"x{len(self.arguments.inputs)}"
            self.add_input(name, (name,), tensor)
            return name
        problem = unsupported(tensor)
        if problem:
            raise Refused("foreign_weight", f"{problem}, which no module of the scope holds, is used", user_line())
        what = f"a tensor {tuple(tensor.shape)} that is no argument, parameter, buffer or result is used"
        raise Refused("unknown_tensor", what, user_line())

    def quiet(self, build: Callable[[], Any]) -> Any:
        """What `build` gives; none of what it asks torch for is recorded."""
        self.paused += 1
        try:
            return build()
        finally:
            self.paused -= 1

    def refuse(self, code: str, sentence: str, origin: str | None = None, remedy: str = "") -> None:
        """Notes why the run cannot be replayed; the first reason stands.

        Args:
            code: one of `CODES`.
            sentence: what was met.
            origin: the user's line; None for the one that is running.
            remedy: what to do about it; "" for what the code says.
        """
        if self.refusal is None:
            self.refusal = Refusal(code, sentence, user_line() if origin is None else origin, remedy)

    def notice_fixed_size(self) -> None:
        """Refuses the recording of a scope that has turned into a number what is another one in other calls."""
        if self.fake_values.env.fixed is not None:
            size, origin = self.fake_values.env.fixed
            self.refuse("fixed_size", f"the size {size}, which varies between calls, is needed as a number", origin)

    @property
    def elsewhere(self) -> bool:
        """Whether it is another thread that runs, or a call which is not recorded inside."""
        return bool(self.paused) or threading.get_ident() != self.thread

    @property
    def recording(self) -> bool:
        """Whether this thread is being recorded just now."""
        return self.refusal is None and not self.elsewhere

    def forget(self) -> None:
        """Lets go of the memory of large values that nobody else holds by now."""
        if self.values.forgotten is not None:
            self.quiet(self.values.forgotten.sweep)

    def attempt(self, what: str, record: Callable[[], None]) -> None:
        """Records something; where that fails, the run is refused."""
        try:
            record()
        except Refused as refused:
            self.refusal = self.refusal or refused.refusal
        except Exception as error:
            self.refuse(recording_code(error), f"{what} could not be recorded: {type(error).__name__}: {error}")
