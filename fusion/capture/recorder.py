"""The recorder: runs a scope once on real tensors and writes down what torch is asked to do.

A dispatch mode sees every operator below autograd; a function mode answers size questions with symbols and notices
reads of tensor data. Once something cannot be recorded, the recorder notes the first such thing as a Refusal and lets
the rest of the run pass by untouched: the caller always gets the eager result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.decide.refusal import Refusal, Refused
from fusion.patterns.graph import Expect, GraphInput, IslandNode, Leaf, OpNode, Path, Ref
from fusion.patterns.ops import Kind, kind_of
from fusion.runtime.plan import Raised

from .islands import Island
from .provenance import Atom, user_line
from .shadow import Shadow, hint, is_symbolic, quiet_log

_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
DATA_READS = {
    torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__index__, torch.Tensor.__float__,
    torch.Tensor.tolist, torch.Tensor.__contains__, torch.Tensor.__format__, torch.Tensor.__repr__,
    torch.Tensor.data_ptr, torch.Tensor.storage_offset, torch.Tensor.untyped_storage, torch.Tensor.storage,
    torch.Tensor.nbytes.__get__,  # type: ignore[attr-defined]
    torch.Tensor.__complex__, torch.equal, torch.allclose, torch.is_nonzero,
}  # fmt: skip
NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__, torch.from_numpy, torch.Tensor.__dlpack__}
_SIZE_READS = {
    torch.Tensor.size, torch.Tensor.numel, torch.Tensor.stride, torch.Tensor.nelement, torch.numel,
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
}  # fmt: skip
LAYOUT_READS = {torch.Tensor.is_contiguous}
_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class Recorder(TorchDispatchMode):
    """Records one run. Use `with recorder.active(): result = scope(...)`.

    Attributes:
        nodes: what was met, in order; arguments still hold torch's symbolic sizes.
        refusal: the first reason the run cannot be replayed, or None.
        real: every tensor by value name; valid until the recording is dropped.
    """

    def __init__(
        self,
        inputs: Iterable[tuple[str, Path, torch.Tensor]],
        parameters: Mapping[int, tuple[str, torch.Tensor]],
        objects: Mapping[int, Path],
        *,
        adopt_inputs: bool = False,
        max_ops: int = 4096,
    ) -> None:
        super().__init__()
        self.shadow = Shadow()
        self.nodes: list[OpNode | IslandNode] = []
        self.refusal: Refusal | None = None
        self.real: dict[str, torch.Tensor] = {}
        self.fakes: dict[str, torch.Tensor] = {}
        self.inputs: list[GraphInput] = []
        self.aliased_inputs: list[tuple[Path, Path]] = []
        self.parameters: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, int] = {}  # sizes that islands returned, by value name
        self.opaque: list[str] = []  # results whose shape is known only once they are there
        self.written: dict[int, str] = {}  # memory that operators write to: the user's line
        self.log: list[Any] = []
        self.objects = dict(objects)
        self._names: dict[int, str] = {}
        self._parameters = parameters
        self._adopt_inputs = adopt_inputs
        self._max_ops = max_ops
        self._paused = 0
        self._thread = threading.get_ident()
        for name, path, tensor in inputs:
            self.add_input(name, path, tensor)

    # ---- values

    def add_input(self, name: str, path: Path, tensor: torch.Tensor) -> None:
        """A tensor that enters by argument; one that came in already under another path is the same value."""
        known = self._names.get(id(tensor))
        if known is not None:
            first = next(i.path for i in self.inputs if i.name == known)
            self.aliased_inputs.append((path, first))
            return
        problem = _unsupported(tensor)
        if problem:
            self.refuse("unsupported_layout", f"the argument {path} is {problem}")
            return
        self.inputs.append(GraphInput(name, path))
        self._bind(name, tensor, self._quiet(lambda: self.shadow.of_input(name, tensor)))

    def _bind(self, name: str, tensor: torch.Tensor, fake: torch.Tensor) -> str:
        self.real[name] = tensor
        self.fakes[name] = fake
        self._names[id(tensor)] = name
        return name

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The value name of a tensor that is known."""
        return self._names.get(id(tensor))

    def _known(self, tensor: torch.Tensor) -> str:
        name = self._names.get(id(tensor))
        if name is not None:
            return name
        if id(tensor) in self._parameters:
            path, _ = self._parameters[id(tensor)]
            name = f"p{len(self.parameters)}"
            self.parameters[name] = path
            return self._bind(name, tensor, self._quiet(lambda: self.shadow.static(tensor)))
        if self._adopt_inputs:
            name = f"x{len(self.inputs)}"
            self.add_input(name, (name,), tensor)
            return name
        raise Refused(
            "unknown_tensor",
            f"a tensor {tuple(tensor.shape)} that is no argument, parameter, buffer or result; pass it as an argument",
            user_line(),
        )

    def _quiet(self, build: Callable[[], Any]) -> Any:
        self._paused += 1
        try:
            return build()
        finally:
            self._paused -= 1

    def refuse(self, code: str, sentence: str, origin: str | None = None) -> None:
        """Notes why the run cannot be replayed; the first reason stands."""
        if self.refusal is None:
            self.refusal = Refusal(code, sentence, user_line() if origin is None else origin)

    @property
    def recording(self) -> bool:
        """Whether this thread is being recorded just now."""
        return not self._paused and self.refusal is None and threading.get_ident() == self._thread

    # ---- operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)  # the shadow's own calls, symbols and all
        real_args, real_kwargs = pytree.tree_map(hint, (args, kwargs))
        if not self.recording:
            return func(*real_args, **real_kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            return self._lift(func, args)
        result = func(*real_args, **real_kwargs)
        try:
            self._record(func, args, kwargs, result)
        except Refused as refused:
            self.refusal = refused.refusal
        except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode):
            self.refuse("data_read", f"the result's shape or value of {func} depends on tensor data")
        except Exception as error:
            self.refuse("recorder_error", f"{func} could not be recorded: {type(error).__name__}: {error}")
        return result

    def _lift(self, func: Any, args: Any) -> torch.Tensor:
        """A tensor made from Python data: a constant of the recording."""
        constant: torch.Tensor = func(*args)
        name = f"c{len(self.constants)}"
        self.constants[name] = constant
        self._bind(name, constant, self._quiet(lambda: self.shadow.static(constant)))
        return constant

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func is torch.ops.aten.detach_.default:
            return  # how torch.tensor() ends: it changes what autograd knows, which is off, and no data
        if len(self.nodes) >= self._max_ops:
            raise Refused("too_large", f"more than {self._max_ops} operators; raise max_graph_size")
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            raise Refused("data_read", "a value of a tensor decides what Python does next", user_line())
        if torch.Tag.nondeterministic_seeded in func.tags and not _draws_nothing(func, args, kwargs):
            raise Refused("random", f"{func} draws random numbers", user_line())
        graph_args, graph_kwargs = pytree.tree_map(self._leaf, (args, kwargs))
        results = result if isinstance(result, (tuple, list)) else (result,)
        fakes = self._shadows(func, args, kwargs, len(results))
        if func._schema.is_mutable:
            self._note_writes(func, args, kwargs)
        names = [self._result(r, f) for r, f in zip(results, fakes, strict=True)]
        if names and not func._schema.is_mutable and all(n in self._input_names(args, kwargs) for n in names):
            return  # handed its operand back, for every shape: nothing happened
        self.nodes.append(
            OpNode(
                str(func),
                as_tuples(graph_args),
                tuple(sorted((k, as_tuples(v)) for k, v in graph_kwargs.items())),
                tuple(names),
                user_line(),
            )
        )

    def _leaf(self, leaf: Any) -> Leaf:
        if isinstance(leaf, torch.Tensor):
            return Ref(self._known(leaf))
        if isinstance(leaf, (torch.SymFloat, torch.SymBool)):
            raise Refused("guard", "a size became a floating-point argument of an operator", user_line())
        if isinstance(leaf, (*Atom, torch.SymInt)):
            return leaf
        raise Refused("opaque_argument", f"an operator argument of type {type(leaf).__name__}", user_line())

    def _shadows(self, func: Any, args: Any, kwargs: Any, count: int) -> Sequence[Any]:
        """The results of an operator on the shadows; None for each where torch cannot tell their shapes beforehand.

        That is so where the shape depends on data (nonzero), and where torch's shape function is stricter than the
        kernel of this device. An operator the compiler knows always has a shape function.
        """
        fake_args, fake_kwargs = pytree.tree_map(
            lambda a: self.fakes[self._known(a)] if isinstance(a, torch.Tensor) else a, (args, kwargs)
        )

        def call() -> Any:
            with self.shadow.mode, quiet_log:
                return func(*fake_args, **fake_kwargs)

        def decomposed() -> Any:
            with enable_python_dispatcher():
                return call()

        for attempt in (call, decomposed):
            try:
                fake = self._quiet(attempt)
                return fake if isinstance(fake, (tuple, list)) else (fake,)
            except DynamicOutputShapeException:
                break
            except DataDependentOutputException:
                raise
            except Exception:
                continue
        if kind_of(str(func)) is not Kind.LIBRARY:
            return self._quiet(decomposed)  # which says what is wrong
        return (None,) * count

    def _input_names(self, args: Any, kwargs: Any) -> set[str]:
        return {self._names[id(a)] for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}

    def _result(self, real: Any, fake: Any) -> str:
        if not isinstance(real, torch.Tensor):
            raise Refused("data_read", f"an operator returned a Python {type(real).__name__}", user_line())
        if self._names.get(id(real)) is not None:
            return self._names[id(real)]
        problem = _unsupported(real)
        if problem:
            raise Refused("unsupported_layout", f"an operator returned {problem}", user_line())
        name = f"v{len(self.real)}"
        if fake is None:
            self.opaque.append(name)
            return self._bind(name, real, self._quiet(lambda: self.shadow.of_input(name, real)))
        shape = tuple(hint(d) for d in fake.shape)
        if shape != tuple(real.shape) or fake.dtype != real.dtype:
            raise Refused("shape_mismatch", f"expected {shape}, the operator gave {tuple(real.shape)}", user_line())
        strides = zip(map(hint, fake.stride()), real.stride(), real.shape, strict=True)
        if real.numel() and any(a != b and size > 1 for a, b, size in strides):
            fake = self._quiet(lambda: self.shadow.build(real, fake.shape, self.shadow._strides("", real, fake.shape)))
        return self._bind(name, real, fake)

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            target = args[position] if position < len(args) else kwargs.get(argument.name)
            for tensor in pytree.tree_leaves(target):
                if isinstance(tensor, torch.Tensor):
                    self.written.setdefault(storage_key(tensor), user_line())

    # ---- islands

    def on_island(self, island: Island, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any) -> Any:
        """Calls an island natively and records the call, not what happens inside."""
        if not self.recording:
            return original(receiver, *args, **kwargs)
        real_args, real_kwargs = pytree.tree_map(hint, (args, kwargs))
        try:
            result = self._quiet(lambda: original(receiver, *real_args, **real_kwargs))
        except Exception as error:
            self.log.append(Raised(error))
            raise
        self.log.append(result)
        try:
            return self._record_island(island, receiver, args, kwargs, result)
        except Refused as refused:
            self.refusal = refused.refusal
        except Exception as error:
            self.refuse("recorder_error", f"{island.method} could not be recorded: {type(error).__name__}: {error}")
        return result

    def _record_island(self, island: Island, receiver: Any, args: Any, kwargs: Any, result: Any) -> Any:
        if id(receiver) not in self.objects:
            raise Refused(
                "opaque_argument", f"{type(receiver).__name__}.{island.method} on an object that is no argument"
            )
        if island.effect:
            self._check_attributes(island)
        graph_args, graph_kwargs = pytree.tree_map(self._leaf, (args, kwargs))
        like = [self.fakes[self._names[id(a)]] for a in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(a)]
        structure = "tuple" if type(result) is tuple else "list" if type(result) is list else "leaf"
        outputs: list[Any] = []
        handed: list[Any] = []
        for leaf in result if structure != "leaf" else (result,):
            made, seen = self._island_result(leaf, like, island)
            outputs.append(made)
            handed.append(seen)
        self.nodes.append(
            IslandNode(
                self.objects[id(receiver)],
                island.method,
                as_tuples(graph_args),
                tuple(sorted((k, as_tuples(v)) for k, v in graph_kwargs.items())),
                tuple(outputs),
                island.effect,
                structure,
                user_line(),
            )
        )
        return type(result)(handed) if structure != "leaf" else handed[0]

    def _check_attributes(self, island: Island) -> None:
        """An attribute read before an effect would read otherwise in a re-run after it: only methods are logged."""
        for node in self.nodes:
            if isinstance(node, IslandNode) and node.args is None:
                raise Refused(
                    "python_state",
                    f"the attribute {node.method!r} is read before {island.method} may change it; "
                    "read it through a method and register that with effect=False",
                    node.origin,
                )

    def _island_result(self, leaf: Any, like: list[torch.Tensor], island: Island) -> tuple[Any, Any]:
        if isinstance(leaf, torch.Tensor):
            if id(leaf) in self._names:
                return self._names[id(leaf)], leaf
            name = f"v{len(self.real)}"
            fake = self._quiet(lambda: self.shadow.of_result(name, leaf, like, island.grows))
            return self._bind(name, leaf, fake), leaf
        if isinstance(leaf, bool) or leaf is None or isinstance(leaf, (str, float)):
            return Expect(leaf), leaf
        if isinstance(leaf, int):
            name = f"n{len(self.nodes)}"
            self.numbers[name] = leaf
            number = self.shadow.new_symbol(leaf, (name, "result", 0))
            return (name, number) if is_symbolic(number) else (Expect(leaf), leaf)
        raise Refused("opaque_output", f"{island.method} returned a {type(leaf).__name__}", user_line())

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """An attribute read on an argument object: a plain value becomes a condition, anything else a refusal."""
        if not self.recording or id(receiver) not in self.objects or callable(value):
            if self.recording and callable(value) and id(receiver) in self.objects:
                self.refuse("opaque_argument", f"{type(receiver).__name__}.{name}() is not registered as an island")
            return value
        if value is None or isinstance(value, (bool, int, str, float)):
            path = self.objects[id(receiver)]
            self.nodes.append(IslandNode(path, name, None, (), (Expect(value),), False, "leaf", user_line()))
        else:
            self.refuse("opaque_argument", f"{type(receiver).__name__}.{name} is read; register an island for it")
        return value


