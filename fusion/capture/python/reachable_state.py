"""What modules and functions hold in Python: containers, objects, closures, and modules that are no submodules."""

from __future__ import annotations

import array
import collections
import contextlib
import functools
import gc
import logging
import os
import random
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from fusion.capture.hooks import HOOKS, are_idle, entries_of
from fusion.capture.python.argument_tree import modules_of
from fusion.refusal import Refused
from fusion.runtime.native import ABSENT

SWITCH = "enable_fusion"  # the attribute of a model's config that switches fusion off and on
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
Entry = tuple[Any, ...]
_NOT_STATE = (
    torch.Tensor, type, types.BuiltinFunctionType, types.ModuleType, torch.Generator, logging.Logger,
    torch.SymInt, torch.SymFloat, torch.SymBool,
)  # fmt: skip
INTERNAL = frozenset(vars(torch.nn.Module())) - {"training"}
# Attributes that a module under fusion has of us (`fusion.frontend.module_entries`).
ENTRY_NAMES = ("forward", "__getstate__", "_replicate_for_data_parallel", "__prepare_scriptable__")
ENTRY_MARK = "_fusion_entry"  # the attribute of such functions that holds their `ModuleEntry`
_UNPATCHED = ("torch", "fusion", "abc", "collections", "enum", "typing")  # whose classes' methods are not watched
_MADE_BY_PYTHON = ("__dict__", "__weakref__", "__annotate__", "__annotate_func__")
_MADE_BY_CODE = 1 << 9  # the flag of classes that may be changed (Py_TPFLAGS_HEAPTYPE)
_DEEPEST = 6
_MOST_STATE = 10_000
_LOOKS = 8  # times that state is looked at before another thread's changes are too many
_Seen = TypeVar("_Seen")
_MOST_BYTES = 4096  # of an array of numbers that is compared in each call


