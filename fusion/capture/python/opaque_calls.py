"""What a recorder does with calls that plans make as they are: of methods, modules and functions, and of classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion.capture import torch_modes
from fusion.capture.python.call_operands import CallOperands
from fusion.capture.python.container_proxy import COPY, is_looked_into
from fusion.capture.python.interception import function_call, unwrap_proxies
from fusion.capture.python.library_modules import is_a_function
from fusion.capture.python.native_writes import NativeWrites
from fusion.capture.python.object_reads import ObjectReads, describe_call
from fusion.capture.python.registry import NativeFunction, OpaqueMethod, has_opaque_methods
from fusion.capture.python.state_at_calls import StateAtCalls
from fusion.capture.released_memory import ALONE, references
from fusion.capture.symbolic_shapes import is_symbolic, real_nest
from fusion.capture.trace_state import TraceState
from fusion.capture.user_frame import line_of, user_line
from fusion.patterns.leaves import Ref
from fusion.patterns.python_nodes import Keywords, Method, NewObject, OpaqueCall
from fusion.refusal import Refused
from fusion.runtime.call_log import Contents, contents, is_nest, noted, take_over, unchanged
from fusion.runtime.plan import LoggedError
from fusion.runtime.pytrees import tree_of, tree_text, unflatten


class OpaqueCalls:
    """What a recorder does with calls that are not torch's: they are made natively, and plans make them so too.

    Args:
        state: of the recorded run.
        operands: names what calls are given.
        reads: what was found inside objects, which such calls may change.
        watched: the modules whose state the plan's snapshot watches; None where nothing is watched.

    Attributes:
        functions: modules that an installed library calls as it calls its functions, and the scope does not hold.
        in_step: whether a step is running, which may write to what it was given.
        writes: what such calls write to.
        begun: the state as the run begins: plans make such calls in it.
    """

    def __init__(
        self,
        state: TraceState,
        operands: CallOperands,
        reads: ObjectReads,
        watched: Iterable[torch.nn.Module] | None,
    ) -> None:
        self.state = state
        self.operands = operands
        self.reads = reads
        self.functions: list[torch.nn.Module] = []
        self.in_step = False
        self.begun = StateAtCalls()
        self.writes = NativeWrites(state)
        self._watched = None if watched is None else {id(module): module for module in watched}
        self._handed_on: list[str] = []  # results of steps that the forward may still hold

    def on_method(
        self, registered: OpaqueMethod, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any
    ) -> Any:
        """Calls a registered method natively and records the call, not what happens inside."""
        inherited = registered.method == "__init__" and registered.owner is not type(receiver)
        if inherited and not has_opaque_methods(type(receiver)):
            return original(receiver, *args, **kwargs)  # an object like any other
        if not self.state.recording:
            made = receiver if registered.method == "__init__" else None
            return self._unrecorded(lambda a, k: original(receiver, *a, **k), args, kwargs, made)
        if registered.method == "__init__":
            return self._make(registered, original, receiver, args, kwargs)
        known = self.operands.objects.get(id(receiver))
        if known is None:
            what = f"{type(receiver).__name__}.{registered.method}() is called on an object that is no argument"
            self.state.refuse("opaque_argument", what, None, "pass the object as an argument")
            return self._unrecorded(lambda a, k: original(receiver, *a, **k), args, kwargs)
        callee, effect, grows = Method(known, registered.method), registered.effect, registered.grows
        return self._native(callee, lambda a, k: original(receiver, *a, **k), args, kwargs, effect, grows)

    def _make(self, registered: OpaqueMethod, original: Callable[..., Any], made: Any, args: Any, kwargs: Any) -> Any:
        """The scope makes an object: so does the plan."""
        kind = type(made)
        if registered.owner is not kind:
            remedy = f"make it before the call and pass it, or declare it: fusion.register_made({kind.__name__})"
            self.state.refuse("opaque_argument", f"the forward makes a {kind.__name__}", None, remedy)
            return self._unrecorded(lambda a, k: original(made, *a, **k), args, kwargs, made)
        if self._is_switched(f"the making of a {kind.__name__}"):
            return self._unrecorded(lambda a, k: original(made, *a, **k), args, kwargs, made)
        real = unwrap_proxies(real_nest((args, kwargs)))
        self._natively(lambda: original(made, *real[0], **real[1]), real)
        self.state.log.append(made)

        def record() -> None:
            positional, named = _as_recorded(*pytree.tree_map(self.operands.leaf, (args, kwargs)))
            output = self.operands.new_object(made)
            held = self.operands.hold("class", f"{kind.__module__}.{kind.__qualname__}", kind)
            self.state.nodes.append(NewObject(held, positional, named, output, user_line()))

        self.state.attempt(registered.owner.__name__, record)
        return None

    def on_function(self, registered: NativeFunction, args: Any, kwargs: Any) -> Any:
        """A registered function: recorded as what it means, or called natively."""
        function, meaning = registered.function, registered.meaning
        if registered.asks:
            self.state.refuse("collecting", f"the call {registered.asks}")
            return function(*args, **kwargs)
        if not self.state.recording:
            if meaning is not None:
                return function(*args, **kwargs)
            return self._unrecorded(lambda a, k: function(*a, **k), args, kwargs)
        if meaning is not None:
            real_args, real_kwargs = real_nest((args, kwargs))
            problem = self.state.quiet(lambda: meaning.problem(real_args, real_kwargs))
            if problem is not None:
                self.state.refuse("inaccurate", problem)
                return function(*real_args, **real_kwargs)
            return meaning.decomposition(*args, **kwargs)
        held = self.operands.hold(
            "function", f"{function.__module__}.{function.__qualname__}", function_call(registered)
        )
        place = len(self.state.nodes)
        result = self._native(held, lambda a, k: function(*a, **k), args, kwargs, registered.effect, registered.grows)
        for leaf in pytree.tree_leaves((args, kwargs)) if registered.effect else ():
            if isinstance(leaf, torch.Tensor):  # what it writes to cannot be seen: it may be any of them
                self.state.quiet(functools.partial(self.state.effects.native_write, place, leaf))
        return result

    def on_made(self, module: torch.nn.Module) -> None:
        """A module that the forward makes: each run makes its own."""
        if self._watched is not None:
            self._watched[id(module)] = module

    def on_mode(self, mode: object) -> None:
        """A mode that is entered: what it does beside torch's operators no plan would do."""
        if self.state.recording and not torch_modes.is_known(mode):
            self.state.refuse("active_mode", f"the forward enters the mode {type(mode).__name__}", None, AROUND)

    def on_module(self, original: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """A step is called natively; other modules are looked into."""
        if not self.state.recording:
            if id(module) not in self.operands.steps:
                return original(module, *args, **kwargs)
            return self._unrecorded(lambda a, k: original(module, *a, **k), args, kwargs)
        if self._watched is not None and id(module) not in self._watched:
            if not is_a_function(module):
                kind = type(module).__name__
                what = f"the forward calls a {kind} that no module of the scope holds"
                self.state.refuse("python_state", what, None, "make it an attribute of the module that calls it")
                return original(module, *args, **kwargs)
            self._watched[id(module)] = module
            self.functions.append(module)
        path = self.operands.steps.get(id(module))
        if path is not None:
            return self._step(original, module, path, args, kwargs)
        self.state.notice_fixed_size()
        if not self.state.recording:
            return original(module, *args, **kwargs)
        outer, self.state.module = self.state.module, module
        try:
            return original(module, *args, **kwargs)
        finally:
            self.state.notice_fixed_size()
            if self.state.recording:
                self.state.module = outer

    def _step(self, original: Callable[..., Any], module: torch.nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        held = self.operands.hold("module", path, module)
        if change := self.state.quiet(self.begun.change):
            self.state.refuse("python_state", f"the forward {change} before it calls the block {path!r}", None, _GIVEN)
        self.in_step = True
        try:
            return self._native(held, lambda a, k: original(module, *a, **k), args, kwargs, True, ())
        finally:
            self.in_step = False
            if not change:
                self.state.quiet(self.begun.after_step)

    def _native(
        self,
        callee: Method | Ref,
        call: Callable[[Any, Any], Any],
        args: Any,
        kwargs: Any,
        effect: bool,
        grows: tuple[int, ...],
    ) -> Any:
        told = describe_call(callee)
        if self._is_switched(told):
            return self._unrecorded(call, args, kwargs)
        if any(map(is_looked_into, pytree.tree_leaves((args, kwargs)))):
            self.state.refuse("opaque_argument", f"{told} is given a list or dict that an object holds", None, COPY)
            return self._unrecorded(call, args, kwargs)
        nests = any(map(_is_made_anew, (*args, *kwargs.values())))
        given = contents((args, kwargs))
        if nests and not (effect and all(map(is_nest, (*args, *kwargs.values()))) and _distinct(given)):
            self.state.refuse("opaque_argument", f"{told} is given a container, which it may change", None, _UNPACKED)
            return self._unrecorded(call, args, kwargs)
        self.reads.check_lists()
        if self.state.arguments.snapshot.changes():
            what = f"{told} is called after a dict of the caller's is written to"
            self.state.refuse("python_state", what, None, "write to the dict at the end of the forward")
        real_args, real_kwargs = real_nest((args, kwargs))
        dead_results = self._given_up()
        before = contents((real_args, real_kwargs))
        self.state.quiet(self.state.effects.before_native)
        try:
            result = self._natively(lambda: call(real_args, real_kwargs), (real_args, real_kwargs))
        except Exception as error:
            self._handed_back((args, kwargs), before, told)
            self.state.log.append(self._entry(_raised(error, before), real_args, real_kwargs))
            self.state.refuse("step_error", f"{told} raised {type(error).__name__}: {error}", line_of(error) or None)
            raise
        self._handed_back((args, kwargs), before, told)
        if switched := self.begun.switched():  # which the forward may put back, and a plan would not
            self.state.refuse("active_mode", f"{told} switches {switched} and leaves it so", None, AROUND)
        self.state.quiet(self.state.effects.after_native)
        self.reads.after_native()
        self.state.log.append(self._entry(noted(result, before), real_args, real_kwargs))
        handed = [result]

        def record() -> None:
            ordered = (args, dict(sorted(kwargs.items())))
            handed[0] = self._record(callee, ordered, result, effect, grows, dead_results, nests)

        self.state.attempt(callee.name if isinstance(callee, Method) else "a module", record)
        return handed[0]

    def _is_switched(self, told: str) -> bool:
        """Whether torch computes otherwise now than as the run began and in plans; refuses the run then."""
        switched = self.begun.switched()
        if switched:
            self.state.refuse("active_mode", f"the forward switches {switched} around {told}", None, AROUND)
        return bool(switched)

    def _record(
        self,
        callee: Method | Ref,
        given: Any,
        result: Any,
        effect: bool,
        grows: tuple[int, ...],
        dead_results: tuple[str, ...],
        nests: bool,
    ) -> Any:
        """Adds the node of a call that was given `(args, kwargs)`; what the forward gets for its result."""
        leaves, nest = pytree.tree_flatten(given)
        operands = list(map(self.operands.leaf, leaves))
        args, kwargs = _as_recorded(*((operands, {}) if nests else pytree.tree_unflatten(operands, nest)))
        like = [self.state.values.fakes[self.state.values.names[id(a)]] for a in leaves if isinstance(a, torch.Tensor)]
        flat, structure = _flatten(result)
        if isinstance(callee, Ref) and any(type(leaf) is int for leaf in flat):
            self.state.reader = self.state.reader or self.state.module  # how many rows each expert gets, say
        pairs = [self.reads.result(leaf, like, grows, callee) for leaf in flat]
        for leaf, (name, _) in zip(flat, pairs, strict=True) if not effect else ():
            if isinstance(leaf, torch.Tensor):
                self.reads.look_up(leaf, name)
        outputs, text = tuple(output for output, _ in pairs), tree_text(nest) if nests else ""
        node = OpaqueCall(callee, args, kwargs, outputs, effect, structure, dead_results, user_line(), text)
        self.state.nodes.append(node)
        if effect and isinstance(node.receiver, Ref) and structure == "leaf" and isinstance(result, torch.Tensor):
            self._handed_on.append(outputs[0])
        return _unflatten(structure, [handed for _, handed in pairs])

    def _natively(self, call: Callable[[], Any], given: Any) -> Any:
        """Makes a native call: what torch is asked to do inside is watched for what it writes to, and not recorded."""
        outer, self.state.effects.in_native = self.state.effects.in_native, True
        self.state.quiet(lambda: self.writes.before(given))
        try:
            with torch_modes.as_outside():
                return self.state.quiet(call)
        finally:
            self.state.effects.in_native = outer

    def _entry(self, entry: Any, args: Any, kwargs: Any) -> Any:
        return self.state.quiet(lambda: self.writes.entry(entry, args, kwargs))

    def _unrecorded(self, call: Callable[[Any, Any], Any], args: Any, kwargs: Any, made: Any = None) -> Any:
        """Calls natively what no recording holds, and remembers the answer: the forward may fail yet, for its sizes are
        symbols, and is run again then, but what such calls did is done."""
        if self.state.elsewhere:
            return call(args, kwargs)  # inside of a native call
        if any(map(is_symbolic, pytree.tree_leaves((args, kwargs)))):
            args, kwargs = real_nest((args, kwargs))
        args, kwargs = unwrap_proxies((args, kwargs))
        before = contents((args, kwargs))
        self.state.quiet(self.state.effects.before_native)
        try:
            result = self._natively(lambda: call(args, kwargs), (args, kwargs))
        except Exception as error:
            self.state.log.append(self._entry(_raised(error, before), args, kwargs))
            raise
        self.state.quiet(self.state.effects.after_native)
        self.reads.after_native()
        if made is not None:
            self.operands.new_object(made)
        self.state.log.append(self._entry(noted(result if made is None else made, before), args, kwargs))
        return result

    def _given_up(self) -> tuple[str, ...]:
        """Results of steps that only the recorder still holds: whatever the forward does from here on, catching an
        error included, it cannot read them."""
        gone = tuple(
            name for name in self._handed_on if references(self.state.values.real, name) == ALONE + 1
        )  # 1: the log
        self._handed_on = [name for name in self._handed_on if name not in gone]
        return gone

    def _handed_back(self, given: Any, before: Contents, told: str) -> None:
        """A native call was given copies of lists and dicts: what it put into them goes into the forward's own."""
        if not unchanged(before):
            take_over(given, before)
            self.state.refuse("python_state", f"{told} changes a list or dict it is given")


_GIVEN = "pass what the block reads as an argument of its call"
AROUND = "switch it around the call of the model instead"
_UNPACKED = "pass what it reads of the container as arguments of their own"


def _raised(error: Exception, before: Contents) -> LoggedError:
    """A log's entry for a native call that raised."""
    return LoggedError(error, [] if unchanged(before) else before)


def _as_recorded(args: Any, kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Keywords]:
    """A call's arguments as a node has them: lists as tuples, keywords in order."""
    return as_tuples(args), tuple(sorted((k, as_tuples(v)) for k, v in kwargs.items()))


def as_tuples(tree: Any) -> Any:
    """Lists in an argument tree as tuples."""
    if isinstance(tree, (list, tuple)):
        return tuple(as_tuples(t) for t in tree)
    if isinstance(tree, slice):
        raise Refused("opaque_argument", "a slice is an argument of an operator", remedy="index with numbers instead")
    return tree


def _is_made_anew(argument: Any) -> bool:
    """Whether an argument holds a container that a plan makes for each call: one that the call could put something
    into, or a tuple of a kind of its own."""
    if type(argument) is tuple:
        return any(map(_is_made_anew, argument))
    return isinstance(argument, (list, dict, set, tuple))


def _distinct(given: Contents) -> bool:
    """Whether no list or dict is among a call's arguments twice: a plan makes each anew."""
    return len({id(container) for container, _ in given}) == len(given)


def _flatten(result: Any) -> tuple[list[Any], str]:
    if type(result) in (tuple, list) and not any(isinstance(r, (tuple, list, dict)) for r in result):
        return list(result), type(result).__name__
    flat, tree = pytree.tree_flatten(result)
    return flat, "leaf" if tree.is_leaf() else tree_text(tree)


def _unflatten(structure: str, leaves: list[Any]) -> Any:
    if structure in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[structure](leaves)
    return leaves[0] if structure == "leaf" else unflatten(leaves, tree_of(structure))
