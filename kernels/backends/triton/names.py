"""What may be a name, or a comment, in an emitted Triton module."""

from __future__ import annotations

import keyword
import re

from fusion.kernels.backends.triton.schedule import parameters
from fusion.kernels.loops import LoopNest
from fusion.patterns.errors import LoweringError

_OF_OURS = re.compile(r"(v|end)\d+|\w+_(block|carry|mean|count|next|off)")
_OURS = {"j", "row", "program", "blocks", "start", "tl", "triton", "ROWS", "COLS", "INDEX", "range", "float"} | {
    "rows", "columns", "column", "depth", "down", "across", "batch", "place", "band", "above", "height", "inside",
    "DEPTH", "GROUP",
}  # fmt: skip


def check_names(nest: LoopNest) -> None:
    """Nothing but plain names of our own making reaches a source file.

    Raises:
        LoweringError: code "name", a name in the nest that is no plain identifier, or one that others have.
    """
    names = [nest.name, *parameters(nest), *(a.name for a in nest.rows), *(r.name for r in nest.reductions)]
    for name in names:
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name) or keyword.iskeyword(name) or name in _OURS:
            raise LoweringError(
                "name",
                f"{name!r} cannot be a name in a Triton kernel.",
                remedy="Use letters, digits and underscores, and none of " + ", ".join(sorted(_OURS)) + ".",
            )
    if len(set(names)) != len(names) or any(_OF_OURS.fullmatch(n) for n in names[1:]):
        raise LoweringError("name", f"{nest.name}: names that clash: {names}.", remedy="Give each its own name.")


def printable(line: str) -> str:
    """A line fit for a comment: a file's name may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in line)
