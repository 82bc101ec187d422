"""How a recording names what its calls are given: tensors, sizes, plain values, and objects a plan can find again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fusion.capture.python.argument_tree import Atom
from fusion.capture.trace_state import TraceState
from fusion.capture.user_frame import user_line
from fusion.patterns.leaves import Argument, Leaf, Path, Ref
from fusion.patterns.python_nodes import Receiver
from fusion.patterns.recorded import HeldObject
from fusion.refusal import Refused
from fusion.runtime.rollback import identity


class CallOperands:
    """What calls of a recording may be given, and made on.

    Args:
        state: of the recorded run.
        objects: argument objects by id: their paths.
        steps: modules that are called natively, by path.
        attributes: other objects that the scope's modules hold, by id: their paths and themselves.
        generators: random generators among the arguments.

    Attributes:
        objects: argument objects and objects the scope made, by id: how a plan names them.
        held: objects that are bound to plans by name: steps, classes, attributes of modules.
        steps: paths of the modules that are called natively, by id.
        kept: objects that are kept alive, so that their ids stay theirs.
    """

    def __init__(
        self,
        state: TraceState,
        objects: Mapping[int, Path],
        steps: Mapping[str, torch.nn.Module],
        attributes: Mapping[int, tuple[str, Any]],
        generators: Sequence[torch.Generator],
    ) -> None:
        self.state = state
        self.objects: dict[int, Receiver] = dict(objects)
        self.held: dict[str, tuple[HeldObject, Any]] = {}
        self.steps = {id(module): path for path, module in steps.items()}
        self.kept: list[Any] = []
        self._attributes = attributes
        self._generators = {identity(g): g for g in generators}

    def leaf(self, leaf: Any) -> Leaf:
        """A value among a call's arguments, as the recording names it.

        Raises:
            Refused: no plan would find it again.
        """
        if isinstance(leaf, torch.Tensor):
            return Ref(self.state.known(leaf))
        if isinstance(leaf, (torch.SymFloat, torch.SymBool)):
            return self.state.fake_values.settled(leaf)
        if isinstance(leaf, (*Atom, torch.SymInt)):
            return leaf
        if isinstance(leaf, torch.Generator):  # torch hands it on as another object
            leaf = self._generators.get(identity(leaf), leaf)
        known = self.object_leaf(leaf)
        if known is not None:
            return known
        if isinstance(leaf, torch.ScriptObject):
            raise Refused("foreign_weight", "an operator is given packed weights", user_line())
        if id(leaf) in self.state.arguments.containers:
            what = f"a module that is a scope of its own is given a {type(leaf).__name__}, which it may change"
            raise Refused("opaque_argument", what, user_line(), "pass its items to the module, or a dict of them")
        what = f"an operator or module is given a {type(leaf).__name__} that a plan cannot find again"
        raise Refused("opaque_argument", what, user_line(), "make it an argument or an attribute of the module")

    def object_leaf(self, value: Any) -> Argument | Ref | None:
        """An object among a call's arguments, as a plan names it; None for one of unknown origin."""
        known = self.objects.get(id(value))
        if known is not None:
            return known if isinstance(known, Ref) else Argument(known)
        if id(value) in self._attributes:
            path, held = self._attributes[id(value)]
            return self.hold("attribute", path, held)
        return None

    def hold(self, kind: str, path: str, value: Any) -> Ref:
        """The name of an object that is bound to plans."""
        for name, (known, object_) in self.held.items():
            if object_ is value and known.kind == kind:
                return Ref(name)
        name = f"h{len(self.held)}"
        self.held[name] = HeldObject(name, kind, path), value
        return Ref(name)

    def new_object(self, value: Any) -> str:
        """The name of an object that the run made, or found."""
        name = f"o{len(self.kept)}"
        self.kept.append(value)
        self.objects[id(value)] = Ref(name)
        return name
