"""The dispatch mode that sees every operator of a recorded run, below autograd, and writes it down."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from fusion.capture.function_mode import ShapeMode
from fusion.capture.mutation import has_memory, mapped, storage_key, tensors_written, view_in_place
from fusion.capture.python.call_operands import CallOperands
from fusion.capture.python.object_reads import ObjectReads
from fusion.capture.python.opaque_calls import OpaqueCalls, as_tuples
from fusion.capture.shape_functions import SHAPES
from fusion.capture.symbolic_shapes import GuardError, has_unknown_size, hint, quiet_log
from fusion.capture.trace_state import TraceState
from fusion.capture.unsupported import TENSOR_TYPES, unsupported
from fusion.capture.user_frame import user_line
from fusion.faults import recording_code
from fusion.patterns import known_products
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import CALLED, kind_of
from fusion.patterns.ops.effects import draws
from fusion.refusal import Refused

# torch takes long to invent sizes for these, which are then not used.
_SIZED_BY_DATA = (
    torch.ops.aten.nonzero.default, torch.ops.aten.nonzero_numpy.default, torch.ops.aten.where.default,
    torch.ops.aten.masked_select.default,
)  # fmt: skip


_AFTERWARDS = "call the operator before or after the model, or keep its results dense and strided"


class ModeSwitched(Exception):
    """The forward left the mode it was called in: the recorded run is given up, and the call is made eagerly."""


class OperatorTracer(TorchDispatchMode):
    """The mode that sees every operator of a run, below autograd, and records it.

    Args:
        state: of the recorded run.
        operands: names what operators are given.
        calls: those made natively, inside of which nothing is recorded.
        reads: what was found inside objects, which such calls may write to.
        max_ops: operators that a recording may have.
    """

    def __init__(
        self, state: TraceState, operands: CallOperands, calls: OpaqueCalls, reads: ObjectReads, max_ops: int
    ) -> None:
        super().__init__()
        self.state = state
        self.operands = operands
        self.calls = calls
        self.reads = reads
        self._as_lifted: dict[int, str] = {}  # constants nobody wrote to yet, by their memory
        self._were_constants: list[torch.Tensor] = []
        self._outer: frozenset[int] | None = None  # memory of the parameters, once a step writes
        self._max_ops = max_ops
        self._inference = torch.is_inference_mode_enabled()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._dispatched(func, args, kwargs or {})
        if not self.state.paused:
            interrupts.deliver()
        return result

    def _dispatched(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.state.paused:
            if func._schema.is_mutable and (self.state.effects.in_native or self.reads.looked_up):
                self._note_native_writes(func, args, kwargs)  # a step may write to what it was given
            result = func(*args, **kwargs)  # the shadow's own calls, symbols and all
            if self.state.effects.in_native:
                self.state.effects.after_natively(args, kwargs, result)
            return result
        real_args, real_kwargs = mapped(hint, (args, kwargs))
        if threading.get_ident() != self.state.thread or func is torch.ops.aten.detach_.default:
            return func(*real_args, **real_kwargs)  # detach_ ends torch.tensor() and changes no data
        if self.state.recording and (torch.is_grad_enabled() or torch.is_inference_mode_enabled() != self._inference):
            remedy = "switch them around the call of the model instead"
            self.state.refuse(
                "active_mode", "the forward switches gradients or inference mode on or off inside", None, remedy
            )
            raise ModeSwitched("the run goes on below autograd, which would change what the switch is for")
        if self.state.recording and func is torch.ops.aten.lift_fresh.default and not self.state.is_known(args[0]):
            return self._lift(func, args)
        meaning = meaning_of(func)
        if meaning is not None and self.state.recording:
            problem = self.state.quiet(lambda: meaning.problem(real_args, real_kwargs))
            if problem is None:
                with self._again():
                    return meaning.decomposition(*args, **kwargs)
            self.state.refuse("inaccurate", problem)
        self.state.effects.before(func, real_args, real_kwargs)
        if self.state.recording and func._schema.is_mutable:
            self._keep_contents(func, args, kwargs)
        if self.state.recording:
            self.state.forget()
        result = known_products.call(func, real_args, real_kwargs)
        self.state.effects.after(real_args, real_kwargs, result)
        if not self.state.recording:
            return result
        try:
            self._record(func, args, kwargs, result)
        except Refused as refused:
            self.state.refusal = refused.refusal
        except GuardError as error:
            self.state.refuse("guard", str(error))
        except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode):
            self.state.refuse("data_read", f"the result's shape or value of {func} depends on tensor data")
        except Exception as error:
            self.state.refuse(recording_code(error), f"{func} could not be recorded: {type(error).__name__}: {error}")
        return result

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        """What a decomposition calls is recorded like the rest: torch leaves the modes while they handle a call."""
        reading = any(isinstance(mode, ShapeMode) for mode in _get_current_function_mode_stack())
        with contextlib.nullcontext() if reading else ShapeMode(self.state, self.reads), self:
            yield

    def _lift(self, func: Any, args: Any) -> torch.Tensor:
        """A tensor made from Python data: a constant of the recording."""
        constant: torch.Tensor = func(*args)
        name = f"c{len(self.state.values.constants)}"
        self.state.values.constants[name] = constant
        self._as_lifted[storage_key(constant)] = name
        self.state.effects.made.add(storage_key(constant))
        self.state.bind(name, constant, self.state.quiet(lambda: self.state.fake_values.static(constant)))
        return constant

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if len(self.state.nodes) >= self._max_ops:
            raise Refused("too_large", f"more than max_graph_size={self._max_ops} operators are called", user_line())
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            raise Refused("data_read", "a value of a tensor decides what Python does next", user_line())
        if draws(func, args, kwargs):
            self.state.effects.after_draw()
        graph_args, graph_kwargs = mapped(self.operands.leaf, (args, kwargs))
        results = results_of(func, result)
        targets = {id(t): self.state.known(t) for t in tensors_written(func, args, kwargs)}
        view = view_in_place(func)
        if view is not None and not all(map(self.state.effects.made_here, tensors_written(func, args, kwargs))):
            raise Refused("outer_write", f"{func} changes the shape of a tensor it was given", user_line())
        before = (
            {n: self.state.quiet(self.state.values.fakes[n].detach) for n in targets.values()}
            if view is not None
            else {}
        )
        fakes = self._shadows(func, args, kwargs, len(results))[: len(results)]
        self.state.values.fakes.update(before)
        if view is None:
            self.state.effects.writes += [
                (len(self.state.nodes), self.state.effects.memory[name]) for name in targets.values()
            ]
        given = self._input_names(args, kwargs)
        operands = [self.state.values.fakes[name] for name in sorted(given)]
        names = [self._result(func, r, f, targets, operands) for r, f in zip(results, fakes, strict=True)]
        if names and not func._schema.is_mutable and all(name in given for name in names):
            return  # handed its operand back, for every shape: nothing happened
        self.state.nodes.append(
            OpNode(
                view or str(func),
                as_tuples(graph_args),
                tuple(sorted((k, as_tuples(v)) for k, v in graph_kwargs.items())),
                tuple(names),
                user_line(),
            )
        )

    def _shadows(self, func: Any, args: Any, kwargs: Any, count: int) -> Sequence[Any]:
        """The results of an operator on the shadows; None for each where torch cannot tell their shapes beforehand.

        That is so where the shape depends on data (nonzero), and where torch's shape function is stricter than the
        kernel of this device. An operator the compiler knows always has a shape function.
        """
        if func in _SIZED_BY_DATA:
            return (None,) * count
        fake_args, fake_kwargs = mapped(
            lambda a: (
                self.state.values.fakes[self.state.known(a)]
                if isinstance(a, torch.Tensor)
                else self.state.fake_values.settled(a)
            ),
            (args, kwargs),
        )

        def call() -> Any:
            with self.state.fake_values.mode, quiet_log:
                return SHAPES.get(func, func)(*fake_args, **fake_kwargs)

        def decomposed() -> Any:
            with enable_python_dispatcher():
                return call()

        def careful(attempt: Callable[[], Any]) -> Any:
            with self.state.fake_values.careful():
                return attempt()

        for attempt in (lambda: careful(call), lambda: careful(decomposed), call, decomposed):
            try:
                return [None if has_unknown_size(f) else f for f in _results(self.state.quiet(attempt))]
            except (DynamicOutputShapeException, DataDependentOutputException):
                break
            except Exception:
                continue
        if kind_of(str(func)) not in CALLED:
            return _results(self.state.quiet(decomposed))  # which says what is wrong
        return (None,) * count

    def _input_names(self, args: Any, kwargs: Any) -> set[str]:
        return {
            self.state.values.names[id(a)] for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)
        }

    def _result(self, func: Any, real: Any, fake: Any, targets: Mapping[int, str], operands: Sequence[Any]) -> str:
        if not isinstance(real, torch.Tensor):
            raise Refused("data_read", f"an operator returned a Python {type(real).__name__}", user_line())
        if id(real) in targets:
            return self._written(real, self.state.values.fakes[targets[id(real)]] if fake is None else fake)
        if self.state.values.names.get(id(real)) is not None:
            return self.state.values.names[id(real)]
        problem = unsupported(real)
        if problem:
            raise Refused("unsupported_layout", f"an operator returned {problem}", user_line(), _AFTERWARDS)
        name = f"v{len(self.state.values.real)}"
        shape = () if fake is None else tuple(hint(d) for d in fake.shape)
        if fake is not None and (shape != tuple(real.shape) or fake.dtype != real.dtype):
            raise Refused("shape_mismatch", f"expected {shape}, the operator gave {tuple(real.shape)}", user_line())
        if fake is not None and real.numel() and tuple(map(hint, fake.stride())) != real.stride():
            fake = self.state.quiet(lambda: self.state.fake_values.laid_out(fake, real, operands))
            if fake is None and kind_of(str(func)) not in CALLED:
                told = f"{func} lays its result out as {real.stride()}, otherwise than its shape function says"
                raise Refused("shape_mismatch", told, user_line())
        if fake is None:
            self.state.values.opaque.append(name)
            return self.state.bind(name, real, self.state.quiet(lambda: self.state.fake_values.of_input(name, real)))
        if self.state.values.forgotten is not None and self.state.effects.made_here(real):
            self.state.values.forgotten.watch(name, real)
        return self.state.bind(name, real, fake)

    def _note_native_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """A step, or another native call, writes to memory that the recording knows."""
        for tensor in tensors_written(func, args, kwargs):
            if type(tensor) not in TENSOR_TYPES:
                continue
            self.reads.before_native_write(tensor)
            self._keep_constant(tensor)
            if self.state.effects.in_native and not self.state.effects.knows(tensor):
                self.reads.unknown_writes.append(len(self.state.nodes))
            key = storage_key(tensor)
            self.calls.writes.written.add(key)
            if (self.calls.in_step or key in self.calls.writes.lent) and self.state.refusal is None:
                if self._outer is None:
                    self._outer = frozenset(
                        storage_key(t) for _, t in self.state.parameter_tensors.values() if has_memory(t)
                    )
                self.state.effects.native_write(len(self.state.nodes), tensor, self._outer)

    def _written(self, real: torch.Tensor, fake: torch.Tensor) -> str:
        """A new name for a tensor that an operator wrote to and handed back."""
        if tuple(map(hint, fake.shape)) != tuple(real.shape):
            raise Refused("outer_write", "an operator resizes the tensor it writes to", user_line())
        return self.state.bind(f"v{len(self.state.values.real)}", real, fake)

    def _keep_contents(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keeps what values hold that are about to be overwritten: a kernel that reads them is proved on it."""
        renames = any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns)
        for tensor in tensors_written(func, args, kwargs):
            self._keep_constant(tensor)
            name = self.state.values.names.get(id(tensor))
            if (
                renames
                and name is not None
                and name not in self.state.values.constants
                and self.state.effects.made_here(tensor)
            ):
                self.state.values.real[name] = self.state.quiet(tensor.clone)

    def _keep_constant(self, tensor: torch.Tensor) -> None:
        """Keeps a constant, of which a tensor is about to be written to that shares its memory: runs start from it."""
        name = self._as_lifted.pop(storage_key(tensor), None)
        if name is not None:
            constant = self.state.values.constants[name]
            self._were_constants.append(constant)  # alive, so that its id stays its own
            self.state.values.constants[name] = self.state.values.real[name] = self.state.quiet(constant.clone)


def _results(made: Any) -> Sequence[Any]:
    """What an operator returned, as a sequence."""
    return made if isinstance(made, (tuple, list)) else (made,)


def results_of(func: Any, result: Any) -> Sequence[Any]:
    """What an operator returned, without what it left undefined at the end: weights that nobody asked attention for."""
    results = _results(result) if func._schema.returns else ()
    defined = [k for k, r in enumerate(results) if r is not None]
    return results[: defined[-1] + 1] if defined else ()
