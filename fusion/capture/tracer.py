"""The recorder: runs a scope once on real tensors and writes down what torch is asked to do.

A dispatch mode sees every operator below autograd; a function mode answers size questions with symbols and notices
reads of tensor data. Once something cannot be recorded, the recorder notes the first such thing as a Refusal and lets
the rest of the run pass by untouched: the caller always gets the eager result.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.capture import interrupts
from fusion.capture.decompositions import meaning_of
from fusion.capture.mutation import Effects, has_memory, mapped, storage_key, tensors_written, view_in_place
from fusion.capture.python.argument_snapshot import Given
from fusion.capture.python.argument_tree import Atom
from fusion.capture.python.opaque_calls import NativeCalls, as_tuples
from fusion.capture.released_memory import Forgotten, without_contents
from fusion.capture.symbolic_shapes import SHAPES, GuardError, Shadow, has_unknown_size, hint, quiet_log
from fusion.capture.user_frame import user_line
from fusion.faults import recording_code
from fusion.patterns.leaves import Leaf, Path, Ref, path_text
from fusion.patterns.nodes import IslandNode, OpNode
from fusion.patterns.ops import Kind, kind_of
from fusion.patterns.ops.effects import draws
from fusion.patterns.recorded import GraphInput
from fusion.refusal import Refusal, Refused
from fusion.runtime.rollback import identity

_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


# torch takes long to invent sizes for these, which are then not used.
_SIZED_BY_DATA = (
    torch.ops.aten.nonzero.default, torch.ops.aten.nonzero_numpy.default, torch.ops.aten.where.default,
    torch.ops.aten.masked_select.default,
)  # fmt: skip


_AFTERWARDS = "call the operator before or after the model, or keep its results dense and strided"


class ModeSwitched(Exception):
    """The forward left the mode it was called in: the recorded run is given up, and the call is made eagerly."""


class Recorder(NativeCalls, TorchDispatchMode):
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
        steps: Mapping[str, torch.nn.Module] | None = None,
        attributes: Mapping[int, tuple[str, Any]] | None = None,
        watched: Iterable[torch.nn.Module] | None = None,
        generators: Sequence[torch.Generator] = (),
        adopt_inputs: bool = False,
        max_ops: int = 4096,
        varying: Iterable[tuple[str, int]] = (),
        numbers: bool = False,
        forgets: bool = False,
    ) -> None:
        super().__init__()
        self.shadow = Shadow(varying)
        self._numbers = numbers
        self.nodes: list[OpNode | IslandNode] = []
        self.refusal: Refusal | None = None
        self.real: dict[str, torch.Tensor] = {}
        self.fakes: dict[str, torch.Tensor] = {}
        self.inputs: list[GraphInput] = []
        self.aliased_inputs: list[tuple[Path, Path]] = []
        self.parameters: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self._as_lifted: dict[int, str] = {}  # constants nobody wrote to yet, by their memory
        self._were_constants: list[torch.Tensor] = []
        self.containers: dict[int, Path] = {}  # of the arguments, by id
        self.given = Given({})
        self.opaque: list[str] = []  # results whose shape is known only once they are there
        self.effects = Effects(generators)
        self._generators = {identity(g): g for g in generators}
        self.set_up_native_calls(objects, steps or {}, attributes or {}, watched)
        self._names: dict[int, str] = {}
        self._forgotten = Forgotten(self.real, self._names) if forgets else None
        self._outer: frozenset[int] | None = None  # memory of the parameters, once a step writes
        self._parameters = parameters
        self._adopt_inputs = adopt_inputs
        self._max_ops = max_ops
        self._paused = 0
        self._thread = threading.get_ident()
        self._inference = torch.is_inference_mode_enabled()
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
        problem = unsupported(tensor)
        if problem:
            self.refuse("unsupported_layout", f"the argument {path_text(path)} is {problem}")
            return
        self.inputs.append(GraphInput(name, path))
        fixed, sized = self.shadow.static, self.shadow.of_input
        self._bind(name, tensor, self._quiet(lambda: fixed(tensor) if self._numbers else sized(name, tensor)))

    def _bind(self, name: str, tensor: torch.Tensor, fake: torch.Tensor) -> str:
        self.real[name] = tensor
        self.fakes[name] = fake
        self._names[id(tensor)] = name
        self.effects.memory[name] = storage_key(tensor)
        return name

    def made(self, name: str) -> bool:
        """Whether a value is a result, rather than given, found or a constant."""
        return name not in self.parameters and name not in self.constants and name not in {i.name for i in self.inputs}

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The value name of a tensor that is known."""
        return self._names.get(id(tensor))

    def _is_known(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a value of the recording, or may become one."""
        return id(tensor) in self._names or id(tensor) in self._parameters

    def _known(self, tensor: torch.Tensor) -> str:
        name = self._names.get(id(tensor))
        if name is not None:
            return name
        if id(tensor) in self._parameters:
            path, _ = self._parameters[id(tensor)]
            problem = unsupported(tensor)
            if problem:
                raise Refused("foreign_weight", f"{path} is {problem}", user_line())
            name = f"p{len(self.parameters)}"
            self.parameters[name] = path
            return self._bind(name, tensor, self._quiet(lambda: self.shadow.static(tensor)))
        if self._adopt_inputs:
            name = f"x{len(self.inputs)}"
            self.add_input(name, (name,), tensor)
            return name
        problem = unsupported(tensor)
        if problem:
            raise Refused("foreign_weight", f"{problem}, which no module of the scope holds, is used", user_line())
        what = f"a tensor {tuple(tensor.shape)} that is no argument, parameter, buffer or result is used"
        raise Refused("unknown_tensor", what, user_line())

    def _quiet(self, build: Callable[[], Any]) -> Any:
        self._paused += 1
        try:
            return build()
        finally:
            self._paused -= 1

    def refuse(self, code: str, sentence: str, origin: str | None = None, remedy: str = "") -> None:
        """Notes why the run cannot be replayed; the first reason stands.

        Args:
            code: one of `CODES`.
            sentence: what was met.
            origin: the user's line; None for the one that is running.
            remedy: what to do about it; "" for what the code says.
        """
        if self.refusal is None:
            self.refusal = Refusal(code, sentence, user_line() if origin is None else origin, remedy)

    def notice_fixed_size(self) -> None:
        """Refuses the recording of a scope that has turned into a number what is another one in other calls."""
        if self.shadow.env.fixed is not None:
            size, origin = self.shadow.env.fixed
            self.refuse("fixed_size", f"the size {size}, which varies between calls, is needed as a number", origin)

    @property
    def recording(self) -> bool:
        """Whether this thread is being recorded just now."""
        return not self._paused and self.refusal is None and threading.get_ident() == self._thread

    # ---- operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._dispatched(func, args, kwargs or {})
        if not self._paused:
            interrupts.deliver()
        return result

    def _dispatched(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._paused:
            if func._schema.is_mutable and (self.in_native or self._looked_up):
                self._note_native_writes(func, args, kwargs)  # a step may write to what it was given
            result = func(*args, **kwargs)  # the shadow's own calls, symbols and all
            if self.in_native:
                self.effects.after_natively(args, kwargs, result)
            return result
        real_args, real_kwargs = mapped(hint, (args, kwargs))
        if threading.get_ident() != self._thread or func is torch.ops.aten.detach_.default:
            return func(*real_args, **real_kwargs)  # detach_ ends torch.tensor() and changes no data
        if self.recording and (torch.is_grad_enabled() or torch.is_inference_mode_enabled() != self._inference):
            remedy = "switch them around the call of the model instead"
            self.refuse(
                "active_mode", "the forward switches gradients or inference mode on or off inside", None, remedy
            )
            raise ModeSwitched("the run goes on below autograd, which would change what the switch is for")
        if self.recording and func is torch.ops.aten.lift_fresh.default and not self._is_known(args[0]):
            return self._lift(func, args)
        meaning = meaning_of(func)
        if meaning is not None and self.recording:
            problem = self._quiet(lambda: meaning.problem(real_args, real_kwargs))
            if problem is None:
                with self._again():
                    return meaning.decomposition(*args, **kwargs)
            self.refuse("inaccurate", problem)
        self.effects.before(func, real_args, real_kwargs)
        if self.recording and func._schema.is_mutable:
            self._keep_contents(func, args, kwargs)
        if self.recording:
            self.forget()
        result = func(*real_args, **real_kwargs)
        self.effects.after(real_args, real_kwargs, result)
        if not self.recording:
            return result
        try:
            self._record(func, args, kwargs, result)
        except Refused as refused:
            self.refusal = refused.refusal
        except GuardError as error:
            self.refuse("guard", str(error))
        except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode):
            self.refuse("data_read", f"the result's shape or value of {func} depends on tensor data")
        except Exception as error:
            self.refuse(recording_code(error), f"{func} could not be recorded: {type(error).__name__}: {error}")
        return result

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        """What a decomposition calls is recorded like the rest: torch leaves the modes while they handle a call."""
        from fusion.capture.function_mode import SizeReads

        reading = any(isinstance(mode, SizeReads) for mode in _get_current_function_mode_stack())
        with contextlib.nullcontext() if reading else SizeReads(self), self:
            yield

    def forget(self) -> None:
        """Lets go of the memory of large values that nobody else holds by now."""
        if self._forgotten is not None:
            self._quiet(self._forgotten.sweep)

    def give_up(self) -> None:
        """Lets go of all that the run has made, so that it can be made again without a recorder."""
        kept = {*(i.name for i in self.inputs), *self.parameters, *self.constants}
        for name in self.real.keys() - kept:
            self.real[name] = without_contents(self.real[name])
        self._names.clear()

    def _lift(self, func: Any, args: Any) -> torch.Tensor:
        """A tensor made from Python data: a constant of the recording."""
        constant: torch.Tensor = func(*args)
        name = f"c{len(self.constants)}"
        self.constants[name] = constant
        self._as_lifted[storage_key(constant)] = name
        self.effects.made.add(storage_key(constant))
        self._bind(name, constant, self._quiet(lambda: self.shadow.static(constant)))
        return constant

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if len(self.nodes) >= self._max_ops:
            raise Refused("too_large", f"more than max_graph_size={self._max_ops} operators are called", user_line())
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            raise Refused("data_read", "a value of a tensor decides what Python does next", user_line())
        if draws(func, args, kwargs):
            self.effects.after_draw()
        graph_args, graph_kwargs = mapped(self._leaf, (args, kwargs))
        results = results_of(func, result)
        targets = {id(t): self._known(t) for t in tensors_written(func, args, kwargs)}
        view = view_in_place(func)
        if view is not None and not all(map(self.effects.made_here, tensors_written(func, args, kwargs))):
            raise Refused("outer_write", f"{func} changes the shape of a tensor it was given", user_line())
        before = {n: self._quiet(self.fakes[n].detach) for n in targets.values()} if view is not None else {}
        fakes = self._shadows(func, args, kwargs, len(results))[: len(results)]
        self.fakes.update(before)
        if view is None:
            self.effects.writes += [(len(self.nodes), self.effects.memory[name]) for name in targets.values()]
        given = self._input_names(args, kwargs)
        operands = [self.fakes[name] for name in sorted(given)]
        names = [self._result(func, r, f, targets, operands) for r, f in zip(results, fakes, strict=True)]
        if names and not func._schema.is_mutable and all(name in given for name in names):
            return  # handed its operand back, for every shape: nothing happened
        self.nodes.append(
            OpNode(
                view or str(func),
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
            return self.shadow.settled(leaf)
        if isinstance(leaf, (*Atom, torch.SymInt)):
            return leaf
        if isinstance(leaf, torch.Generator):  # torch hands it on as another object
            leaf = self._generators.get(identity(leaf), leaf)
        known = self.object_leaf(leaf)
        if known is not None:
            return known
        if isinstance(leaf, torch.ScriptObject):
            raise Refused("foreign_weight", "an operator is given packed weights", user_line())
        if id(leaf) in self.containers:
            what = f"a module that is a scope of its own is given a {type(leaf).__name__}, which it may change"
            raise Refused("opaque_argument", what, user_line(), "pass its items to the module, or a dict of them")
        what = f"an operator or module is given a {type(leaf).__name__} that a plan cannot find again"
        raise Refused("opaque_argument", what, user_line(), "make it an argument or an attribute of the module")

    def _shadows(self, func: Any, args: Any, kwargs: Any, count: int) -> Sequence[Any]:
        """The results of an operator on the shadows; None for each where torch cannot tell their shapes beforehand.

        That is so where the shape depends on data (nonzero), and where torch's shape function is stricter than the
        kernel of this device. An operator the compiler knows always has a shape function.
        """
        if func in _SIZED_BY_DATA:
            return (None,) * count
        fake_args, fake_kwargs = mapped(
            lambda a: self.fakes[self._known(a)] if isinstance(a, torch.Tensor) else self.shadow.settled(a),
            (args, kwargs),
        )

        def call() -> Any:
            with self.shadow.mode, quiet_log:
                return SHAPES.get(func, func)(*fake_args, **fake_kwargs)

        def decomposed() -> Any:
            with enable_python_dispatcher():
                return call()

        def careful(attempt: Callable[[], Any]) -> Any:
            with self.shadow.careful():
                return attempt()

        for attempt in (lambda: careful(call), lambda: careful(decomposed), call, decomposed):
            try:
                return [None if has_unknown_size(f) else f for f in _results(self._quiet(attempt))]
            except (DynamicOutputShapeException, DataDependentOutputException):
                break
            except Exception:
                continue
        if kind_of(str(func)) is not Kind.LIBRARY:
            return _results(self._quiet(decomposed))  # which says what is wrong
        return (None,) * count

    def _input_names(self, args: Any, kwargs: Any) -> set[str]:
        return {self._names[id(a)] for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}

    def _result(self, func: Any, real: Any, fake: Any, targets: Mapping[int, str], operands: Sequence[Any]) -> str:
        if not isinstance(real, torch.Tensor):
            raise Refused("data_read", f"an operator returned a Python {type(real).__name__}", user_line())
        if id(real) in targets:
            return self._written(real, self.fakes[targets[id(real)]] if fake is None else fake)
        if self._names.get(id(real)) is not None:
            return self._names[id(real)]
        problem = unsupported(real)
        if problem:
            raise Refused("unsupported_layout", f"an operator returned {problem}", user_line(), _AFTERWARDS)
        name = f"v{len(self.real)}"
        shape = () if fake is None else tuple(hint(d) for d in fake.shape)
        if fake is not None and (shape != tuple(real.shape) or fake.dtype != real.dtype):
            raise Refused("shape_mismatch", f"expected {shape}, the operator gave {tuple(real.shape)}", user_line())
        if fake is not None and real.numel() and tuple(map(hint, fake.stride())) != real.stride():
            fake = self._quiet(lambda: self.shadow.laid_out(fake, real, operands))
            if fake is None and kind_of(str(func)) is not Kind.LIBRARY:
                told = f"{func} lays its result out as {real.stride()}, otherwise than its shape function says"
                raise Refused("shape_mismatch", told, user_line())
        if fake is None:
            self.opaque.append(name)
            return self._bind(name, real, self._quiet(lambda: self.shadow.of_input(name, real)))
        if self._forgotten is not None and self.effects.made_here(real):
            self._forgotten.watch(name, real)
        return self._bind(name, real, fake)

    def _note_native_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """A step, or another native call, writes to memory that the recording knows."""
        for tensor in tensors_written(func, args, kwargs):
            if type(tensor) not in _TENSOR_TYPES:
                continue
            self.before_native_write(tensor)
            self._keep_constant(tensor)
            if self.in_native and not self.effects.knows(tensor):
                self.unknown_writes.append(len(self.nodes))
            key = storage_key(tensor)
            self.written_natively.add(key)
            if (self.in_step or key in self.lent) and self.refusal is None:
                if self._outer is None:
                    self._outer = frozenset(storage_key(t) for _, t in self._parameters.values() if has_memory(t))
                self.effects.native_write(len(self.nodes), tensor, self._outer)

    def _written(self, real: torch.Tensor, fake: torch.Tensor) -> str:
        """A new name for a tensor that an operator wrote to and handed back."""
        if tuple(map(hint, fake.shape)) != tuple(real.shape):
            raise Refused("outer_write", "an operator resizes the tensor it writes to", user_line())
        return self._bind(f"v{len(self.real)}", real, fake)

    def _keep_contents(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keeps what values hold that are about to be overwritten: a kernel that reads them is proved on it."""
        renames = any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns)
        for tensor in tensors_written(func, args, kwargs):
            self._keep_constant(tensor)
            name = self._names.get(id(tensor))
            if renames and name is not None and name not in self.constants and self.effects.made_here(tensor):
                self.real[name] = self._quiet(tensor.clone)

    def _keep_constant(self, tensor: torch.Tensor) -> None:
        """Keeps a constant, of which a tensor is about to be written to that shares its memory: runs start from it."""
        name = self._as_lifted.pop(storage_key(tensor), None)
        if name is not None:
            constant = self.constants[name]
            self._were_constants.append(constant)  # alive, so that its id stays its own
            self.constants[name] = self.real[name] = self._quiet(constant.clone)


def _results(made: Any) -> Sequence[Any]:
    """What an operator returned, as a sequence."""
    return made if isinstance(made, (tuple, list)) else (made,)


def results_of(func: Any, result: Any) -> Sequence[Any]:
    """What an operator returned, without what it left undefined at the end: weights that nobody asked attention for."""
    results = _results(result) if func._schema.returns else ()
    defined = [k for k, r in enumerate(results) if r is not None]
    return results[: defined[-1] + 1] if defined else ()


def unsupported(tensor: torch.Tensor) -> str | None:
    """What about a tensor the recorder does not cover, in words, or None."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor of a functorch transformation"
    if type(tensor) not in _TENSOR_TYPES:
        return f"a tensor subclass {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return f"a tensor of layout {tensor.layout} that is not plain strided"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"a tensor on {tensor.device}"
    if tensor.is_nested:
        return "a nested tensor"
    if not has_memory(tensor):
        return "a tensor inside a torch.func transform"
    return None


def holders(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules at and below `module`, by path, that hold weights which only their own library computes with."""
    for path, child in module.named_modules():
        held = (*child._parameters.values(), *child._buffers.values())
        if any(tensor is not None and unsupported(tensor) for tensor in held):
            yield path, child
