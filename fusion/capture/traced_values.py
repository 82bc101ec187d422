"""The values of a run while it is recorded, by name, and what the recorded call was given."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.released_memory import Forgotten
from fusion.patterns.leaves import Path
from fusion.patterns.recorded import GraphInput


class TracedValues:
    """Every tensor of a run that has a name.

    Args:
        forgets: whether large values that the forward has dropped let go of their memory.

    Attributes:
        real, fakes: every tensor, and its fake one with symbolic sizes, by value name.
        names: value names by the tensors' ids.
        parameters: paths of the scope's tensors that were met, by value name.
        constants: tensors that were made from Python data, by value name.
        opaque: results whose shape is known only once they are there.
        forgotten: lets go of large values; None where they are kept.
    """

    def __init__(self, *, forgets: bool) -> None:
        self.real: dict[str, torch.Tensor] = {}
        self.fakes: dict[str, torch.Tensor] = {}
        self.names: dict[int, str] = {}
        self.parameters: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.opaque: list[str] = []
        self.forgotten = Forgotten(self.real, self.names) if forgets else None


@dataclass
class TracedArguments:
    """What a recorded call was given.

    Attributes:
        inputs: tensors that enter by argument.
        aliases: (path, path of an earlier argument) of the same tensor.
        containers: lists and dicts among the arguments by id, with their paths.
        snapshot: the arguments as they were before the call.
    """

    inputs: list[GraphInput] = field(default_factory=list)
    aliases: list[tuple[Path, Path]] = field(default_factory=list)
    containers: dict[int, Path] = field(default_factory=dict)
    snapshot: ArgumentSnapshot = field(default_factory=lambda: ArgumentSnapshot({}))
