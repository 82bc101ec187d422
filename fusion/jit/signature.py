"""A callable's signature, and the functions that stand in for it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from fusion.capture.torch_modes import in_other_mode
from fusion.integrations.compile import opaque
from fusion.jit.bound_call import BoundCall
from fusion.patterns.source import define, renamed
from fusion.runtime.plan import MISS

Rest = tuple[Callable[..., bool], Callable[..., Any], Callable[..., Any]]  # whether a call rests; caller; callable


def _stars(parameter: inspect.Parameter) -> str:
    """What precedes a parameter's name in source."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return "*"
    return "**" if parameter.kind is parameter.VAR_KEYWORD else ""


# How a code object orders parameters: `*args` comes after those that are given by keyword only.
_ORDER = {
    inspect.Parameter.POSITIONAL_ONLY: 0,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: 0,
    inspect.Parameter.KEYWORD_ONLY: 1,
    inspect.Parameter.VAR_POSITIONAL: 2,
    inspect.Parameter.VAR_KEYWORD: 3,
}


def _has_keyword_default(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty


class Signature:
    """A callable's parameters, and functions written with the same signature."""

    def __init__(self, call: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(call).parameters.values())
        self.parameters = parameters
        self.names = tuple(p.name for p in parameters)

    def bind(self, arguments: Sequence[Any]) -> BoundCall:
        """A call with arguments in signature order."""
        return BoundCall(self.names, arguments)

    def invoke(self, call: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Calls with arguments in signature order, as users write calls.

        What equals its default is left out, and what has one goes by name: a decorator that shows the signature of what
        it wraps may itself look for such arguments among the keywords.
        """
        given = list(zip(self.parameters, arguments, strict=True))
        stars = any(p.kind is p.VAR_POSITIONAL and value for p, value in given)
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for p, value in given:
            if p.kind is p.VAR_POSITIONAL:
                positional += value
            elif p.kind is p.VAR_KEYWORD:
                named |= value
            elif p.kind is not p.KEYWORD_ONLY and (stars or p.kind is p.POSITIONAL_ONLY or p.default is p.empty):
                positional.append(value)
            elif value is not p.default:
                named[p.name] = value
        return call(*positional, **named)

    def caller(self) -> Callable[..., Any]:
        """`invoke` with the arguments one by one, written for this signature: it takes a fifth of the time."""
        if any(p.kind is p.VAR_POSITIONAL for p in self.parameters):
            return lambda call, *arguments: self.invoke(call, arguments)
        names: dict[str, Any] = {}
        placed: list[str] = []
        lines: list[str] = []
        more: list[str] = []
        for i, p in enumerate(self.parameters):
            if p.kind is p.VAR_KEYWORD:
                more = [f"**a{i}"]
            elif p.kind is not p.KEYWORD_ONLY and (p.kind is p.POSITIONAL_ONLY or p.default is p.empty):
                placed.append(f"a{i}")
            else:
                names |= {f"_f_name{i}": p.name, f"_f_default{i}": p.default}
                lines += [f"    if a{i} is not _f_default{i}:", f"        named[_f_name{i}] = a{i}"]
        given = ", ".join(f"a{i}" for i in range(len(self.parameters)))
        if lines:
            lines, more = ["    named = {}", *lines], ["**named", *more]
        head, call = ", ".join(filter(None, ["call", given])), ", ".join([*placed, *more])
        text = [f"def caller({head}):", *lines, f"    return call({call})"]
        return define("\n".join(text), "caller", names, "<fusion caller>")

    def entry(
        self,
        rest: list[Rest],
        plans: list[Callable[..., Any]],
        counter: list[int],
        slow: Callable[..., Any],
        bound: Any = None,
    ) -> Callable[..., Any]:
        """The function that stands in for the callable: what rests, the mode checks, the plans, the slow path.

        It is a method of `bound`, where that is given, which it takes as its first argument and does not use: who
        wraps a forward, or binds it to another object, takes the function out of the method first.

        Whoever makes it puts the snapshot into its globals as `_f_unchanged`; no plan is tried before.
        """
        names: dict[str, Any] = {
            "_f_rest": rest,
            "_f_plans": plans,
            "_f_counter": counter,
            "_f_slow": slow,
            "_f_miss": MISS,
            "_f_unchanged": bool,  # False until a snapshot is put in: another thread may call before that
            "_f_grad": torch.is_grad_enabled,
            "_f_dispatch": torch._C._len_torch_dispatch_stack,
            "_f_function": torch._C._len_torch_function_stack,
            "_f_other": in_other_mode,
            "_f_autocast": torch._C._is_any_autocast_enabled,
            "_f_tracing": torch._C._get_tracing_state,
            "_f_compiling": get_eval_frame_callback,
        }
        listed = self._listed(names, is_method=bound is not None)
        arguments = ", ".join(f"a{i}" for i in range(len(self.parameters)))
        lines = [
            f"def entry({', '.join(listed)}):",
            "    if _f_rest and not _f_compiling():",
            "        for _f_rests, _f_caller, _f_call in _f_rest:",
            f"            if _f_rests({arguments}):",
            f"                return _f_caller({', '.join(filter(None, ['_f_call', arguments]))})",
            "    _f_modes = _f_grad() or _f_dispatch() or _f_function() and _f_other() or _f_autocast()",
            "    _f_traced = _f_tracing() or _f_compiling()",
            "    if not _f_modes and not _f_traced and _f_unchanged():",
            "        for _f_plan in _f_plans:",
            f"            _f_result = _f_plan({arguments})",
            "            if _f_result is not _f_miss:",
            "                _f_counter[0] += 1",
            "                return _f_result",
            f"    return _f_slow({arguments})",
        ]
        made = define("\n".join(lines), "entry", names, "<fusion entry>")
        made.__kwdefaults__ = {p.name: p.default for p in self.parameters if _has_keyword_default(p)} or None
        names_in_code = tuple(p.name for p in sorted(self.parameters, key=lambda p: _ORDER[p.kind]))
        if bound is None:
            return opaque(renamed(made, names_in_code))
        own = next(name for name in ("self", "self_", "self__") if name not in names_in_code)
        return types.MethodType(opaque(renamed(made, (own, *names_in_code))), bound)

    def _listed(self, names: dict[str, Any], *, is_method: bool) -> list[str]:
        """Source of the parameters, under names of our own; adds their defaults to the names that the source reads."""
        listed: list[str] = ["m"] if is_method else []
        if listed and not any(p.kind is p.POSITIONAL_ONLY for p in self.parameters):
            listed.append("/")
        star = False
        for i, p in enumerate(self.parameters):
            default = ""
            if p.default is not p.empty:
                names[f"_f_default{i}"] = p.default
                default = f"=_f_default{i}"
            if p.kind is p.VAR_POSITIONAL:
                star = True
            if p.kind is p.KEYWORD_ONLY and not star:
                listed.append("*")
                star = True
            listed.append(f"{_stars(p)}a{i}{default}")
            following = self.parameters[i + 1 : i + 2]
            if p.kind is p.POSITIONAL_ONLY and (not following or following[0].kind is not p.POSITIONAL_ONLY):
                listed.append("/")
        return listed


class ClassForward:
    """A module's forward as its class defines it at the time of the call."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.__wrapped__ = type(module).forward  # where its code is found
        self.__signature__ = inspect.signature(types.MethodType(type(module).forward, module))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)
