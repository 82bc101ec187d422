"""One run of a module beside an equal one's recording: what it calls and reads, compared node by node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.capture.mutation import MutationTracker, storage_key, tensors_written, view_in_place
from fusion.capture.python.container_proxy import is_plain
from fusion.capture.python.interception import refresh, unwrap_proxies, wrap_proxy
from fusion.capture.python.opaque_calls import as_tuples
from fusion.capture.python.registry import Island, NativeFunction
from fusion.capture.released_memory import Forgotten
from fusion.capture.tracer import results_of
from fusion.patterns import symbols
from fusion.patterns.leaves import Attribute, Expect, Ref, map_leaves, ref_names
from fusion.patterns.nodes import Node, OpNode
from fusion.patterns.python_nodes import Item, Method, ObjectRead, OpaqueCall
from fusion.patterns.recorded import RecordedGraph, SymbolSource
from fusion.patterns.source import define
from fusion.patterns.symbols import Dim
from fusion.runtime.plan import as_it_is
from fusion.runtime.pytrees import flatten as flatten_result


class Diverged(Exception):
    """The run does something else than the recording."""


class TraceMatcher(TorchDispatchMode):
    """Compares one run, call for call, with a recording of its twin."""

    def __init__(
        self,
        graph: RecordedGraph,
        values: Mapping[str, int],
        inputs: Mapping[int, str],
        parameters: Mapping[int, str],
        objects: Mapping[int, Any],
    ) -> None:
        super().__init__()
        self.graph = graph
        self.values = dict(values)
        self.nodes: list[Node] = []
        self.names = dict(inputs)
        self.real: dict[str, torch.Tensor] = {}
        self.held: dict[str, torch.Tensor] = {}
        self._as_lifted: dict[int, str] = {}  # constants nobody wrote to yet, by their memory
        self.objects = dict(objects)
        self.log: list[Any] = []
        self.diverged: str | None = None
        self.effects = MutationTracker()
        self._numbers: dict[sympy.Expr, int] = {}
        self._sources: dict[str, list[SymbolSource]] = {}
        for source in graph.symbols:
            self._sources.setdefault(source.value, []).append(source)
        self._alive: list[Any] = []  # alive, so that their ids stay their own
        self._parameters = parameters
        self._paths = dict(graph.parameters)
        self._expected = {path: name for name, path in graph.parameters}
        self._paused = 0
        self._thread = threading.get_ident()
        self._forgotten = Forgotten(self.real, self.names)

    @property
    def following(self) -> bool:
        """Whether the run still agrees with the recording, and this thread is looking."""
        return not self._paused and self.diverged is None and threading.get_ident() == self._thread

    def _quiet(self, build: Callable[[], Any]) -> Any:
        self._paused += 1
        try:
            return build()
        finally:
            self._paused -= 1

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Diverged as reason:
            self.diverged = str(reason)
        except Exception as error:
            self.diverged = f"{type(error).__name__}: {error}"

    def _name(self, tensor: torch.Tensor) -> str:
        name = self.names.get(id(tensor))
        if name is None:
            path = self._parameters.get(id(tensor))
            name = self._expected.get(path) if path is not None else None
            if name is None:
                raise Diverged("a tensor that the recording does not know")
            self._bind(name, tensor)
        return name

    def _bind(self, name: str, tensor: torch.Tensor) -> None:
        self.names[id(tensor)] = name
        self.real[name] = tensor

    def _next(self) -> Node:
        if len(self.nodes) >= len(self.graph.nodes):
            raise Diverged("more calls than recorded")
        return self.graph.nodes[len(self.nodes)]

    def _concrete(self, leaf: Any) -> Any:
        return self._number(leaf) if isinstance(leaf, sympy.Expr) else leaf

    def _number(self, dim: Dim) -> int:
        """What a size of the recording is in this run; a symbol that has a value keeps it."""
        if isinstance(dim, int):
            return dim
        known = self._numbers.get(dim)
        if known is None:
            known = self._numbers[dim] = symbols.evaluate(dim, self.values)
        return known

    # ---- operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused or threading.get_ident() != self._thread or func is torch.ops.aten.detach_.default:
            return func(*args, **kwargs)
        self.effects.before(func, args, kwargs)
        if self.following and func._schema.is_mutable:
            self._keep_contents(func, args, kwargs)
        if self.following:
            self._quiet(self._forgotten.sweep)
        result = func(*args, **kwargs)
        self.effects.after(args, kwargs, result)
        if self.following:
            self._attempt(lambda: self._operator(func, args, kwargs, result))
        return result

    def _keep_contents(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keeps what values of this run hold that are about to be overwritten."""
        for tensor in tensors_written(func, args, kwargs):
            constant = self._as_lifted.pop(storage_key(tensor), None)
            if constant is not None:
                self._alive.append(self.held[constant])
                self.held[constant] = self.real[constant] = self.held[constant].clone()
            name = self.names.get(id(tensor))
            if name is not None and name not in self.held and self.effects.made_here(tensor):
                self._alive.append(tensor)
                self.real[name] = tensor.clone()

    def _operator(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func is torch.ops.aten.lift_fresh.default and id(args[0]) not in {**self.names, **self._parameters}:
            self.effects.made.add(storage_key(result))
            self._constant(result)
            return
        targets = {id(t) for t in tensors_written(func, args, kwargs)}
        named = self._named(args)
        keywords = tuple(sorted((k, self._named(v)) for k, v in kwargs.items()))
        results = results_of(func, result)
        known = [self.names.get(id(r)) for r in results]
        handed_back = known and None not in known and not func._schema.is_mutable
        if handed_back and set(known) <= set(ref_names(named, keywords)):
            return
        node = self._next()
        if not isinstance(node, OpNode) or node.op != (view_in_place(func) or str(func)):
            raise Diverged(f"{func} where the recording differs")
        if map_leaves(self._concrete, (node.args, node.kwargs)) != (named, keywords):
            raise Diverged(f"other arguments of {func}")
        if len(node.outputs) != len(results):
            raise Diverged(f"{func} returns other results")
        for name, tensor in zip(node.outputs, results, strict=True):
            if id(tensor) in targets:
                self._check(name, tensor)
                self._bind(name, tensor)
            else:
                self._made(name, tensor)
        self.nodes.append(node)

    def _named(self, argument: Any) -> Any:
        """An operator's argument as a recording has it: tensors by name, lists as tuples."""
        if isinstance(argument, torch.Tensor):
            return Ref(self._name(argument))
        if isinstance(argument, (list, tuple)):
            return tuple(map(self._named, argument))
        return as_tuples(argument)

    def _made(self, name: str, tensor: torch.Tensor) -> None:
        if self.names.get(id(tensor)) == name:
            return
        if id(tensor) in self.names:
            raise Diverged(f"{name} is a tensor that was there before")
        if name in self.real:
            raise Diverged(f"{name} is another tensor than before")
        self._check(name, tensor)
        self._bind(name, tensor)
        if self.effects.made_here(tensor):
            self._forgotten.watch(name, tensor)

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        """The result has the recorded dtype and layout; symbols that it is the source of take their values from it."""
        for source in self._sources.get(name, ()):
            if source.symbol not in self.values:
                held = tensor.shape if source.kind == "shape" else tensor.stride()
                self.values[source.symbol] = int(held[source.dim])
                if source.kind == "shape" and held[source.dim] < 2:
                    raise Diverged("a size of 0 or 1")
        spec = self.graph.spec[name]
        shape = tuple(map(self._number, spec.shape))
        if spec.dtype != tensor.dtype or spec.device != tensor.device.type or shape != tuple(tensor.shape):
            raise Diverged(f"{name} has another type or shape")
        strides = list(map(self._number, spec.strides))
        differ = any(a != b and size > 1 for a, b, size in zip(strides, tensor.stride(), shape, strict=True))
        if differ and 0 not in shape:
            raise Diverged(f"{name} has another layout")

    def _constant(self, constant: torch.Tensor) -> None:
        name = f"c{len(self.held)}"
        if name not in self.graph.constants:
            raise Diverged("a constant that the recording does not have")
        self._check(name, constant)
        self.held[name] = constant
        self._as_lifted[storage_key(constant)] = name
        self._bind(name, constant)

    def elided_contiguous(self, tensor: torch.Tensor) -> None:
        """`contiguous()` handed its operand back; the recording may hold the call."""
        node = self.graph.nodes[len(self.nodes)] if len(self.nodes) < len(self.graph.nodes) else None
        if isinstance(node, OpNode) and node.op == "aten.contiguous.default" and node.refs == (self._name(tensor),):
            self._bind(node.outputs[0], tensor)
            self.nodes.append(node)

    # ---- opaque calls and reads

    def on_island(self, island: Island, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any) -> Any:
        """Calls natively and compares the call; integers among the arguments may be the twin's own."""
        args, kwargs = unwrap_proxies((args, kwargs))
        if not self.following:
            return original(receiver, *args, **kwargs)
        result = self._quiet(lambda: original(receiver, *args, **kwargs))
        refresh()
        self._attempt(lambda: self._call(island, receiver, args, kwargs, result))
        return result

    def _call(self, island: Island, receiver: Any, args: Any, kwargs: Any, result: Any) -> None:
        node = self._next()
        if not isinstance(node, OpaqueCall) or node.nest:
            raise Diverged(f"{island.method}() where the recording differs")
        if node.callee != Method(self.objects.get(id(receiver), ()), island.method):
            raise Diverged(f"{island.method}() where the recording calls {node.text}()")
        ours = tuple(Ref(self._name(a)) if isinstance(a, torch.Tensor) else a for a in args)
        theirs = map_leaves(self._concrete, node.args)
        same = len(ours) == len(theirs) and all(
            a == b or (type(a) is int and type(b) is int) for a, b in zip(as_tuples(ours), theirs, strict=True)
        )
        named = tuple(
            sorted((k, Ref(self._name(v)) if isinstance(v, torch.Tensor) else as_tuples(v)) for k, v in kwargs.items())
        )
        if not same or map_leaves(self._concrete, node.kwargs) != named:
            raise Diverged(f"other arguments of {island.method}()")
        self._log(node, result)
        outputs = result if node.structure != "leaf" else (result,)
        if type(result) is not {"tuple": tuple, "list": list}.get(node.structure, type(result)):
            raise Diverged(f"{island.method}() returned something else")
        for output, value in zip(node.outputs, outputs, strict=True):
            self._result(output, value)
        self._keep_copies(node)
        numbers = tuple(
            o if type(o) is int and type(t) is int else n for o, t, n in zip(ours, theirs, node.args, strict=True)
        )
        self.nodes.append(node.with_args(numbers))

    def _log(self, node: OpaqueCall | ObjectRead, result: Any) -> None:
        if node.copied:
            result = self._quiet(lambda: as_it_is(result))
        self.log.append(list(result) if isinstance(result, list) and is_plain(result) else result)

    def _keep_copies(self, node: OpaqueCall | ObjectRead) -> None:
        """What a later native call writes to is kept as it is now."""
        for name in node.outputs if node.copied else ():
            if isinstance(name, str) and name in self.real:
                self._alive.append(self.real[name])
                self.real[name] = self._quiet(self.real[name].clone)

    def _result(self, output: Any, value: Any) -> None:
        if isinstance(output, Expect):
            if type(value) is not type(output.value) or value != output.value:
                raise Diverged("a call or read gave another value")
        elif isinstance(value, torch.Tensor):
            if id(value) in self._parameters or output in self._paths:
                if self._name(value) != output:
                    raise Diverged("a call or read gave another parameter")
                return
            if id(value) in self.names and output not in self.real:  # its argument, handed back
                self._check(output, value)
                self._bind(output, value)
            self._made(output, value)
        else:
            symbol = next(s.symbol for s in self.graph.symbols if s.value == output)
            if type(value) is not int or value < 2:
                raise Diverged("a call or read gave a size of 0 or 1")
            self.values[symbol] = value
            self._numbers.clear()

    def on_function(self, registered: NativeFunction, args: Any, kwargs: Any) -> Any:
        """Recordings with registered functions are not followed."""
        self.diverged = self.diverged or f"{registered.function.__name__} is called"
        args, kwargs = unwrap_proxies((args, kwargs))
        return registered.function(*args, **kwargs)

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """An attribute read on an argument object, or inside one, is compared with the recording's."""
        return self._found(receiver, Attribute(name), value)

    def on_item(self, held: Any, method: str, args: tuple[Any, ...], value: Any) -> Any:
        """So is an item of a list or dict; integers may be the twin's own."""
        return self._found(held, Item(method, args), value)

    def on_use(self, held: Any, method: str, changes: bool) -> None:
        """Any other use of one: the twin made none."""
        if self.following:
            self.diverged = f"calls {method} of a {type(held).__name__}"

    def on_failed_read(self, held: Any, name: str, error: Exception) -> Any:
        """A read that raised: the twin made none."""
        if self.following:
            self.diverged = f"reads {name} of a {type(held).__name__}, which has none"
        raise error

    def _found(self, receiver: Any, member: Attribute | Item, value: Any) -> Any:
        if not self.following or id(receiver) not in self.objects:
            return value
        self._attempt(lambda: self._compare_found(receiver, member, value))
        return wrap_proxy(value)

    def _compare_found(self, receiver: Any, member: Attribute | Item, value: Any) -> None:
        node = self._next()
        told = f"{member.method if isinstance(member, Item) else str(member)} of a {type(receiver).__name__}"
        if not isinstance(node, ObjectRead) or node.receiver != self.objects[id(receiver)]:
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
                self.objects[id(leaf)] = Ref(output)
                self._alive.append(leaf)
        self._keep_copies(node)
        self.nodes.append(node if isinstance(member, Attribute) else node.with_args(member.args))

    def _is_object(self, found: Any, output: Any) -> bool:
        """Whether an object is the one that the twin met before, or as new as the twin's."""
        known = self.objects.get(id(found))
        return known is None if isinstance(output, str) else known is not None and known == output

    def on_write(self, receiver: Any, name: str) -> None:
        """A write to an object of the call's: the twin did none."""
        if self.following and id(receiver) in self.objects:
            self.diverged = f"sets {name}"

    def on_made(self, module: torch.nn.Module) -> None:
        """Modules may be made, as in the twin's run."""

    def on_module(self, original: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Modules are looked into: a scope with steps has no twins."""
        return original(module, *args, **kwargs)

    # ---- the end

    def conclude(self, result: Any) -> None:
        """The run is over: all calls were met, the guards hold, the result is made of the same values."""
        if len(self.nodes) != len(self.graph.nodes):
            raise Diverged("fewer calls than recorded")
        for guard in self.graph.guards:
            holds = define(f"def holds({', '.join(self.values)}):\n    return {guard}", "holds", {}, "<fusion guard>")
            if not holds(*self.values.values()):
                raise Diverged(f"the guard {guard} does not hold")
        flat, tree = flatten_result(result)
        if str(tree) != self.graph.structure:
            raise Diverged("a result of another structure")
        for leaf, recorded in zip(flat, self.graph.outputs, strict=True):
            if isinstance(leaf, torch.Tensor):
                if recorded != Ref(self._name(leaf)):
                    raise Diverged("the result holds another value")
            elif isinstance(recorded, Expect) and (type(recorded.value) is not type(leaf) or recorded.value != leaf):
                raise Diverged("the result holds another constant")
            elif isinstance(recorded, sympy.Expr) and symbols.evaluate(recorded, self.values) != leaf:
                raise Diverged("the result holds another size")


def _same_but_integers(ours: Attribute | Item, theirs: Attribute | Item) -> bool:
    """Whether two reads are of the same attribute, or ask for the same item; integers may differ."""
    if isinstance(ours, Item) and isinstance(theirs, Item):
        left, right = ([(type(a), None if type(a) is int else a) for a in item.args] for item in (ours, theirs))
        return ours.method == theirs.method and left == right
    return type(ours) is type(theirs) and ours == theirs
