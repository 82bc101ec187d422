"""What a recorder does with reads inside objects: attributes of what a call is given, items of lists and dicts."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fusion.capture.mutation import storage_key
from fusion.capture.python.argument_tree import Atom
from fusion.capture.python.call_operands import CallOperands
from fusion.capture.python.container_proxy import COPY, PLAIN, is_container, is_object, is_plain, state_of
from fusion.capture.python.interception import refresh, wrap_proxy
from fusion.capture.python.reachable_state import is_library
from fusion.capture.python.registry import has_opaque_methods
from fusion.capture.symbolic_shapes import is_symbolic
from fusion.capture.trace_state import TraceState
from fusion.capture.user_frame import user_line
from fusion.patterns.leaves import Attribute, Expect, Ref
from fusion.patterns.python_nodes import Item, Method, ObjectRead, OpaqueCall, Receiver, TensorRead
from fusion.refusal import Refused
from fusion.runtime.plan import LoggedError, as_it_is


class ObjectReads:
    """What a recorder is told that a forward finds inside objects, and reads of tensors' values.

    Args:
        state: of the recorded run.
        operands: names what is found.

    Attributes:
        copied: (value, node): values that a native call overwrote later, and which call.
        lookups: (value, node): tensors that reads gave, and which reads.
        unknown_writes: native calls that wrote to memory which the forward has not met: another call may meet it.
        looked_up: by memory: (place in the log, node, value) of tensors that reads gave.
    """

    def __init__(self, state: TraceState, operands: CallOperands) -> None:
        self.state = state
        self.operands = operands
        self.copied: list[tuple[str, int]] = []
        self.lookups: list[tuple[str, int]] = []
        self.unknown_writes: list[int] = []
        self.looked_up: dict[int, list[tuple[int, int, str]]] = {}
        self._lists: list[tuple[list[Any], list[Any]]] = []  # of plain values, that were found, and as they were
        self._overwritten: set[int] = set()  # tensors that were found and then overwritten by native calls
        self._python_writes: list[Callable[[], None]] = []  # what takes them back, since the last native call

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """An attribute read on an object: a plain value becomes a condition, what can be looked into a value of the
        recording, anything else a refusal."""
        known = self._receiver(receiver)
        if known is None and isinstance(receiver, collections.UserDict):
            self._on_mapping(receiver, name, value)
        if known is None or self.state.elsewhere:
            return value
        kind = type(receiver).__name__
        if callable(value) and not is_object(value):
            if self.state.recording:
                self.state.refuse("opaque_argument", f"{kind}.{name}() is called", None, _instead_of(receiver, name))
            return value
        if isinstance(receiver, torch.nn.Module) and not is_plain(value):
            self.state.log.append(value)
            if self.state.recording:
                what = f"{kind}.{name} of a module that is a scope of its own is read"
                self.state.refuse("opaque_argument", what, None, _OF_A_STEP)
            return value
        return self._found(known, Attribute(name), value, f"{kind}.{name}")

    def _on_mapping(self, receiver: Any, name: str, value: Any) -> None:
        """An attribute read on a mapping among the arguments: its items, its plain attributes and its methods are known
        to a plan; the rest, such as a tokenizer's own record of a text, is not."""
        own = name in object.__getattribute__(receiver, "__dict__")
        known = name == "data" or (isinstance(value, Atom) if own else callable(value))
        if self.state.recording and id(receiver) in self.state.arguments.containers and not known:
            what = f"{type(receiver).__name__}.{name}, a {type(value).__name__}, is read"
            self.state.refuse("opaque_argument", what, None, "read it before the call, and pass what is needed of it")

    def on_item(self, held: Any, method: str, args: tuple[Any, ...], value: Any) -> Any:
        """An item of a list or dict inside an object: as an attribute."""
        known = self.operands.objects.get(id(held))
        if known is None or self.state.elsewhere:
            return value
        return self._found(known, Item(method, args), value, f"an item of a {type(held).__name__}")

    def on_use(self, held: Any, method: str, changes: bool) -> None:
        """Any other use of such a list or dict: a plan would not know of it."""
        if changes and not self.state.elsewhere:
            self._python_writes.append(functools.partial(_hold_again, held, held.copy()))
        if self.state.recording and id(held) in self.operands.objects:
            what = f"{type(held).__name__}.{method} of what an object holds"
            code, verb = ("python_state", "changes it by") if changes else ("opaque_argument", "looks at it by")
            self.state.refuse(code, f"the forward {verb} {what}", None, "" if changes else COPY)

    def on_failed_read(self, held: Any, name: str, error: Exception) -> Any:
        """A read that raised: a plan would not know whether it does again."""
        if id(held) in self.operands.objects and not self.state.elsewhere:
            self.state.log.append(LoggedError(error))
            if self.state.recording:
                what = f"the forward asks a {type(held).__name__} for {name}, which it has not"
                self.state.refuse("opaque_argument", what, None, "give the object that attribute or item")
        raise error

    def _found(self, receiver: Receiver, member: Attribute | Item, value: Any, what: str) -> Any:
        """What was found inside an object: the recording's name for it, and what the forward gets."""
        recorded = value
        if isinstance(value, list) and is_plain(value):
            recorded = list(value)
            self._lists.append((value, recorded))
        self.state.log.append(recorded)
        if self.state.recording:
            found = [value]

            def record() -> None:
                found[0] = self._record_found(receiver, member, recorded, value, what)

            self.state.attempt(what, record)
            value = found[0]
        elif is_container(value) or is_object(value):
            self.operands.new_object(value)
        handed = wrap_proxy(value)
        if is_container(handed):
            self._python_writes.append(functools.partial(_hold_again, handed, handed.copy()))
        if self.state.recording and is_container(handed):
            told = (
                f"{what} is a {type(value).__name__}, read by code that asks whether it is exactly that (`type(x) is`)"
            )
            self.state.refuse("opaque_argument", told, None, "ask by isinstance")
        return handed

    def _record_found(self, receiver: Receiver, member: Attribute | Item, value: Any, handed: Any, what: str) -> Any:
        """Records a read that gave `value`; what the forward gets in place of `handed`."""
        several = type(value) is tuple and not is_plain(value)
        several = several and not any(isinstance(leaf, (list, dict)) or is_object(leaf) for leaf in value)
        pairs = [self._found_leaf(leaf, what) for leaf in (value if several else (value,))]
        outputs = tuple([output for output, _ in pairs])
        kind = type(value) if is_container(value) or is_object(value) else None
        structure = "tuple" if several else "leaf"
        self.state.nodes.append(ObjectRead(receiver, member, outputs, structure, user_line(), kind))
        if several:
            return tuple([leaf for _, leaf in pairs])
        return pairs[0][1] if isinstance(value, torch.Tensor) else handed

    def _found_leaf(self, leaf: Any, what: str) -> tuple[Any, Any]:
        """What is found inside an object, as a read's result in the graph and as the forward gets it."""
        if isinstance(leaf, torch.Tensor):
            name, handed = self.tensor_result(leaf, [], ())
            self.look_up(leaf, name)
            return name, handed
        if is_plain(leaf) or (isinstance(leaf, Atom) and not isinstance(leaf, PLAIN)):
            return Expect(leaf), leaf
        if is_container(leaf) or is_object(leaf):
            return self.operands.object_leaf(leaf) or self.operands.new_object(leaf), leaf
        told = f"{what}, a {type(leaf).__name__}, is read"
        raise Refused("opaque_argument", told, user_line(), "keep tensors, numbers, strings, lists or dicts in there")

    def look_up(self, tensor: torch.Tensor, name: str) -> None:
        """Notes a tensor that the read which is recorded now gave."""
        self.lookups.append((name, len(self.state.nodes)))
        self.looked_up.setdefault(storage_key(tensor), []).append(
            (len(self.state.log) - 1, len(self.state.nodes), name)
        )

    def before_native_write(self, tensor: torch.Tensor) -> None:
        """A native call is about to write to memory that was found inside an object: what was found stays what it is,
        in the log, among the values and, from then on, in plans."""
        for place, index, name in self.looked_up.pop(storage_key(tensor), ()):
            self.state.log[place] = self.state.quiet(functools.partial(as_it_is, self.state.log[place]))
            self.operands.kept.append(self.state.values.real[name])
            self._overwritten.add(id(self.state.values.real[name]))
            self.state.values.names.pop(
                id(self.state.values.real[name]), None
            )  # whoever reads it from here on reads what is written now
            self.state.values.real[name] = self.state.quiet(self.state.values.real[name].clone)
            node = self.state.nodes[index]
            assert isinstance(node, ObjectRead | OpaqueCall)
            self.state.nodes[index] = replace(node, copied=True)
            self.copied.append((name, len(self.state.nodes)))

    def on_write(self, receiver: Any, name: str) -> None:
        """An attribute of an object is set: a plan would not do it again."""
        state = state_of(receiver)
        if isinstance(state, dict) and not self.state.elsewhere:
            self._python_writes.append(functools.partial(_set_again, state, name, state.get(name, _NOTHING)))
        if self.state.recording and self._receiver(receiver) is not None:
            self.state.refuse("python_state", f"the forward sets {type(receiver).__name__}.{name}")

    def _receiver(self, receiver: Any) -> Receiver | None:
        """How a plan names an argument object, one that the scope made, or a step."""
        if id(receiver) in self.operands.steps and self.state.recording:
            return self.operands.hold("module", self.operands.steps[id(receiver)], receiver)
        return self.operands.objects.get(id(receiver))

    def on_data_read(self, tensor: torch.Tensor, method: str, value: Any) -> Any:
        """Python asked for a value of a tensor: a plan asks again, and goes on if the answer is the same."""
        if self.state.refusal is not None:
            return value
        if not isinstance(value, bool):
            self.state.reader = self.state.reader or self.state.module
        leaf, seen = self.number(value) if method == "item" and type(value) is int else (Expect(value), value)
        self.state.nodes.append(TensorRead(self.operands.leaf(tensor), method, leaf, user_line()))
        return seen

    # ---- results

    def result(
        self, leaf: Any, like: list[torch.Tensor], grows: tuple[int, ...], callee: Method | Ref
    ) -> tuple[Any, Any]:
        """What a call's result is called in the graph, and what the forward gets: a size becomes a symbol."""
        if isinstance(leaf, torch.Tensor):
            return self.tensor_result(leaf, like, grows)
        if type(leaf) is int:
            return self.number(leaf)
        if isinstance(leaf, PLAIN):
            return Expect(leaf), leaf
        if isinstance(leaf, Atom):
            return Expect(leaf), leaf
        known = self.operands.object_leaf(leaf)
        if known is not None:
            return known, leaf
        if isinstance(callee, Method) or not has_opaque_methods(type(leaf)):
            what = f"{describe_call(callee)} returned a {type(leaf).__name__}"
            raise Refused("opaque_output", what, user_line(), _RETURN)
        return self.operands.new_object(leaf), leaf

    def tensor_result(self, leaf: torch.Tensor, like: list[torch.Tensor], grows: tuple[int, ...]) -> tuple[str, Any]:
        """What a tensor that a call or a read gives is called in the graph, and what the forward gets."""
        if id(leaf) in self._overwritten:  # another object, so that what the forward read before is not known
            again = self.state.quiet(leaf.detach)
            name = f"v{len(self.state.values.real)}"
            return self.state.bind(
                name, again, self.state.quiet(lambda: self.state.fake_values.of_result(name, leaf, like, grows))
            ), again
        if id(leaf) in self.state.parameter_tensors:
            self.state.known(leaf)  # it is the module's, whoever holds it, too: a plan checks that it is
        before = self.state.values.names.get(id(leaf))
        name = f"v{len(self.state.values.real)}"
        if before is not None and any(
            self.state.values.fakes[before] is fake for fake in like
        ):  # its argument: a result all
            again = self.state.quiet(leaf.detach)  # the same, which the next call may make anew
            return self.state.bind(name, again, self.state.values.fakes[before]), again
        if before is not None:
            return before, leaf
        fake = self.state.quiet(lambda: self.state.fake_values.of_result(name, leaf, like, grows))
        return self.state.bind(name, leaf, fake), leaf

    def number(self, value: int) -> tuple[Any, Any]:
        """What a whole number that was found, or returned, is called in the graph, and what the forward gets."""
        name = f"n{len(self.state.numbers)}"
        number = self.state.fake_values.new_symbol(value, (name, "result", 0))
        if not is_symbolic(number):
            return Expect(value), value
        self.state.numbers[name] = value
        return name, number

    # ---- what becomes of what was found

    def check_lists(self) -> None:
        """Refuses a forward that has changed a list of plain values which an object holds: a plan would not."""
        if any(len(now) != len(then) or any(map(_differ, now, then)) for now, then in self._lists):
            self.state.refuse("python_state", "the forward changes a list that an object among its arguments holds")

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
_RETURN = "return tensors, numbers and strings, or tuples and lists of them"
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


def describe_call(callee: Method | Ref) -> str:
    """What a reason calls that which is called natively."""
    return f"{callee.name}()" if isinstance(callee, Method) else "a module or function that is called as it is"
