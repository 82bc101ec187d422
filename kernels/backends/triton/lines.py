"""The lines of a Triton kernel while they are written: what goes into a loop or before it, and what has a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fusion.kernels.backends.triton.variance import COLUMN
from fusion.patterns import symbols
from fusion.patterns.symbols import Dim

CHUNK = ("j = start + tl.arange(0, COLS).to(INDEX)[None, :]",)


class Scope:
    """What is written already: the text of each node by its id, and the variable that holds each right-hand side."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.names: dict[str, str] = {}


class Lines:
    """The body of one kernel. Lines that do not vary with the column go before the loop they are used in.

    Attributes:
        outer: the lines so far, but for those of a loop that is being written.
        extent: how many columns there are to what is being written.
    """

    def __init__(self) -> None:
        self.outer: list[str] = []
        self.extent: Dim = 1
        self._inner: list[str] | None = None  # of the loop
        self._fixed = Scope()  # what does not vary with the column
        self._columns: dict[Dim, Scope] = {}  # what does, by the extent its loads are masked to
        self._column = Scope()  # the one of them in use
        self._count = 0  # of variables

    def add(self, varies: int, line: str) -> None:
        """Writes a line that varies with `varies`."""
        (self._inner if self._inner is not None and varies & COLUMN else self.outer).append(line)

    def name(self, varies: int, text: str) -> str:
        """The name of a variable that holds `text`, made now unless there is one."""
        names = self.scope(varies).names
        if text not in names:
            names[text] = f"v{self._count}"
            self._count += 1
            self.add(varies, f"{names[text]} = {text}")
        return names[text]

    def scope(self, varies: int) -> Scope:
        """What is written already of what varies with `varies`, and can be used here."""
        return self._column if varies & COLUMN else self._fixed

    def leaves_loop(self, varies: int) -> bool:
        """Whether a line that varies with `varies` goes before the loop that is being written."""
        return self._inner is not None and not varies & COLUMN

    @contextmanager
    def over(self, extent: Dim) -> Iterator[None]:
        """Expressions written inside vary over a program's one block of columns, up to `extent`."""
        with self._using(extent, self._columns.setdefault(extent, Scope())):
            yield

    def forget(self) -> None:
        """Drops the table of variables: those so far are blocks of other shapes than what is written from here on."""
        self._fixed, self._columns = Scope(), {}

    @contextmanager
    def loop(self, extent: Dim, step: str = "COLS", indices: Sequence[str] = CHUNK) -> Iterator[None]:
        """Expressions written inside vary over columns up to `extent`, in chunks.

        Args:
            extent: how many columns there are.
            step: how many are a chunk.
            indices: the lines that say which columns a chunk has, which begins at `start`.
        """
        lines: list[str] = []
        self._inner = lines
        with self._using(extent, Scope()):
            yield
        self._inner = None
        self.outer.append(f"for start in range(0, {symbols.print_python(extent)}, {step}):")
        self.outer += [f"    {line}" for line in (*indices, *lines)]

    @contextmanager
    def _using(self, extent: Dim, scope: Scope) -> Iterator[None]:
        before = self.extent, self._column
        self.extent, self._column = extent, scope
        yield
        self.extent, self._column = before
