"""What a value of a Triton kernel varies with: the row, the column, both or neither. So it is a block of that shape."""

from __future__ import annotations

from fusion.kernels.backends.triton.load_masks import Guards
from fusion.kernels.loops import LoopNest
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Load, Reduced, Scalar, Scanned, Select, Size
from fusion.patterns.symbols import Dim

ROW, COLUMN = 1, 2  # bits


class Variance:
    """What the values of one kernel vary with, as bits."""

    def __init__(self, nest: LoopNest, guards: Guards) -> None:
        self._rows = {axis.name for axis in nest.rows}
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
                    own = ROW
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
        return (ROW if names & self._rows else 0) | (COLUMN if scalar.COLUMN in names else 0)

    def offset(self, offset: Dim, needed: int) -> str:
        """An element offset as a block that varies with `needed`, even where the numbers do not."""
        text = symbols.print_python(offset)
        missing = needed & ~self.of_size(offset)
        return text + (" + 0 * row" if missing & ROW else "") + (" + 0 * j" if missing & COLUMN else "")

    def _of_guards(self, load: Load) -> int:
        varies = 0
        for path in self._guards[id(load)]:
            for condition in path:
                for dim in condition[:2]:
                    varies |= self.of_size(dim)
        return varies
