"""What a forward does in Python that a plan does again, as immutable values: one class for each kind.

Beside operators (`nodes.OpNode`) a forward calls what is not looked into, reads what objects hold, asks tensors for
their data, and makes objects. All kinds have `label`, `args`, `kwargs`, `outputs`, `effect`, `structure`, `origin`,
`refs`, `text`, `renamed`, `mapped`, `with_args` and `to_json`, and print as a recording shows them. What a plan does
for each is written by `runtime.python_node_writer`.

Outputs are leaves: the name of a tensor, a size symbol's number or an object; `Expect(value)`; or, for an object that
was known before, its `Argument` or `Ref`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from .leaves import Attribute, Leaf, Path, Ref, encode, map_leaves, path_text, ref_names, renaming, show

Receiver = Path | Ref  # a path among the scope's arguments, or an object that has a name in the graph
Keywords = tuple[tuple[str, Leaf], ...]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of an object.

    Attributes:
        receiver: the object.
        name: the method's name.
    """

    receiver: Receiver
    name: str


@dataclass(frozen=True, slots=True)
class Item:
    """What a list or dict is asked for: `__getitem__`, `__len__`, `__contains__` or `get`.

    Attributes:
        method: the name of the method that answers.
        args: what it is given: plain values.
    """

    method: str
    args: tuple[Leaf, ...] = ()


@dataclass(frozen=True, slots=True)
class OpaqueCall:
    """A call that is made as it is and never looked into: of a method, of a module that is a scope of its own, or of a
    function.

    A plan makes the call with its own values, logs the result, and checks that it is what was recorded.

    Attributes:
        callee: the method; or the module or function, which is bound to the plan by name.
        args, kwargs: as in `OpNode`; objects are `Ref`s or `Argument`s.
        outputs: one leaf for each flattened result.
        effect: whether the call changes state; else it is a read, which a plan may make before any effect.
        structure: how the flattened results nest: "leaf", "tuple", "list", or the text of a pytree structure.
        dead_results: results of earlier calls that nobody held any more when this one was made: the log drops them.
        origin: "file:line" of the user's code; no part of equality.
        nest: how the arguments nest where lists or dicts are among them: the text of a pytree structure of the
            positional and the named ones; `args` are its leaves then, and `kwargs` is empty. Else "".
        copied: whether a later call writes to the tensor that this read gives, so that a plan takes a copy.
        lent: tensors among the arguments that the call writes to, or may, as they are used after it: their places.
        overwrites: those of them that live in the memory of what an earlier call or read gave, and were written to.
        may_overwrite: those of them that live there and were not.
        passed_back: tensors among the arguments in whose memory results live: their places.
    """

    callee: Method | Ref
    args: tuple[Leaf, ...]
    kwargs: Keywords
    outputs: tuple[Leaf, ...]
    effect: bool
    structure: str
    dead_results: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    nest: str = ""
    copied: bool = False
    lent: tuple[int, ...] = ()
    overwrites: tuple[int, ...] = ()
    may_overwrite: tuple[int, ...] = ()
    passed_back: tuple[int, ...] = ()

    label: ClassVar[str] = "opaque call"

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads, with repeats."""
        return ref_names(self.receiver, self.args, self.kwargs)

    @property
    def text(self) -> str:
        """What it calls, for people: `past_key_values.update`."""
        called = _place(self.receiver)
        return f"{called}.{self.callee.name}" if isinstance(self.callee, Method) else called

    @property
    def receiver(self) -> Receiver:
        """Whose method is called; or the module or function that is."""
        return self.callee.receiver if isinstance(self.callee, Method) else self.callee

    def renamed(self, rename: Callable[[str], str]) -> OpaqueCall:
        """The same call over other value names."""
        leaf = renaming(rename)
        callee = self.callee
        callee = Method(_moved(callee.receiver, leaf), callee.name) if isinstance(callee, Method) else leaf(callee)
        outputs, dead = _outputs(self.outputs, rename), tuple(map(rename, self.dead_results))
        return replace(self.mapped(leaf), callee=callee, outputs=outputs, dead_results=dead)

    def mapped(self, leaf: Callable[[Leaf], Leaf]) -> OpaqueCall:
        """The same call with `leaf` applied to every leaf of its arguments."""
        return replace(self, args=map_leaves(leaf, self.args), kwargs=map_leaves(leaf, self.kwargs))

    def with_args(self, args: tuple[Leaf, ...]) -> OpaqueCall:
        """The same call with other positional arguments."""
        return replace(self, args=args)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict. The origin is left out."""
        return {
            "call": encode(self.receiver),
            "method": self.callee.name if isinstance(self.callee, Method) else None,
            "args": encode(self.args),
            "kwargs": [[k, encode(v)] for k, v in self.kwargs],
            "outputs": encode(self.outputs),
            "effect": self.effect,
            "structure": self.structure,
            "dead_results": list(self.dead_results),
            "nest": self.nest,
            "copied": self.copied,
            "lent": list(self.lent),
            "overwrites": list(self.overwrites),
            "may_overwrite": list(self.may_overwrite),
            "passed_back": list(self.passed_back),
        }

    def __str__(self) -> str:
        return f"call {self.text}({_listed(self.args)})"