class Members:
    """Asks a set or deque whether it still holds what it held."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.before = self._now()

    def _now(self) -> Any:
        return tuple(self.held)

    @property
    def same(self) -> bool:
        """Whether the container holds the objects that it held when this was made, in that order."""
        return _identical(self.before, self._now())

    def put_back(self) -> None:
        """Makes the container hold what it held when this was made."""
        self.held.clear()
        (self.held.update if isinstance(self.held, set) else self.held.extend)(self.before)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Members) and self.held is other.held and _identical(self.before, other.before)

    def __hash__(self) -> int:
        return id(self.held)


class Numbers(Members):
    """Asks a NumPy array, a bytearray or the like whether it still holds the numbers that it held.

    Raises:
        Refused: there are more than can be compared in every call, or the array holds Python objects.
    """

    def __init__(self, held: Any) -> None:
        view = memoryview(held) if not hasattr(held, "dtype") else None
        if held.dtype.hasobject if view is None else view.ndim != 1:
            what = f"the forward reads a {type(held).__name__} of objects"
            raise Refused("python_state", what, remedy="hold a list")
        size = held.nbytes if view is None else view.nbytes
        if size > _MOST_BYTES:
            what = f"the forward reads a {type(held).__name__} of {size} bytes, which may change between calls"
            raise Refused("python_state", what, remedy="hold a tensor, or an array with its writeable flag off")
        super().__init__(held)

    def _now(self) -> Any:
        return bytes(memoryview(self.held)) if not hasattr(self.held, "tobytes") else self.held.tobytes()

    @property
    def same(self) -> bool:
        """Whether the array holds the bytes that it held when this was made."""
        return bool(self.before == self._now())

    def put_back(self) -> None:
        """Makes the array hold the bytes that it held when this was made."""
        if hasattr(self.held, "dtype"):
            numpy = sys.modules["numpy"]
            self.held[...] = numpy.frombuffer(self.before, self.held.dtype).reshape(self.held.shape)
        else:
            memoryview(self.held).cast("B")[:] = self.before

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and self.held is other.held and self.before == other.before

    __hash__ = Members.__hash__


def _identical(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


class ReachableState:
    """Walks over everything that modules hold.

    Args:
        modules: where to begin.
        objects: further objects.
        steps: modules inside that are left out.
        partly: whether methods of classes are left out, and what cannot be watched, too, rather than refused.

    Attributes:
        entries: as `runtime.snapshots.make_snapshot` takes them, for every attribute, item, member and closure found.
        modules: modules that were found in containers, objects and closures rather than as submodules.

    Raises:
        Refused: there is more than can be watched, or a module that was found has hooks.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        objects: Sequence[Any] = (),
        steps: Iterable[torch.nn.Module] = (),
        *,
        partly: bool = False,
    ) -> None:
        self._partly = partly
        self._left_out: tuple[type[Exception], ...] = (Refused,) if partly else ()
        self.entries: list[Entry] = []
        self.modules: list[torch.nn.Module] = []
        self._steps = tuple(steps)
        self._seen: set[int] = {id(child) for step in self._steps for child in step.modules()}
        self._classes: set[tuple[type, str]] = set()
        self._watched_classes: set[type] = set()
        self._roots = {id(module) for module in modules.values()}
        tree = [child for module in modules.values() for _, child in modules_of(module, self._steps)]
        self._seen.update(map(id, tree))
        for child in tree:
            with contextlib.suppress(*self._left_out):
                self._module(child)
        for held in objects:
            self.visit(held, 0)
        for found in self.modules:  # grows on the way
            with contextlib.suppress(*self._left_out):
                self._found(found)

    # ---- modules

    def _module(self, child: torch.nn.Module) -> None:
        own = vars(child)
        self.entries += [("class", child, type(child)), ("size", own, len(own))]
        self._methods(type(child))
        for name, value in list(own.items()):
            if name in ("_parameters", "_buffers", "_modules"):
                self.entries.append(("size", value, len(value)))
                self.entries += [("item", value, k, v) for k, v in value.items()]
            elif name not in INTERNAL and not (id(child) in self._roots and name in ENTRY_NAMES):
                self.entries.append(("item", own, name, value))
                with contextlib.suppress(*self._left_out):
                    self.visit(value, 0)
        for item in self._class_state(type(child), torch.nn.Module, own):
            self.visit(item, 0)

    def _found(self, module: torch.nn.Module) -> None:
        self._module(module)
        if not all(are_idle(vars(module)[hooks]) for hooks in HOOKS):
            raise Refused("hook", f"a {type(module).__name__} that is held outside the module tree has forward hooks")
        self.entries += entries_of([module])
        for child in module.children():
            self._meet(child)

    def _meet(self, module: torch.nn.Module) -> None:
        if id(module) not in self._seen:
            self._seen.add(id(module))
            self.modules.append(module)

    # ---- other objects

    def visit(self, value: Any, depth: int) -> None:
        """Notes what a value holds, and what that holds in turn; of a function of ours what it stands for."""
        entry = getattr(value, ENTRY_MARK, None) if isinstance(value, (types.FunctionType, types.MethodType)) else None
        if entry is not None and entry.has(value):
            value = entry.own
        if isinstance(value, (*PLAIN, *_NOT_STATE)) or id(value) in self._seen:
            return
        if isinstance(value, torch.nn.Module):
            self._meet(value)
            return
        if isinstance(value, random.Random) or (type(value).__module__ or "").startswith("numpy.random"):
            what = f"holds a {type(value).__name__}, whose draws no plan would make"
            raise Refused("random", f"the forward {what}", remedy="use a torch.Generator, or draw before the call")
        if hasattr(type(value), "__next__"):
            what = f"holds a {type(value).__name__}, and what that gives next is seen only by taking it"
            raise Refused("python_state", f"the forward {what}", remedy="keep a list, or the value itself")
        inner = self._inner(value)
        if inner is None:
            return
        self._seen.add(id(value))
        if depth > _DEEPEST or len(self.entries) > _MOST_STATE:
            what = f"the modules hold more Python state than can be watched ({_MOST_STATE} entries, {_DEEPEST} deep)"
            raise Refused("python_state", what, remedy="hold large tables outside the modules, or as tensors")
        for item in inner:
            self.visit(item, depth + 1)

    def _inner(self, value: Any) -> list[Any] | None:
        """What a value holds; None where it holds nothing that could change."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return [value.__self__, value.__func__]
        found: list[Any] = []
        if isinstance(value, functools.partial):
            found += [value.func, value.args, value.keywords]
        elif isinstance(value, dict):
            found += self._dict(value, switch=False)
        elif isinstance(value, list):
            self.entries.append(("size", value, len(value)))
            self.entries += [("index", value, i, item) for i, item in enumerate(value)]
            found += value
        elif _is_numbers(value):
            self.entries.append(("attribute", Numbers(value), "same", True))
            return []
        elif isinstance(value, (set, collections.deque)):
            self.entries.append(("attribute", Members(value), "same", True))
            found += value
        elif isinstance(value, (tuple, frozenset)):
            found += value
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            found += self._dict(own, switch=True)
        for name in _slots(type(value)):
            held = getattr(value, name, ABSENT)
            self.entries.append(("attribute", value, name, held))
            found.append(held)
        if not isinstance(own, dict) and not found and not isinstance(value, (list, dict, set, collections.deque)):
            return None
        if not isinstance(value, (list, dict, set, tuple, frozenset)) or isinstance(own, dict):
            self.entries.append(("class", value, type(value)))
        self._methods(type(value))
        found += self._class_state(type(value), object, own if isinstance(own, dict) else {})
        return found

    def _dict(self, value: dict[Any, Any], *, switch: bool) -> list[Any]:
        switched = switch and SWITCH in value
        if not switched:
            self.entries.append(("size", value, len(value)))
        self.entries += [("item", value, k, v) for k, v in value.items() if not (switched and k == SWITCH)]
        return list(value.values())

    def _function(self, function: types.FunctionType) -> list[Any]:
        """What a function holds: closure, defaults and attributes."""
        found: list[Any] = []
        self.entries.append(("code", function, function.__code__))
        for name in ("__defaults__", "__kwdefaults__"):
            self.entries.append(("attribute", function, name, getattr(function, name)))
        found += [function.__defaults__, function.__kwdefaults__, function.__dict__ or None]
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self.entries.append(("attribute", cell, "cell_contents", held))
            found.append(held)
        return found

    def _methods(self, kind: type) -> None:
        """Methods, properties and the like of a class and its bases: which they are, and the code of the user's."""
        if self._partly:
            return
        if kind not in self._watched_classes and not _is_unpatched(kind):
            self.entries.append(("attribute", kind, "__mro__", kind.__mro__))  # its bases may be replaced
        for base in kind.__mro__:
            if base in self._watched_classes or _is_unpatched(base):
                continue
            self._watched_classes.add(base)
            members = _own_dict(base)
            self.entries.append(("size", members, len(members)))
            for name, held in list(members.items()):
                if not describes(held) or name in _MADE_BY_PYTHON:
                    continue
                self.entries.append(("item", members, name, held))
                function = getattr(held, "fget", None) or getattr(held, "__func__", held)
                if isinstance(function, types.FunctionType) and not is_of_library(base):
                    self.visit(function, 0)  # its code, defaults and closure

    def _class_state(self, kind: type, end: type, own: Mapping[str, Any]) -> list[Any]:
        """Data that the user's classes hold for their instances, where the instance with the dict `own` has none."""
        found = []
        for base in kind.__mro__[: kind.__mro__.index(end)]:
            if is_of_library(base):
                continue
            for name, held in list(vars(base).items()):
                known = name in own or (base, name) in self._classes
                if not (known or name.startswith("__") or describes(held)):
                    self._classes.add((base, name))
                    self.entries.append(("attribute", base, name, held))
                    found.append(held)
        return found


