"""What a value of a Triton kernel varies with: the row, the column, both or neither. So it is a block of that shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fusion.kernels.backends.triton.load_masks import Guards
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Load, Reduced, Scalar, Scanned, Select, Size
from fusion.patterns.symbols import Dim

ROW, COLUMN = 1, 2  # bits


@dataclass(frozen=True, slots=True)
class Side:
    """The rows, or the columns, of a block.

    Attributes:
        variable: the block of their numbers.
        indices: names of the indices that are computed from it.
    """

    variable: str
    indices: frozenset[str]


COLUMNS = Side(scalar.COLUMN, frozenset((scalar.COLUMN,)))


class Variance:
    """What the values of some expressions vary with, as bits.

    Args:
        rows: names of the indices that are computed from the row.
        guards: when the expressions' loads count.
        row: the variable that holds the row.
        columns: the column, and what is computed from it.
        reduced: what the result of a reduction varies with.
    """

    def __init__(
        self, rows: Iterable[str], guards: Guards, *, row: str = "row", columns: Side = COLUMNS, reduced: int = ROW
    ) -> None:
        self._rows = Side(row, frozenset(rows))
        self._columns = columns
        self._reduced = reduced
        self._guards = guards
        self._known: dict[int, int] = {}  # by the id of the node

    def of(self, node: Scalar) -> int:
        """What an expression varies with."""
        if id(node) not in self._known:
            own = 0
            match node:
                case Load(offset=offset):
                    own = self.of_size(offset) | self._of_guards(node)
                case Size(dim=dim):
                    own = self.of_size(dim)
                case Select(index=index, bounds=bounds):
                    for dim in (index, *bounds):
                        own |= self.of_size(dim)
                case Reduced():
                    own = self._reduced
                case Scanned():
                    own = ROW | COLUMN
                case _:
                    pass
            for child in scalar.children(node):
                own |= self.of(child)
            self._known[id(node)] = own
        return self._known[id(node)]

    def of_size(self, dim: Dim) -> int:
        """What an offset, an index or a size varies with."""
        names = {s.name for s in symbols.free_symbols([dim])}
        return (ROW if names & self._rows.indices else 0) | (COLUMN if names & self._columns.indices else 0)

    def offset(self, offset: Dim, needed: int) -> str:
        """An element offset as a block that varies with `needed`, even where the numbers do not."""
        text = symbols.print_python(offset)
        missing = needed & ~self.of_size(offset)
        for bit, side in ((ROW, self._rows), (COLUMN, self._columns)):
            text += f" + 0 * {side.variable}" if missing & bit else ""
        return text

    def _of_guards(self, load: Load) -> int:
        varies = 0
        for path in self._guards[id(load)]:
            for condition in path:
                for dim in condition[:2]:
                    varies |= self.of_size(dim)
        return varies
