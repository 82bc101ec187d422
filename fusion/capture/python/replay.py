"""Running a call again: opaque calls and reads answer with what they answered a plan or a recorded run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch.utils import _pytree as pytree

from fusion.capture.python.argument_tree import Leaf
from fusion.capture.python.container_proxy import is_container, is_object
from fusion.capture.python.interception import refresh, session, unwrap_proxies, wrap_proxy
from fusion.capture.python.registry import NativeFunction, OpaqueMethod, has_opaque_methods, opaque_kinds
from fusion.patterns import known_products
from fusion.runtime.call_log import LoggedContainerChange, LoggedWrite, Rewound, take_over
from fusion.runtime.plan import LoggedError


class Replay:
    """Answers opaque calls from a log, in order; past its end, natively. Use `with replay(log, ...)`.

    Attributes:
        log: what the plan's opaque calls returned, reads too: a read may come before an effect that changes its answer.
        seen: the arguments the re-run passed, flattened, one list per answered call.
    """

    def __init__(self, log: list[Any], objects: Iterable[Any] = (), steps: Iterable[torch.nn.Module] = ()) -> None:
        self.log = log
        self.position = 0
        self.depth = 0
        self.seen: list[list[Any]] = []
        self._objects = {id(o): o for o in objects}  # held, so that their ids stay theirs
        self._steps = {id(m) for m in steps}
        self._made: dict[int, Any] = {}  # objects that this run makes, by the ids of those the log has in their place

    def _answer(self, args: Any = (), kwargs: Any = None) -> Any:
        answer = self.log[self.position]
        self.position += 1
        given = (args, dict(sorted((kwargs or {}).items())))
        self.seen.append([a for a in pytree.tree_leaves(given) if isinstance(a, torch.Tensor)])
        if isinstance(answer, LoggedWrite):
            own = self.seen[-1]
            self.seen[-1] = answer.put(own)
            answer = answer.answer(own)
        if isinstance(answer, (LoggedError, LoggedContainerChange)) and answer.given:
            take_over(given, answer.given)
        if isinstance(answer, LoggedError):
            raise answer.error
        return answer.result if isinstance(answer, LoggedContainerChange) else answer

    @property
    def _answers(self) -> bool:
        return self.depth == 0 and self.position < len(self.log)

    def _natively(self, call: Callable[[], Any]) -> Any:
        self.depth += 1
        try:
            return call()
        finally:
            self.depth -= 1
            refresh()

    def on_method(
        self, registered: OpaqueMethod, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any
    ) -> Any:
        """The logged answer; nested calls, and calls past the log, run natively."""
        inherited = registered.method == "__init__" and registered.owner is not type(receiver)
        if inherited and not has_opaque_methods(type(receiver)):
            return original(receiver, *args, **kwargs)  # an object like any other
        args, kwargs = unwrap_proxies((args, kwargs))
        if not self._answers:
            return self._natively(lambda: original(receiver, *args, **kwargs))
        answer = self._answer(args, kwargs)
        if registered.method != "__init__":
            return answer
        self._objects[id(receiver)] = receiver
        self._made[id(answer)] = receiver
        receiver.__dict__ = answer.__dict__  # the object the plan made, under the identity the re-run gave it
        return None

    def on_function(self, registered: NativeFunction, args: Any, kwargs: Any) -> Any:
        """The logged answer for a function that is called natively; another is what it means."""
        if self.depth or registered.asks:
            return registered.function(*args, **kwargs)
        if registered.meaning is not None:
            return registered.meaning.decomposition(*args, **kwargs)
        args, kwargs = unwrap_proxies((args, kwargs))
        if not self._answers:
            return self._natively(lambda: registered.function(*args, **kwargs))
        return self._answer(args, kwargs)

    def on_module(self, original: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """The logged answer for a step; other modules are run."""
        if id(module) not in self._steps or self.depth:
            if _computes_linear(module, args, kwargs):
                return known_products.linear(args[0], module.weight, module.bias)
            return original(module, *args, **kwargs)
        args, kwargs = unwrap_proxies((args, kwargs))
        if not self._answers:
            return self._natively(lambda: original(module, *args, **kwargs))
        return self._answer(args, kwargs)

    def on_made(self, module: torch.nn.Module) -> None:
        """Modules may be made."""

    def on_mode(self, mode: object) -> None:
        """Modes may be entered."""

    def on_write(self, receiver: Any, name: str) -> None:
        """Writes go through."""

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """The logged value of an attribute that the plan read."""
        recorded = id(receiver) in self._objects or id(receiver) in self._steps
        return self._found(value) if recorded and not self.depth and not callable(value) else value

    def on_item(self, held: Any, method: str, args: tuple[Any, ...], value: Any) -> Any:
        """The logged item of a list or dict that the plan looked into."""
        return self._found(value) if not self.depth and id(held) in self._objects else value

    def on_failed_read(self, held: Any, name: str, error: Exception) -> Any:
        """The logged value, which what was done since has taken away, or the logged error."""
        if self._answers and (id(held) in self._objects or id(held) in self._steps):
            return self._found(None)
        raise error

    def on_use(self, held: Any, method: str, changes: bool) -> None:
        """Other uses go through."""

    def _found(self, value: Any) -> Any:
        """What the plan found inside an object, or what there is past the end of the log."""
        if self._answers:
            value = self._answer()
            value = self._made.get(id(value), value)
        if is_container(value) or is_object(value):
            self._objects[id(value)] = value
        return wrap_proxy(value)


_LINEAR_FORWARD = torch.nn.Linear.forward
_ANY = torch.nn.Identity()  # its class has `__call__` from the class of all modules


def _computes_linear(module: torch.nn.Module, args: Any, kwargs: Any) -> TypeGuard[torch.nn.Linear]:
    """Whether a call of a module computes `torch.nn.functional.linear` and nothing else."""
    if type(module) is not torch.nn.Linear or kwargs or len(args) != 1 or "forward" in vars(module):
        return False
    if torch.nn.Linear.forward is not _LINEAR_FORWARD or known_products.active() is None:
        return False
    if module._compiled_call_impl is not None:
        return False
    everywhere = torch.nn.modules.module
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks,
    )  # fmt: skip
    return not any(hooks)


@contextlib.contextmanager
def replay(log: list[Any], arguments: Iterable[Leaf] = (), steps: Iterable[torch.nn.Module] = ()) -> Iterator[Replay]:
    """A session that answers from `log`.

    Args:
        log: results of opaque calls and reads, in order.
        arguments: leaves of the call's arguments, for the objects among them.
        steps: modules that are opaque to the scope.
    """
    given = [leaf.value for leaf in arguments if has_opaque_methods(type(leaf.value))]
    steps = tuple(steps)
    handler = Replay(log, given, steps)
    # Where products are known, calls of all modules are seen, to find those of linear ones.
    called = steps if known_products.active() is None else (*steps, _ANY)
    rewound = Rewound(log)
    try:
        with session(handler, handler, (*opaque_kinds(given), *{type(step) for step in steps}), called):
            yield handler
    finally:
        rewound.put_back()