@dataclass(frozen=True, slots=True)
class ObjectRead:
    """An attribute of an object, or an item of a list or dict inside one, that the forward reads.

    A plan reads it again, logs what it finds, and checks that this is what was recorded: an equal plain value, the
    same known object, or a tensor or object of the recorded kind.

    Attributes:
        receiver: what is read.
        member: the attribute's name, or the item that is asked for.
        outputs: one leaf for each flattened result.
        structure: "leaf", or "tuple" for a tuple with tensors in it.
        origin: "file:line" of the user's code; no part of equality.
        kind: the exact class of the list, dict or object that is found; None for other results.
        copied: whether a later call writes to the tensor that is found, so that a plan takes a copy.
    """

    receiver: Receiver
    member: Attribute | Item
    outputs: tuple[Leaf, ...]
    structure: str = "leaf"
    origin: str = field(default="", compare=False)
    kind: type | None = None
    copied: bool = False

    label: ClassVar[str] = "object read"
    effect: ClassVar[bool] = False
    kwargs: ClassVar[Keywords] = ()

    @property
    def args(self) -> tuple[Leaf, ...]:
        """What an item is asked for by; nothing for an attribute."""
        return self.member.args if isinstance(self.member, Item) else ()

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads, with repeats."""
        return ref_names(self.receiver, self.args)

    @property
    def text(self) -> str:
        """What it reads, for people: `past_key_values.layers`."""
        return f"{_place(self.receiver)}.{self.member.method if isinstance(self.member, Item) else str(self.member)}"

    def renamed(self, rename: Callable[[str], str]) -> ObjectRead:
        """The same read over other value names."""
        leaf = renaming(rename)
        receiver, outputs = _moved(self.receiver, leaf), _outputs(self.outputs, rename)
        return replace(self.mapped(leaf), receiver=receiver, outputs=outputs)

    def mapped(self, leaf: Callable[[Leaf], Leaf]) -> ObjectRead:
        """The same read with `leaf` applied to every leaf of its arguments."""
        return self.with_args(map_leaves(leaf, self.args))

    def with_args(self, args: tuple[Leaf, ...]) -> ObjectRead:
        """The same read with other arguments; an attribute takes none."""
        return replace(self, member=replace(self.member, args=args)) if isinstance(self.member, Item) else self

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict. The origin is left out."""
        member = self.member
        return {
            "read": encode(self.receiver),
            "member": [member.method, encode(member.args)] if isinstance(member, Item) else str(member),
            "outputs": encode(self.outputs),
            "structure": self.structure,
            "kind": f"{self.kind.__module__}.{self.kind.__qualname__}" if self.kind else "",
            "copied": self.copied,
        }

    def __str__(self) -> str:
        return f"read {self.text}({_listed(self.args)})" if isinstance(self.member, Item) else f"read {self.text}"


