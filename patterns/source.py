"""The one door through which generated Python text comes to life.

Plans, guards, entries and eager regions are text. That text holds only what we wrote: names of our own, integers, and a
closed list of attributes. A string from outside (a keyword, an attribute, a key, a parameter's name) is bound to a name
of ours and never printed. `define` checks this on the parsed text, so a writer that forgets it is stopped here.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any

from .errors import GraphError

# Builtins that generated text may use.
BUILTINS: dict[str, Any] = {
    "Exception": Exception, "abs": abs, "dict": dict, "float": float, "getattr": getattr, "id": id, "int": int,
    "len": len, "list": list, "locals": locals, "max": max, "min": min, "round": round, "set": set, "tuple": tuple,
    "type": type,
}  # fmt: skip

# Attributes that generated text may read. `runtime.op_calls` writes the tensor methods.
_READ = "__class__ add append before device drawing dtype may_alias shape size stride type"
_METHODS = (
    "bfloat16 contiguous cos double exp expand float half masked_fill matmul mean narrow neg permute pow reshape rsqrt "
    "sigmoid sin tanh to transpose unsqueeze view"
)
_ATTRIBUTES = frozenset(f"{_READ} {_METHODS}".split())

_NAME = re.compile(r"[A-Za-z]{1,16}(_[A-Za-z]{1,16}){0,3}_?[0-9]{0,9}(_[0-9]{1,9})?|_|_f_[a-z]{1,16}[0-9]{0,9}")

# Syntax that generated text may use; the second kind holds words or values, which are looked at.
_OPERATORS = (ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop)
_NODES = frozenset({
    ast.Module, ast.arguments, ast.Return, ast.Assign, ast.Expr, ast.If, ast.For, ast.Raise, ast.Try, ast.AugAssign,
    ast.Call, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Starred, ast.IfExp, ast.BoolOp,
    ast.BinOp, ast.UnaryOp, ast.Compare, *(kind for group in _OPERATORS for kind in group.__subclasses__()),
})  # fmt: skip
_CHECKED = frozenset({
    ast.FunctionDef, ast.arg, ast.ExceptHandler, ast.Name, ast.Attribute, ast.keyword, ast.Constant,
})  # fmt: skip

# Fields of syntax that hold no further syntax to look at: words, values, and operators, each of which is allowed.
_NO_SYNTAX = frozenset({"ctx", "op", "ops", "id", "attr", "arg", "name", "value", "kind", "type_comment"})
_FIELDS = {
    kind: tuple(
        f for f in getattr(kind, "_fields", ()) if f not in _NO_SYNTAX or (f == "value" and kind is not ast.Constant)
    )
    for kind in _NODES | _CHECKED
}


def define(text: str, function: str, names: Mapping[str, Any], filename: str) -> Callable[..., Any]:
    """Runs a generated text that defines one function, and gives that function.

    Args:
        text: the source.
        function: the name that it defines.
        names: objects for the names that the text reads.
        filename: what tracebacks call the text.

    Raises:
        GraphError: the text holds a token that none of our writers makes, or is no definition of one function.
    """
    namespace = {"__builtins__": BUILTINS, "math": math, **names}
    exec(_compiled(text, function, filename), namespace)
    made: Callable[..., Any] = namespace[function]
    return made


@functools.lru_cache(maxsize=4096)
def _compiled(text: str, function: str, filename: str) -> CodeType:
    tree = parse(text)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or tree.body[0].name != function:
        raise _refused("something else than one function")
    return compile(tree, filename, "exec")


@functools.lru_cache(maxsize=2)
def parse(text: str) -> ast.Module:
    """The tree of a generated text, which nobody changes: a plan's is checked here and in `runtime.verify`.

    Raises:
        GraphError: as `define`.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise _refused(f"text that is no Python ({error})") from error
    _check(tree)
    return tree


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree of allowed syntax, node by node, but for its operators: some times faster than `ast.walk`.

    Raises:
        GraphError: a node is of another kind.
    """
    nodes = [tree]
    for node in nodes:
        fields = _FIELDS.get(type(node))
        if fields is None:
            raise _refused(type(node).__name__)
        yield node
        for field in fields:
            value = getattr(node, field, None)
            if type(value) is list:
                nodes += filter(None, value)  # a dict's key or a default may be missing
            elif value is not None:
                nodes.append(value)


def _check(tree: ast.Module) -> None:
    for node in walk(tree):
        if type(node) in _CHECKED:
            _check_words(node)


def _check_words(node: ast.AST) -> None:
    match node:
        case ast.Constant(value=value) if type(value) not in (bool, int, float, type(None)):
            raise _refused(f"the constant {value!r}")
        case ast.Attribute(attr=attribute) if attribute not in _ATTRIBUTES and not _is_of_math(node):
            raise _refused(f"the attribute {attribute!r}")
        case ast.keyword(arg=str() as keyword):
            raise _refused(f"the keyword {keyword!r}")
        case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) if not _NAME.fullmatch(name):
            raise _refused(f"the name {name!r}")
        case ast.ExceptHandler(name=str() as name) if not _NAME.fullmatch(name):
            raise _refused(f"the name {name!r}")


def _is_of_math(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in ("ceil", "floor", "trunc")


def _refused(what: str) -> GraphError:
    return GraphError(f"Generated code holds {what}, which no writer makes.", remedy="Report this.")


def renamed(function: Callable[..., Any], parameters: tuple[str, ...]) -> Callable[..., Any]:
    """Gives a generated function the parameter names that its callers use.

    The names go into the function's code object; they are never text, so any string will do.

    Args:
        function: one made by `define`.
        parameters: new names for its parameters, in the order of its code object: first those that may be given by
            position, then those by keyword only, then `*args`, then `**kwargs`.
    """
    code = function.__code__
    function.__code__ = code.replace(co_varnames=(*parameters, *code.co_varnames[len(parameters) :]))
    return function