class SizeReads(TorchFunctionMode):
    """Answers `.shape` and its kin with the shadow's symbols, and notices reads of tensor data."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if not recorder.recording:
            return func(*args, **kwargs)
        if args and id(args[0]) in recorder._parameters and _unsupported(args[0]) is None:
            self._fake(args[0])  # a plan guards what the forward asked about, such as the dtype, used or not
        if func in _SIZE_READS:
            fake = self._fake(args[0])
            if fake is not None:
                return recorder._quiet(lambda: func(fake, *args[1:], **kwargs))
        elif func is torch.Tensor.__len__ and args[0].ndim:
            fake = self._fake(args[0])
            if fake is not None:
                return int(fake.shape[0])  # len() must be a number: the size is fixed by a guard
        elif func is torch.Tensor.contiguous and len(args) == 1 and not kwargs:
            return self._contiguous(args[0])
        elif func in _INDEXING:
            fake = self._fake(args[0])
            if fake is not None:
                recorder._quiet(lambda: _guard_whole_slices(fake, args[1]))
        elif func in DATA_READS:
            recorder.refuse("data_read", f"{func.__name__} reads tensor data in Python")
        elif func in NUMPY:
            recorder.refuse("numpy", f"{func.__name__} leaves torch")
        elif func in LAYOUT_READS:
            return self._layout(func, args, kwargs)
        return func(*args, **kwargs)

    def _fake(self, tensor: Any) -> torch.Tensor | None:
        try:
            return self.recorder.fakes[self.recorder._known(tensor)]
        except Refused as refused:
            self.recorder.refusal = self.recorder.refusal or refused.refusal
            return None

    def _layout(self, func: Any, args: Any, kwargs: Any) -> Any:
        fake = self._fake(args[0])
        if fake is not None and func is torch.Tensor.is_contiguous:
            self.recorder._quiet(lambda: func(fake, *args[1:], **kwargs))  # leaves its guards
        return func(*args, **kwargs)

    def _contiguous(self, tensor: torch.Tensor) -> torch.Tensor:
        """`contiguous()` that had nothing to do is recorded unless that holds for all shapes."""
        result = tensor.contiguous()
        recorder = self.recorder
        if result is not tensor or not recorder.recording:
            return result
        fake = self._fake(tensor)
        if fake is None:
            return result
        from torch._prims_common import is_contiguous_or_false

        if not recorder._quiet(lambda: is_contiguous_or_false(fake)):
            name = recorder.name_of(tensor)
            fresh = f"v{len(recorder.real)}"
            recorder._bind(fresh, tensor, recorder._quiet(fake.contiguous))
            recorder.nodes.append(OpNode("aten.contiguous.default", (Ref(str(name)),), (), (fresh,), user_line()))
        return result


def as_tuples(tree: Any) -> Any:
    """Lists in an argument tree as tuples."""
    if isinstance(tree, (list, tuple)):
        return tuple(as_tuples(t) for t in tree)
    if isinstance(tree, slice):
        raise Refused("opaque_argument", "a slice object as an operator argument")
    return tree


def _guard_whole_slices(fake: torch.Tensor, index: Any) -> None:
    """torch leaves a slice out that takes all of a dimension; whether `x[:, :10]` does depends on the size."""
    items = index if isinstance(index, tuple) else (index,)
    used = sum(_width(i) for i in items if i is not Ellipsis)
    dim = 0
    for item in items:
        plain = isinstance(item, slice) and item.start in (None, 0) and item.step in (None, 1)
        if plain and type(item.stop) is int and item.stop >= 0:
            bool(fake.shape[dim] <= item.stop)
        dim += fake.ndim - used if item is Ellipsis else _width(item)


def _width(item: Any) -> int:
    """How many dimensions an index takes."""
    if item is None or isinstance(item, bool):
        return 0
    mask = isinstance(item, torch.Tensor) and item.dtype in (torch.bool, torch.uint8)
    return item.ndim if mask else 1


def storage_key(tensor: torch.Tensor) -> int:
    """Identifies the memory a tensor lives in."""
    return int(tensor.untyped_storage()._cdata)


def _draws_nothing(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator that may draw random numbers was told not to: no training, or a probability of 0."""
    for position, argument in enumerate(func._schema.arguments):
        given = args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
        if (argument.name == "train" and given is False) or (argument.name in ("dropout_p", "p") and given == 0.0):
            return True
    return False


def _unsupported(tensor: torch.Tensor) -> str | None:
    if type(tensor) not in _TENSOR_TYPES:
        return f"a tensor subclass {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return f"a tensor of layout {tensor.layout} that is not plain strided"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"a tensor on {tensor.device}"
    return None
