"""What the dispatch mode cannot see: questions about sizes, reads of tensor data, calls that did nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily

from fusion.capture import interrupts
from fusion.capture.mutation import mapped
from fusion.capture.python.container_proxy import COPY, is_looked_into
from fusion.capture.python.object_reads import ObjectReads
from fusion.capture.symbolic_shapes import hint
from fusion.capture.trace_state import TraceState
from fusion.capture.unsupported import unsupported
from fusion.capture.user_frame import user_line
from fusion.patterns.forks import changes
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.refusal import Refused

# A getter's `__get__` is what torch hands to a function mode; type checkers see the attribute's type instead.
DATA_READS = {
    torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__index__, torch.Tensor.__float__,
    torch.Tensor.tolist, torch.Tensor.__contains__, torch.Tensor.__format__, torch.Tensor.__repr__,
    torch.Tensor.data_ptr, torch.Tensor.storage_offset, torch.Tensor.untyped_storage, torch.Tensor.storage,
    torch.Tensor.nbytes.__get__,  # type: ignore[attr-defined]  # a descriptor, typed as its value
    torch.Tensor.__complex__, torch.equal, torch.allclose, torch.is_nonzero,
}  # fmt: skip
# Reads of one value: a condition of the plan.
_VALUE_READS = {
    torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__index__, torch.Tensor.__float__,
    torch.Tensor.__contains__,
}  # fmt: skip
NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__, torch.from_numpy, torch.Tensor.__dlpack__}
_SIZE_READS = {
    torch.Tensor.size, torch.Tensor.numel, torch.Tensor.stride, torch.Tensor.nelement, torch.numel,
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]  # a descriptor, typed as its value
}  # fmt: skip
LAYOUT_READS = {torch.Tensor.is_contiguous}
_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class HiddenFunctionMode(TorchFunctionMode):
    """A function mode that torch's own Python code does not ask about.

    Some of its modules take another path where there is a mode, and a function of `torch.nn.functional` would be handed
    to the mode whole, to be run without it: what such a function asks of sizes would not be seen. Torch's answers are
    replaced for the whole process, but only for whoever has such a mode innermost they are others.
    """

    def __enter__(self) -> Any:
        self._asked = [(module, name, getattr(module, name)) for module in _ASKING for name in _QUESTIONS]
        self._changes = changes(self._put_back)
        self._changes.__enter__()
        for module, name, asked in self._asked:
            setattr(module, name, functools.partial(_without_unseen, asked))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._changes.__exit__(None, None, None)

    def _put_back(self) -> None:
        for module, name, asked in self._asked:
            setattr(module, name, asked)


_ASKING = (torch.overrides, torch.nn.functional, torch.functional)
_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _without_unseen(asked: Callable[..., bool], *arguments: Any) -> bool:
    """What torch answers where the innermost mode is none that is not to be seen."""
    modes = _get_current_function_mode_stack()
    if not modes or not isinstance(modes[-1], HiddenFunctionMode):
        return asked(*arguments)
    with _pop_mode_temporarily():
        return _without_unseen(asked, *arguments)


class ShapeMode(HiddenFunctionMode):
    """Answers `.shape` and its kin with the shadow's symbols, and notices reads of tensor data."""

    def __init__(self, state: TraceState, reads: ObjectReads) -> None:
        super().__init__()
        self.state = state
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._answered(func, args, kwargs or {})
        if not self.state.paused:
            interrupts.deliver()
        return result

    def _answered(self, func: Any, args: Any, kwargs: Any) -> Any:
        state = self.state
        if not state.recording:
            if state.effects.in_native:  # it may find a size where the forward has put it
                args, kwargs = mapped(hint, (args, kwargs))
            return func(*args, **kwargs)
        if any(map(is_looked_into, (*args, *kwargs.values()))):
            state.refuse("opaque_argument", f"{func.__name__} is given a list that an object holds", None, COPY)
            return func(*args, **kwargs)
        foreign = next((a for a in (*args, *kwargs.values()) if self._is_foreign(a)), None)
        if foreign is not None:
            if func.__name__ != "__get__":  # asking for a dtype or device is no computation
                self._fake(foreign)  # which refuses it
            return func(*args, **kwargs)
        if args and id(args[0]) in state.parameter_tensors:
            self._fake(args[0])  # a plan guards what the forward asked about, such as the dtype, used or not
        if func in _VALUE_READS and not kwargs and all(isinstance(a, (bool, int, float)) for a in args[1:]):
            return self._value_read(func, args)
        if func in _SIZE_READS:
            fake = self._fake(args[0])
            if fake is not None:
                return state.quiet(lambda: func(fake, *args[1:], **kwargs))
        elif func is torch.Tensor.__len__ and args[0].ndim:
            fake = self._fake(args[0])
            if fake is not None:
                return int(fake.shape[0])  # len() must be a number: the size is fixed by a guard
        elif func is torch.Tensor.contiguous and len(args) == 1 and not kwargs:
            return self._contiguous(args[0])
        elif func in _INDEXING:
            fake = self._fake(args[0])
            if fake is not None:
                state.quiet(lambda: _guard_whole_slices(fake, args[1]))
        elif func in DATA_READS:
            state.refuse("data_read", f"{func.__name__} reads tensor data in Python")
        elif func in NUMPY:
            state.refuse("numpy", f"{func.__name__} leaves torch")
        elif func in LAYOUT_READS:
            return self._layout(func, args, kwargs)
        return func(*args, **kwargs)

    def _is_foreign(self, value: Any) -> bool:
        """Whether a value is a weight that only its own library computes with."""
        return id(value) in self.state.parameter_tensors and unsupported(value) is not None

    def _fake(self, tensor: Any) -> torch.Tensor | None:
        try:
            return self.state.values.fakes[self.state.known(tensor)]
        except Refused as refused:
            self.state.refusal = self.state.refusal or refused.refusal
            return None

    def _value_read(self, func: Any, args: Any) -> Any:
        """A read of one value. Whether a number is among a tensor's is computed by operators, which may fuse."""
        state = self.state
        if func is torch.Tensor.__contains__ and len(args) == 2:
            found = (args[0] == args[1]).any()
            if state.recording:
                return self.reads.on_data_read(found, "__bool__", state.quiet(found.__bool__))
        value = state.quiet(lambda: func(*args))
        return self.reads.on_data_read(args[0], func.__name__, value)

    def _layout(self, func: Any, args: Any, kwargs: Any) -> Any:
        fake = self._fake(args[0])
        if fake is not None and func is torch.Tensor.is_contiguous:
            self.state.quiet(lambda: func(fake, *args[1:], **kwargs))  # leaves its guards
        return func(*args, **kwargs)

    def _contiguous(self, tensor: torch.Tensor) -> torch.Tensor:
        """`contiguous()` that had nothing to do is recorded unless that holds for all shapes."""
        result = tensor.contiguous()
        state = self.state
        if result is not tensor or not state.recording:
            return result
        fake = self._fake(tensor)
        if fake is None:
            return result
        from torch._prims_common import is_contiguous_or_false

        if not state.quiet(lambda: is_contiguous_or_false(fake)):
            name = state.name_of(tensor)
            fresh = f"v{len(state.values.real)}"
            state.effects.elided.add(fresh)
            state.bind(fresh, tensor, state.quiet(fake.contiguous))
            state.nodes.append(OpNode("aten.contiguous.default", (Ref(str(name)),), (), (fresh,), user_line()))
        return result


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
