"""Which line of the user's code sets an attribute or a name, found in the code itself."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterable, Iterator

from fusion.capture.user_frame import is_users_file, short_line

_SETS = frozenset(
    {"STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"}
)  # fmt: skip


def line_that_sets(name: str, codes: Iterable[types.CodeType]) -> str:
    """ "file:line" of the first instruction that sets or deletes an attribute, global or closure variable; or "".

    Args:
        name: of what is set.
        codes: where to look, functions inside them included; an `__init__` is passed over.
    """
    for code in codes:
        for inner in _with_inner(code):
            if inner.co_name == "__init__" or not is_users_file(inner.co_filename):
                continue
            for instruction in dis.get_instructions(inner):
                line = instruction.positions.lineno if instruction.positions else None
                if instruction.opname in _SETS and instruction.argval == name and line:
                    return short_line(inner.co_filename, line)
    return ""


def codes_of(kind: type) -> Iterator[types.CodeType]:
    """The code of a class's methods and properties, those of its bases included."""
    for base in kind.__mro__:
        for held in list(vars(base).values()):
            called = getattr(held, "fget", None) or getattr(held, "__func__", held)
            if isinstance(called, types.FunctionType):
                yield called.__code__


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)