@dataclass(frozen=True, slots=True)
class TensorRead:
    """A question for a tensor's data that the forward goes by: `item()`, `bool(x)`, `int(x)`.

    A plan asks again and checks the answer, or takes it for a size symbol; nothing is logged.

    Attributes:
        tensor: the tensor.
        method: the name of its method that answers.
        output: the name of the number that a size symbol stands for, or `Expect(value)`.
        origin: "file:line" of the user's code; no part of equality.
    """

    tensor: Ref
    method: str
    output: Leaf
    origin: str = field(default="", compare=False)

    label: ClassVar[str] = "tensor read"
    effect: ClassVar[bool] = False
    structure: ClassVar[str] = "leaf"
    args: ClassVar[tuple[Leaf, ...]] = ()
    kwargs: ClassVar[Keywords] = ()

    @property
    def outputs(self) -> tuple[Leaf, ...]:
        """The answer."""
        return (self.output,)

    @property
    def refs(self) -> tuple[str, ...]:
        """The tensor's name."""
        return (self.tensor.name,)

    @property
    def text(self) -> str:
        """What it asks, for people: `v3.item`."""
        return f"{self.tensor.name}.{self.method}"

    def renamed(self, rename: Callable[[str], str]) -> TensorRead:
        """The same question over other value names."""
        (output,) = _outputs(self.outputs, rename)
        return replace(self, tensor=Ref(rename(self.tensor.name)), output=output)

    def mapped(self, leaf: Callable[[Leaf], Leaf]) -> TensorRead:
        """The same question, which has no arguments."""
        return self

    def with_args(self, args: tuple[Leaf, ...]) -> TensorRead:
        """The same question, which takes no arguments."""
        return self

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict. The origin is left out."""
        return {"ask": self.tensor.name, "method": self.method, "output": encode(self.output)}

    def __str__(self) -> str:
        return f"ask {self.text}()"


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object that the forward makes, of a class that is registered for it.

    A plan makes one of its own in each run, and logs it.

    Attributes:
        constructor: the class, which is bound to the plan by name.
        args, kwargs: as in `OpaqueCall`.
        output: the object's name.
        origin: "file:line" of the user's code; no part of equality.
        lent, overwrites, may_overwrite, passed_back: as in `OpaqueCall`.
    """

    constructor: Ref
    args: tuple[Leaf, ...]
    kwargs: Keywords
    output: str
    origin: str = field(default="", compare=False)
    lent: tuple[int, ...] = ()
    overwrites: tuple[int, ...] = ()
    may_overwrite: tuple[int, ...] = ()
    passed_back: tuple[int, ...] = ()

    label: ClassVar[str] = "new object"
    effect: ClassVar[bool] = True
    structure: ClassVar[str] = "leaf"

    @property
    def outputs(self) -> tuple[Leaf, ...]:
        """The object's name."""
        return (self.output,)

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads, with repeats."""
        return ref_names(self.constructor, self.args, self.kwargs)

    @property
    def text(self) -> str:
        """The name that the class has in the graph."""
        return self.constructor.name

    def renamed(self, rename: Callable[[str], str]) -> NewObject:
        """The same construction over other value names."""
        leaf = renaming(rename)
        return replace(self.mapped(leaf), constructor=leaf(self.constructor), output=rename(self.output))

    def mapped(self, leaf: Callable[[Leaf], Leaf]) -> NewObject:
        """The same construction with `leaf` applied to every leaf of its arguments."""
        return replace(self, args=map_leaves(leaf, self.args), kwargs=map_leaves(leaf, self.kwargs))

    def with_args(self, args: tuple[Leaf, ...]) -> NewObject:
        """The same construction with other positional arguments."""
        return replace(self, args=args)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict. The origin is left out."""
        return {
            "new": self.constructor.name,
            "args": encode(self.args),
            "kwargs": [[k, encode(v)] for k, v in self.kwargs],
            "output": self.output,
            "lent": list(self.lent),
            "overwrites": list(self.overwrites),
            "may_overwrite": list(self.may_overwrite),
            "passed_back": list(self.passed_back),
        }

    def __str__(self) -> str:
        return f"new {self.text}({_listed(self.args)})"


PythonNode = OpaqueCall | ObjectRead | TensorRead | NewObject


def _place(receiver: Receiver) -> str:
    return receiver.name if isinstance(receiver, Ref) else path_text(receiver)


def _listed(args: tuple[Leaf, ...]) -> str:
    return ", ".join(map(show, args))


def _moved(receiver: Receiver, leaf: Callable[[Leaf], Leaf]) -> Any:
    return leaf(receiver) if isinstance(receiver, Ref) else receiver


def _outputs(outputs: tuple[Leaf, ...], rename: Callable[[str], str]) -> tuple[Leaf, ...]:
    return tuple(rename(o) if isinstance(o, str) else o for o in outputs)
