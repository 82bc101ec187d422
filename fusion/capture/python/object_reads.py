"""What a recorder does with reads inside objects: attributes of what a call is given, items of lists and dicts."""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fusion.capture.mutation import storage_key
from fusion.capture.python.argument_tree import Atom
from fusion.capture.python.container_proxy import COPY, PLAIN, is_container, is_object, is_plain, state_of
from fusion.capture.python.interception import refresh, shown
from fusion.capture.python.reachable_state import is_library
from fusion.capture.user_frame import user_line
from fusion.patterns.leaves import Argument, Expect, Path, Ref
from fusion.patterns.nodes import IslandNode, OpNode
from fusion.refusal import Refusal, Refused
from fusion.runtime.plan import Raised, as_it_is

Receiver = Path | Ref


class ObjectReads:
    """The part of a recorder that is told what a forward finds inside objects, and reads of tensors' values.

    Attributes:
        log: results of islands, steps and reads, in order.
        copied: (value, node): values that a native call overwrote later, and which call.
        lookups: (value, node): tensors that reads gave, and which reads.
        unknown_writes: native calls that wrote to memory which the forward has not met: another call may meet it.
        module: the innermost module of the scope that is running; None in the scope's own forward.
        reader: in whose forward data decided, first, what Python did next.
    """

    if TYPE_CHECKING:
        nodes: list[OpNode | IslandNode]
        real: dict[str, torch.Tensor]
        refusal: Refusal | None
        objects: dict[int, Receiver]
        containers: dict[int, Path]
        _names: dict[int, str]
        _steps: Mapping[int, str]
        _made: list[Any]
        _paused: int
        _thread: int

        @property
        def recording(self) -> bool: ...

        def refuse(self, code: str, sentence: str, origin: str | None = None, remedy: str = "") -> None: ...
        def object_leaf(self, value: Any) -> Argument | Ref | None: ...
        def _quiet(self, build: Callable[[], Any]) -> Any: ...
        def _attempt(self, what: str, record: Callable[[], None]) -> None: ...
        def _leaf(self, leaf: Any) -> Any: ...
        def _hold(self, kind: str, path: str, value: Any) -> Ref: ...
        def _new_object(self, value: Any) -> str: ...
        def _number(self, value: int) -> tuple[Any, Any]: ...
        def _native_result(
            self, leaf: Any, like: list[torch.Tensor], grows: tuple[int, ...], method: str
        ) -> tuple[Any, Any]: ...

    def set_up_reads(self) -> None:
        """Nothing has been read so far."""
        self.log: list[Any] = []
        self.module: torch.nn.Module | None = None
        self.reader: torch.nn.Module | None = None
        self.copied: list[tuple[str, int]] = []
        self.lookups: list[tuple[str, int]] = []
        self.unknown_writes: list[int] = []
        self._looked_up: dict[int, list[tuple[int, int, str]]] = {}  # by memory: place in the log, node, value
        self._lists: list[tuple[list[Any], list[Any]]] = []  # of plain values, that were found, and as they were
        self._overwritten: set[int] = set()  # tensors that were found and then overwritten by native calls
        self._python_writes: list[Callable[[], None]] = []  # what takes them back, since the last native call

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """An attribute read on an object: a plain value becomes a condition, what can be looked into a value of the
        recording, anything else a refusal."""
        known = self._receiver(receiver)
        if known is None and isinstance(receiver, collections.UserDict):
            self._on_mapping(receiver, name, value)
        if known is None or self._paused or threading.get_ident() != self._thread:
            return value
        kind = type(receiver).__name__
        if callable(value) and not is_object(value):
            if self.recording:
                self.refuse("opaque_argument", f"{kind}.{name}() is called", None, _instead_of(receiver, name))
            return value
        if isinstance(receiver, torch.nn.Module) and not is_plain(value):
            self.log.append(value)
            if self.recording:
                what = f"{kind}.{name} of a module that is a scope of its own is read"
                self.refuse("opaque_argument", what, None, _OF_A_STEP)
            return value
        return self._found(known, name, None, value, f"{kind}.{name}")

    def _on_mapping(self, receiver: Any, name: str, value: Any) -> None:
        """An attribute read on a mapping among the arguments: its items, its plain attributes and its methods are known
        to a plan; the rest, such as a tokenizer's own record of a text, is not."""
        own = name in object.__getattribute__(receiver, "__dict__")
        known = name == "data" or (isinstance(value, Atom) if own else callable(value))
        if self.recording and id(receiver) in self.containers and not known:
            what = f"{type(receiver).__name__}.{name}, a {type(value).__name__}, is read"
            self.refuse("opaque_argument", what, None, "read it before the call, and pass what is needed of it")

    def on_item(self, held: Any, method: str, args: tuple[Any, ...], value: Any) -> Any:
        """An item of a list or dict inside an object: as an attribute."""
        known = self.objects.get(id(held))
        if known is None or self._paused or threading.get_ident() != self._thread:
            return value
        return self._found(known, method, args, value, f"an item of a {type(held).__name__}")

    def on_use(self, held: Any, method: str, changes: bool) -> None:
        """Any other use of such a list or dict: a plan would not know of it."""
        if changes and not self._paused and threading.get_ident() == self._thread:
            self._python_writes.append(functools.partial(_hold_again, held, held.copy()))
        if self.recording and id(held) in self.objects:
            what = f"{type(held).__name__}.{method} of what an object holds"
            code, verb = ("python_state", "changes it by") if changes else ("opaque_argument", "looks at it by")
            self.refuse(code, f"the forward {verb} {what}", None, "" if changes else COPY)

    def on_failed_read(self, held: Any, name: str, error: Exception) -> Any:
        """A read that raised: a plan would not know whether it does again."""
        if id(held) in self.objects and not self._paused and threading.get_ident() == self._thread:
            self.log.append(Raised(error))
            if self.recording:
                what = f"the forward asks a {type(held).__name__} for {name}, which it has not"
                self.refuse("opaque_argument", what, None, "give the object that attribute or item")
        raise error

    def _found(self, receiver: Receiver, method: str, args: tuple[Any, ...] | None, value: Any, what: str) -> Any:
        """What was found inside an object: the recording's name for it, and what the forward gets."""
        recorded = value
        if isinstance(value, list) and is_plain(value):
            recorded = list(value)
            self._lists.append((value, recorded))
        self.log.append(recorded)
        if self.recording:
            found = [value]

            def record() -> None:
                found[0] = self._record_found(receiver, method, args, recorded, value, what)

            self._attempt(what, record)
            value = found[0]
        elif is_container(value) or is_object(value):
            self._new_object(value)
        handed = shown(value)
        if is_container(handed):
            self._python_writes.append(functools.partial(_hold_again, handed, handed.copy()))
        if self.recording and is_container(handed):
            told = (
                f"{what} is a {type(value).__name__}, read by code that asks whether it is exactly that (`type(x) is`)"
            )
            self.refuse("opaque_argument", told, None, "ask by isinstance")
        return handed

    def _record_found(
        self, receiver: Receiver, method: str, args: tuple[Any, ...] | None, value: Any, handed: Any, what: str
    ) -> Any:
        """Records a read that gave `value`; what the forward gets in place of `handed`."""
        several = type(value) is tuple and not is_plain(value)
        several = several and not any(isinstance(leaf, (list, dict)) or is_object(leaf) for leaf in value)
        pairs = [self._found_leaf(leaf, method, what) for leaf in (value if several else (value,))]
        outputs = tuple([output for output, _ in pairs])
        kind = type(value) if is_container(value) or is_object(value) else None
        structure = "tuple" if several else "leaf"
        self.nodes.append(
            IslandNode(receiver, method, args, (), outputs, False, structure, origin=user_line(), kind=kind)
        )
        if several:
            return tuple([leaf for _, leaf in pairs])
        return pairs[0][1] if isinstance(value, torch.Tensor) else handed

    def _found_leaf(self, leaf: Any, method: str, what: str) -> tuple[Any, Any]:
        """What is found inside an object, as a read's result in the graph and as the forward gets it."""
        if isinstance(leaf, torch.Tensor):
            name, handed = self._native_result(leaf, [], (), method)
            self._look_up(leaf, name)
            return name, handed
        if is_plain(leaf) or (isinstance(leaf, Atom) and not isinstance(leaf, PLAIN)):
            return Expect(leaf), leaf
        if is_container(leaf) or is_object(leaf):
            return self.object_leaf(leaf) or self._new_object(leaf), leaf
        told = f"{what}, a {type(leaf).__name__}, is read"
        raise Refused("opaque_argument", told, user_line(), "keep tensors, numbers, strings, lists or dicts in there")

    def _look_up(self, tensor: torch.Tensor, name: str) -> None:
        """Notes a tensor that the read which is recorded now gave."""
        self.lookups.append((name, len(self.nodes)))
        self._looked_up.setdefault(storage_key(tensor), []).append((len(self.log) - 1, len(self.nodes), name))

    def before_native_write(self, tensor: torch.Tensor) -> None:
        """A native call is about to write to memory that was found inside an object: what was found stays what it is,
        in the log, among the values and, from then on, in plans."""
        for place, index, name in self._looked_up.pop(storage_key(tensor), ()):
            self.log[place] = self._quiet(functools.partial(as_it_is, self.log[place]))
            self._made.append(self.real[name])
            self._overwritten.add(id(self.real[name]))
            self._names.pop(id(self.real[name]), None)  # whoever reads it from here on reads what is written now
            self.real[name] = self._quiet(self.real[name].clone)
            node = self.nodes[index]
            assert isinstance(node, IslandNode)
            self.nodes[index] = replace(node, copied=True)
            self.copied.append((name, len(self.nodes)))

    def on_write(self, receiver: Any, name: str) -> None:
        """An attribute of an object is set: a plan would not do it again."""
        state = state_of(receiver)
        if isinstance(state, dict) and not self._paused and threading.get_ident() == self._thread:
            self._python_writes.append(functools.partial(_set_again, state, name, state.get(name, _NOTHING)))
        if self.recording and self._receiver(receiver) is not None:
            self.refuse("python_state", f"the forward sets {type(receiver).__name__}.{name}")

    def _receiver(self, receiver: Any) -> Receiver | None:
        """How a plan names an argument object, one that the scope made, or a step."""
        if id(receiver) in self._steps and self.recording:
            return self._hold("module", self._steps[id(receiver)], receiver)
        return self.objects.get(id(receiver))

    def on_data_read(self, tensor: torch.Tensor, method: str, args: tuple[Any, ...], value: Any) -> Any:
        """Python asked for a value of a tensor: a plan asks again, and goes on if the answer is the same."""
        if self.refusal is not None:
            return value
        if not isinstance(value, bool):
            self.reader = self.reader or self.module
        leaf, seen = self._number(value) if method == "item" and type(value) is int else (Expect(value), value)
        self.nodes.append(IslandNode(self._leaf(tensor), method, args, (), (leaf,), False, "leaf", origin=user_line()))
        return seen

    # ---- what becomes of what was found

    def check_lists(self) -> None:
        """Refuses a forward that has changed a list of plain values which an object holds: a plan would not."""
        if any(len(now) != len(then) or any(map(_differ, now, then)) for now, then in self._lists):
            self.refuse("python_state", "the forward changes a list that an object among its arguments holds")

    def after_native(self) -> None:
        """A native call may have changed what objects hold."""
        refresh()
        self._python_writes.clear()
        self._lists = [(now, list(now)) for now, _ in self._lists]

    def take_back_python_writes(self) -> None:
        """Before a run that failed is made again: objects hold what they held, but for what native calls did."""
        for take_back in reversed(self._python_writes):
            take_back()


_NOTHING = object()
_OF_A_STEP = "call it on, or read it from, a module that is no block, or hold what it gives in the module around"


def _instead_of(receiver: Any, name: str) -> str:
    """What to do about a method of an object that is called: what can be registered is the user's own."""
    if isinstance(receiver, torch.nn.Module):
        return _OF_A_STEP
    owner = next((kind for kind in type(receiver).__mro__ if name in vars(kind)), type(receiver))
    if is_library(owner.__module__):
        return "call it before the forward, and pass what it gives"
    return f"register it: fusion.register_island({owner.__name__}, {name!r}), with effect=False if it only reads"


def _hold_again(held: Any, before: Any) -> None:
    """Makes a list or dict hold what it held."""
    held.clear()
    (held.extend if isinstance(held, list) else held.update)(before)


def _set_again(state: dict[str, Any], name: str, before: Any) -> None:
    """Makes an object's attribute what it was."""
    if before is _NOTHING:
        state.pop(name, None)
    else:
        state[name] = before


def _differ(now: Any, then: Any) -> bool:
    return now is not then and (type(now) is not type(then) or bool(now != then))
