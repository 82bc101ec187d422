"""Opaque calls and reads inside objects of a run that follows a recording, compared with the recording's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fusion.capture import torch_modes
from fusion.capture.matched_values import Diverged
from fusion.capture.python.container_proxy import is_plain
from fusion.capture.python.interception import refresh, unwrap_proxies, wrap_proxy
from fusion.capture.python.opaque_calls import as_tuples
from fusion.capture.python.registry import NativeFunction, OpaqueMethod
from fusion.capture.python.state_at_calls import StateAtCalls
from fusion.capture.trace_matcher import TraceMatcher
from fusion.patterns.leaves import Attribute, Expect, Ref, map_leaves
from fusion.patterns.python_nodes import Item, Method, ObjectRead, OpaqueCall
from fusion.runtime.plan import as_it_is


class CallMatcher:
    """What a session does with calls that are not torch's, and with what is read inside objects.

    Args:
        matcher: of the run.
        objects: argument objects by id: how the recording names them.

    Attributes:
        begun: the state as the run begins.
    """

    def __init__(self, matcher: TraceMatcher, objects: Mapping[int, Any]) -> None:
        self._matcher = matcher
        self._objects = dict(objects)
        self.begun = StateAtCalls()

    # ---- calls

    def on_method(
        self, registered: OpaqueMethod, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any
    ) -> Any:
        """Calls natively and compares the call; integers among the arguments may be the twin's own."""
        args, kwargs = unwrap_proxies((args, kwargs))
        if not self._matcher.following:
            return original(receiver, *args, **kwargs)
        if switched := self.begun.switched():
            self._matcher.diverged = f"switches {switched} around a call"
            return original(receiver, *args, **kwargs)
        result = self._matcher.quiet(lambda: original(receiver, *args, **kwargs))
        refresh()
        self._matcher.attempt(lambda: self._compare_call(registered, receiver, args, kwargs, result))
        return result

    def _compare_call(self, registered: OpaqueMethod, receiver: Any, args: Any, kwargs: Any, result: Any) -> None:
        node, concrete = self._matcher.next(), self._matcher.sizes.concrete
        if not isinstance(node, OpaqueCall) or node.nest:
            raise Diverged(f"{registered.method}() where the recording differs")
        if node.callee != Method(self._objects.get(id(receiver), ()), registered.method):
            raise Diverged(f"{registered.method}() where the recording calls {node.text}()")
        ours = tuple(map(self._named, args))
        theirs = map_leaves(concrete, node.args)
        same = len(ours) == len(theirs) and all(
            a == b or (type(a) is int and type(b) is int) for a, b in zip(as_tuples(ours), theirs, strict=True)
        )
        named = tuple(sorted((k, as_tuples(self._named(v))) for k, v in kwargs.items()))
        if not same or map_leaves(concrete, node.kwargs) != named:
            raise Diverged(f"other arguments of {registered.method}()")
        self._log(node, result)
        outputs = result if node.structure != "leaf" else (result,)
        if type(result) is not {"tuple": tuple, "list": list}.get(node.structure, type(result)):
            raise Diverged(f"{registered.method}() returned something else")
        for output, value in zip(node.outputs, outputs, strict=True):
            self._result(output, value)
        self._keep_copies(node)
        numbers = tuple(
            o if type(o) is int and type(t) is int else n for o, t, n in zip(ours, theirs, node.args, strict=True)
        )
        self._matcher.nodes.append(node.with_args(numbers))

    def on_function(self, registered: NativeFunction, args: Any, kwargs: Any) -> Any:
        """Recordings with registered functions are not followed."""
        self._matcher.diverged = self._matcher.diverged or f"{registered.function.__name__} is called"
        args, kwargs = unwrap_proxies((args, kwargs))
        return registered.function(*args, **kwargs)

    def on_made(self, module: torch.nn.Module) -> None:
        """Modules may be made, as in the twin's run."""

    def on_mode(self, mode: object) -> None:
        """A mode that is entered, but for torch's own: the twin entered none."""
        if self._matcher.following and not torch_modes.is_known(mode):
            self._matcher.diverged = f"enters the mode {type(mode).__name__}"

    def on_module(self, original: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Modules are looked into: a scope with steps has no twins."""
        return original(module, *args, **kwargs)

    # ---- reads

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """An attribute read on an argument object, or inside one, is compared with the recording's."""
        return self._found(receiver, Attribute(name), value)

    def on_item(self, held: Any, method: str, args: tuple[Any, ...], value: Any) -> Any:
        """So is an item of a list or dict; integers may be the twin's own."""
        return self._found(held, Item(method, args), value)

    def on_use(self, held: Any, method: str, changes: bool) -> None:
        """Any other use of one: the twin made none."""
        if self._matcher.following:
            self._matcher.diverged = f"calls {method} of a {type(held).__name__}"

    def on_failed_read(self, held: Any, name: str, error: Exception) -> Any:
        """A read that raised: the twin made none."""
        if self._matcher.following:
            self._matcher.diverged = f"reads {name} of a {type(held).__name__}, which has none"
        raise error

    def on_write(self, receiver: Any, name: str) -> None:
        """A write to an object of the call's: the twin did none."""
        if self._matcher.following and id(receiver) in self._objects:
            self._matcher.diverged = f"sets {name}"

    def _found(self, receiver: Any, member: Attribute | Item, value: Any) -> Any:
        if not self._matcher.following or id(receiver) not in self._objects:
            return value
        self._matcher.attempt(lambda: self._compare_found(receiver, member, value))
        return wrap_proxy(value)

    def _compare_found(self, receiver: Any, member: Attribute | Item, value: Any) -> None:
        node = self._matcher.next()
        told = f"{member.method if isinstance(member, Item) else str(member)} of a {type(receiver).__name__}"
        if not isinstance(node, ObjectRead) or node.receiver != self._objects[id(receiver)]:
            raise Diverged(f"{told} where the recording differs")
        if not _same_but_integers(member, node.member):
            raise Diverged(f"{told} where the recording reads {node.text}")
        self._log(node, value)
        values = value if node.structure == "tuple" else (value,)
        for output, leaf in zip(node.outputs, values, strict=True):
            if isinstance(output, Expect) or isinstance(leaf, torch.Tensor):
                self._result(output, leaf)
            elif node.kind is not type(leaf) or not self._is_object(leaf, output):
                raise Diverged(f"{told} gives something else")
            elif isinstance(output, str):
                self._objects[id(leaf)] = Ref(output)
                self._matcher.values.keep(leaf)
        self._keep_copies(node)
        self._matcher.nodes.append(node if isinstance(member, Attribute) else node.with_args(member.args))

    def _is_object(self, found: Any, output: Any) -> bool:
        """Whether an object is the one that the twin met before, or as new as the twin's."""
        known = self._objects.get(id(found))
        return known is None if isinstance(output, str) else known is not None and known == output

    # ---- operands and results

    def _named(self, argument: Any) -> Any:
        """An argument as a recording has it: a tensor by its name."""
        return Ref(self._matcher.values.name_of(argument)) if isinstance(argument, torch.Tensor) else argument

    def _result(self, output: Any, value: Any) -> None:
        """A value that a call or read gave is what the recording has in its place."""
        if isinstance(output, Expect):
            if type(value) is not type(output.value) or value != output.value:
                raise Diverged("a call or read gave another value")
        elif isinstance(value, torch.Tensor):
            self._matcher.values.found(output, value)
        else:
            self._matcher.sizes.set_number(output, value)

    def _log(self, node: OpaqueCall | ObjectRead, result: Any) -> None:
        if node.copied:
            result = self._matcher.quiet(lambda: as_it_is(result))
        self._matcher.log.append(list(result) if isinstance(result, list) and is_plain(result) else result)

    def _keep_copies(self, node: OpaqueCall | ObjectRead) -> None:
        """What a later native call writes to is kept as it is now."""
        if node.copied:
            self._matcher.quiet(lambda: self._matcher.values.copy(node.outputs))


def _same_but_integers(ours: Attribute | Item, theirs: Attribute | Item) -> bool:
    """Whether two reads are of the same attribute, or ask for the same item; integers may differ."""
    if isinstance(ours, Item) and isinstance(theirs, Item):
        left, right = ([(type(a), None if type(a) is int else a) for a in item.args] for item in (ours, theirs))
        return ours.method == theirs.method and left == right
    return type(ours) is type(theirs) and ours == theirs
