"""When a Triton kernel loads: all cases of a Select are computed, but each is loaded only where it counts."""

from __future__ import annotations

from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Load, Scalar, Select
from fusion.patterns.symbols import Dim

Condition = tuple[Dim, Dim, bool]  # index, bound, and whether the index is below it
Paths = tuple[tuple[Condition, ...], ...]  # the ways a load is reached, each a conjunction
Guards = dict[int, Paths]  # of each load, by its id


def guards_of(roots: tuple[Scalar, ...]) -> Guards:
    """For each Load, the ways it is reached through Selects, each a conjunction; () among them: unconditionally."""
    found: dict[int, dict[tuple[Condition, ...], None]] = {}
    seen: set[tuple[int, tuple[Condition, ...]]] = set()

    def visit(node: Scalar, path: tuple[Condition, ...]) -> None:
        if (id(node), path) in seen:
            return
        seen.add((id(node), path))
        if isinstance(node, Load):
            found.setdefault(id(node), {})[path] = None
        elif isinstance(node, Select):
            passed = path
            for bound, case in zip(node.bounds, node.cases[:-1], strict=True):
                visit(case, (*passed, (node.index, bound, True)))
                passed = (*passed, (node.index, bound, False))
            visit(node.cases[-1], passed)
        else:
            for child in scalar.children(node):
                visit(child, path)

    for root in roots:
        visit(root, ())
    return {key: ((),) if () in paths else tuple(paths) for key, paths in found.items()}


def any_path(paths: Paths) -> str:
    """The condition under which one of the paths is taken; "" for always."""
    if paths == ((),):
        return ""
    texts = []
    for path in paths:
        conditions = dict.fromkeys(
            f"({symbols.print_python(index)} {'<' if below else '>='} {symbols.print_python(bound)})"
            for index, bound, below in path
        )
        texts.append(" & ".join(conditions))
    return texts[0] if len(texts) == 1 else "(" + " | ".join(f"({t})" for t in texts) + ")"


def uses_of(roots: tuple[Scalar, ...]) -> dict[int, int]:
    """How often each node is an operand or a root."""
    uses: dict[int, int] = {}
    for node in (*roots, *(child for n in scalar.walk(*roots) for child in scalar.children(n))):
        uses[id(node)] = uses.get(id(node), 0) + 1
    return uses