def _is_numbers(value: Any) -> bool:
    """Whether a value holds numbers that may be changed in place."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return bool(value.flags.writeable)
    return isinstance(value, (bytearray, array.array))


@functools.cache
def is_library(module: str) -> bool:
    """Whether a module belongs to Python or to an installed library: what those keep for themselves is not watched."""
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("torch", "fusion"):
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return f"{os.sep}site-packages{os.sep}" in file or f"{os.sep}dist-packages{os.sep}" in file


def is_of_library(kind: type) -> bool:
    """Whether a class is Python's or an installed library's; one that `exec` made without a module's name is not."""
    return not kind.__flags__ & _MADE_BY_CODE if kind.__module__ == "builtins" else is_library(kind.__module__)


def _is_unpatched(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _UNPATCHED or not kind.__flags__ & _MADE_BY_CODE


def _own_dict(kind: type) -> dict[str, Any]:
    """The dict behind a class's `__dict__`: a snapshot tells by its version that nothing in it has changed."""
    (members,) = gc.get_referents(kind.__dict__)
    return members  # type: ignore[no-any-return]  # referents are typed as anything


def _slots(kind: type) -> list[str]:
    """Names of the attributes that instances keep outside their `__dict__`."""
    return [
        name
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for name, held in vars(base).items()
        if isinstance(held, types.MemberDescriptorType)
    ]


def describes(held: Any) -> bool:
    """Whether a class attribute is a method, a property or the like rather than data."""
    return callable(held) or hasattr(type(held), "__get__")


def settled(look: Callable[[], _Seen]) -> _Seen:
    """What is seen of state that other threads may change meanwhile.

    Raises:
        Refused: it changed each time it was looked at.
    """
    for _ in range(_LOOKS):
        try:
            return look()
        except RuntimeError as error:
            if "during iteration" not in str(error):  # what Python says of a container that changed meanwhile
                raise
    what = "another thread changes what the forward depends on while it is looked at"
    raise Refused("python_state", what, remedy="call the model while no other thread changes it")
