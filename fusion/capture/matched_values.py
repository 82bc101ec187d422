"""The values of a run that follows a recording: its tensors by the recording's names, and its sizes by symbol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch

from fusion.capture.mutation import MutationTracker, storage_key
from fusion.capture.released_memory import Forgotten
from fusion.patterns import symbols
from fusion.patterns.recorded import RecordedGraph, SymbolSource
from fusion.patterns.symbols import Dim


class Diverged(Exception):
    """The run does something else than the recording."""


class MatchedSizes:
    """What the recording's sizes are in this run.

    Args:
        graph: the recording.
        values: the input symbols' values.

    Attributes:
        values: of the symbols that are known by now.
    """

    def __init__(self, graph: RecordedGraph, values: Mapping[str, int]) -> None:
        self.values = dict(values)
        self._evaluated: dict[sympy.Expr, int] = {}
        self._sources: dict[str, list[SymbolSource]] = {}
        for source in graph.symbols:
            self._sources.setdefault(source.value, []).append(source)

    def number(self, dim: Dim) -> int:
        """A size of the recording as a number; a symbol that has a value keeps it."""
        if isinstance(dim, int):
            return dim
        known = self._evaluated.get(dim)
        if known is None:
            known = self._evaluated[dim] = symbols.evaluate(dim, self.values)
        return known

    def concrete(self, leaf: Any) -> Any:
        """An argument of a recorded call with numbers for sizes."""
        return self.number(leaf) if isinstance(leaf, sympy.Expr) else leaf

    def read_shape(self, name: str, tensor: torch.Tensor) -> None:
        """Symbols that a value is the source of take their values from it.

        Raises:
            Diverged: a size of 0 or 1, which no symbol stands for.
        """
        for source in self._sources.get(name, ()):
            if source.symbol not in self.values:
                held = tensor.shape if source.kind == "shape" else tensor.stride()
                self.values[source.symbol] = int(held[source.dim])
                if source.kind == "shape" and held[source.dim] < 2:
                    raise Diverged("a size of 0 or 1")

    def set_number(self, name: str, number: Any) -> None:
        """A call or read gave the number that the recording calls `name`.

        Raises:
            Diverged: it is none that a symbol stands for.
        """
        if type(number) is not int or number < 2:
            raise Diverged("a call or read gave a size of 0 or 1")
        (source,) = self._sources[name]
        self.values[source.symbol] = number
        self._evaluated.clear()


class MatchedValues:
    """The tensors of this run by the names that the recording gives to their like.

    Args:
        graph: the recording.
        sizes: of this run.
        effects: what the run changes.
        inputs: names of the tensors among the arguments, by id.
        parameters: paths of the tensors that the module holds, by id.

    Attributes:
        real: every tensor by value name.
        names: value names by the tensors' ids.
        constants: tensors made from Python data, by value name.
    """

    def __init__(
        self,
        graph: RecordedGraph,
        sizes: MatchedSizes,
        effects: MutationTracker,
        inputs: Mapping[int, str],
        parameters: Mapping[int, str],
    ) -> None:
        self.real: dict[str, torch.Tensor] = {}
        self.names = dict(inputs)
        self.constants: dict[str, torch.Tensor] = {}
        self._graph = graph
        self._sizes = sizes
        self._effects = effects
        self._parameters = parameters
        self._named_paths = {path: name for name, path in graph.parameters}
        self._as_lifted: dict[int, str] = {}  # constants nobody wrote to yet, by their memory
        self._kept: list[Any] = []  # alive, so that their ids stay their own
        self._forgotten = Forgotten(self.real, self.names)

    def name_of(self, tensor: torch.Tensor) -> str:
        """A tensor's name.

        Raises:
            Diverged: the recording does not have it.
        """
        name = self.names.get(id(tensor))
        if name is None:
            path = self._parameters.get(id(tensor))
            name = self._named_paths.get(path) if path is not None else None
            if name is None:
                raise Diverged("a tensor that the recording does not know")
            self.bind(name, tensor)
        return name

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has a name, or is one of the module's."""
        return id(tensor) in self.names or id(tensor) in self._parameters

    def bind(self, name: str, tensor: torch.Tensor) -> None:
        """Gives a tensor a name."""
        self.names[id(tensor)] = name
        self.real[name] = tensor

    def keep(self, value: Any) -> None:
        """Keeps an object alive, so that its identity stays its own."""
        self._kept.append(value)

    def sweep(self) -> None:
        """Lets go of the memory of large values that nobody else holds by now."""
        self._forgotten.sweep()

    # ---- what the run makes

    def made(self, name: str, tensor: torch.Tensor) -> None:
        """A call made the value that the recording calls `name`.

        Raises:
            Diverged: it is not like the recorded one.
        """
        if self.names.get(id(tensor)) == name:
            return
        if id(tensor) in self.names:
            raise Diverged(f"{name} is a tensor that was there before")
        if name in self.real:
            raise Diverged(f"{name} is another tensor than before")
        self.check(name, tensor)
        self.bind(name, tensor)
        if self._effects.made_here(tensor):
            self._forgotten.watch(name, tensor)

    def rebound(self, name: str, tensor: torch.Tensor) -> None:
        """A call handed back a tensor that it was given, or wrote to, under a new name.

        Raises:
            Diverged: it is not like the recorded one.
        """
        self.check(name, tensor)
        self.bind(name, tensor)

    def found(self, name: str, tensor: torch.Tensor) -> None:
        """An opaque call or a read gave the value that the recording calls `name`.

        Raises:
            Diverged: it is not like the recorded one.
        """
        if id(tensor) in self._parameters or name in self._named_paths.values():
            if self.name_of(tensor) != name:
                raise Diverged("a call or read gave another parameter")
            return
        if id(tensor) in self.names and name not in self.real:  # its argument, handed back
            self.rebound(name, tensor)
        self.made(name, tensor)

    def lifted(self, constant: torch.Tensor) -> None:
        """A tensor made from Python data.

        Raises:
            Diverged: the recording has no such constant.
        """
        name = f"c{len(self.constants)}"
        if name not in self._graph.constants:
            raise Diverged("a constant that the recording does not have")
        self.check(name, constant)
        self.constants[name] = constant
        self._as_lifted[storage_key(constant)] = name
        self.bind(name, constant)

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor has the recorded dtype and layout; symbols that it is the source of take their values from it.

        Raises:
            Diverged: it has not.
        """
        self._sizes.read_shape(name, tensor)
        spec = self._graph.spec[name]
        shape = tuple(map(self._sizes.number, spec.shape))
        if spec.dtype != tensor.dtype or spec.device != tensor.device.type or shape != tuple(tensor.shape):
            raise Diverged(f"{name} has another type or shape")
        strides = list(map(self._sizes.number, spec.strides))
        differ = any(a != b and size > 1 for a, b, size in zip(strides, tensor.stride(), shape, strict=True))
        if differ and 0 not in shape:
            raise Diverged(f"{name} has another layout")

    # ---- what is overwritten

    def before_write(self, tensors: Iterable[torch.Tensor]) -> None:
        """Keeps what values hold that are about to be overwritten."""
        for tensor in tensors:
            constant = self._as_lifted.pop(storage_key(tensor), None)
            if constant is not None:
                self.keep(self.constants[constant])
                self.constants[constant] = self.real[constant] = self.constants[constant].clone()
            name = self.names.get(id(tensor))
            if name is not None and name not in self.constants and self._effects.made_here(tensor):
                self.keep(tensor)
                self.real[name] = tensor.clone()

    def copy(self, names: Iterable[Any]) -> None:
        """Keeps values as they are now: a native call will write to them."""
        for name in names:
            if isinstance(name, str) and name in self.real:
                self.keep(self.real[name])
                self.real[name] = self.real[name].clone()
