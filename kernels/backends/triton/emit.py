"""The Triton emitter: a LoopNest as the text of a Python module with one kernel.

The module needs nothing but Triton. The kernel's parameters are the inputs, the outputs, the sizes, then the constants
of the compilation: ROWS and COLS (block sizes, see `Schedule`), INDEX (tl.int32, or tl.int64 where offsets need it). A
bundle's kernel has those of each part, and calls the function of the part that a program belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fusion.kernels.backends.triton import math as triton_math
from fusion.kernels.backends.triton import online as triton_online
from fusion.kernels.backends.triton import primitives as triton_primitives
from fusion.kernels.backends.triton.bundle import divided
from fusion.kernels.backends.triton.load_masks import any_path, guards_of, uses_of
from fusion.kernels.backends.triton.names import check_names, printable
from fusion.kernels.backends.triton.primitives import TYPES
from fusion.kernels.backends.triton.schedule import (
    AnySchedule,
    Kind,
    Schedule,
    column_count,
    forms,
    launch_options,
    parameters,
    row_count,
)
from fusion.kernels.bundle import Bundle, Nest, parts_of
from fusion.kernels.loops import LoopNest, Reduction, Store
from fusion.patterns import scalar, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.scalar import Apply, Constant, Load, Reduced, Scalar, Scanned, Select, Size
from fusion.patterns.symbols import Dim

__all__ = ["AnySchedule", "Kind", "Schedule", "emit", "emit_all", "launch_options", "parameters"]

_ROW, _COLUMN = 1, 2  # bits: what an expression varies with
_LONG = 60  # an expression longer than this gets a name


def emit(nest: Nest, schedule: AnySchedule) -> str:
    """The text of a module that defines the kernel `nest.name`; the same text for the same nest and schedule.

    Args:
        nest: the kernel.
        schedule: its launch data.

    Raises:
        LoweringError: code "primitive", a primitive that has no form in its dtype; "name", a name in the
            nest that is no plain identifier.
    """
    for part in parts_of(nest):
        check_names(part)
    texts = [
        _Emitter(part, own, f"{nest.name}_part{k}" if isinstance(nest, Bundle) else nest.name).text()
        for k, (part, own) in enumerate(zip(parts_of(nest), schedule.parts, strict=True))
    ]
    body = "\n\n".join([*texts, *([divided(nest, schedule)] if isinstance(nest, Bundle) else [])])
    helpers = triton_math.source_of(set(re.findall(r"\b_\w+", body)))
    loop_nest = "\n".join(f"# {line}" for line in str(nest).splitlines())
    origin = "\n".join(f"#   {printable(line)}" for line in nest.origin)
    head = f"{loop_nest}\n# made of\n{origin}\n" if origin else f"{loop_nest}\n"
    imports = "import triton\nimport triton.language as tl\n"
    return "\n\n".join(filter(None, (f"{head}\n{imports}", helpers, body)))


def emit_all(nest: Nest, schedule: AnySchedule) -> str:
    """The text of all that a launcher may run for `nest`: a module, and those that take its place where rows are cut.

    Raises:
        LoweringError: as `emit`.
    """
    return "\n\n".join(emit(*form) for form in forms(nest, schedule))


class _Scope:
    """What is written already: the text of each node, and the variable that holds each right-hand side."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.names: dict[str, str] = {}


class _Emitter:
    """Writes one kernel. Lines that do not vary with the column go before the loop they are used in."""

    def __init__(self, nest: LoopNest, schedule: Schedule, name: str) -> None:
        self.nest = nest
        self.name = name
        self.schedule = schedule
        self.kind = schedule.kind
        self.row_names = {axis.name for axis in nest.rows}
        self.guards = guards_of(nest.roots)
        self.uses = uses_of(nest.roots)
        self.outer: list[str] = []
        self.inner: list[str] | None = None
        self.fixed = _Scope()  # what does not vary with the column
        self.columns: dict[Dim, _Scope] = {}  # what does, by the extent its loads are masked to
        self.column = _Scope()  # the one of them in use
        self.extent: Dim = 1  # and its extent
        self.varies: dict[int, int] = {}
        self.count = 0

    def text(self) -> str:
        """The kernel's source."""
        self._prologue()
        online = triton_online.pairs(self.nest) if self.kind is Kind.LOOPED else {}
        done: set[str] = set()
        for reduction in self.nest.reductions:
            if reduction.name in online:
                self._online(reduction, online[reduction.name])
                done.add(online[reduction.name].second.name)
            elif reduction.name not in done:
                self._reduction(reduction)
        if self.kind is Kind.TILE and self.nest.reductions:
            self._columns()
        per_row = [s for s in self.nest.stores if s.per_row]
        per_column = [s for s in self.nest.stores if not s.per_row]
        self._stores(per_row)
        if self.kind is Kind.LOOPED and per_column:
            values = [s.value for s in per_column]
            self._loop(column_count(self.nest), values, lambda: self._stores(per_column))
        else:
            with self._over(column_count(self.nest), self.columns):
                self._stores(per_column)
        constants = ("ROWS: tl.constexpr", "COLS: tl.constexpr", "INDEX: tl.constexpr")
        arguments = ", ".join((*(["program"] if self._is_part() else []), *parameters(self.nest), *constants))
        lines = "\n".join(f"    {line}" for line in self.outer)
        return f"@triton.jit\ndef {self.name}({arguments}):\n{lines}\n"

    # What every kernel starts with: sizes, the row and column of each element.

    def _prologue(self) -> None:
        nest, columns = self.nest, symbols.print_python(column_count(self.nest))
        self.outer += [f"{s.symbol} = tl.cast({s.symbol}, INDEX)" for s in nest.sizes]
        if not self._is_part():
            self.outer.append("program = tl.program_id(0).to(INDEX)")
        if self.kind is Kind.FLAT:
            self.outer.append("j = program * COLS + tl.arange(0, COLS).to(INDEX)")
            return
        if self.kind is Kind.TILE and not self._one_block():
            self.outer.append(f"blocks = ({columns} + (COLS - 1)) // COLS")
            self.outer.append("row = (program // blocks) * ROWS + tl.arange(0, ROWS).to(INDEX)[:, None]")
        else:
            self.outer.append("row = program * ROWS + tl.arange(0, ROWS).to(INDEX)[:, None]")
        if not self._loops():
            self._columns()
        rest = "row"
        for k, axis in reversed(list(enumerate(nest.rows))):
            extent = symbols.print_python(axis.extent)
            self.outer.append(f"{axis.name} = {rest}" if k == 0 else f"{axis.name} = {rest} % {extent}")
            rest = f"({rest} // {extent})"

    def _columns(self) -> None:
        """The columns of a program that has one block of them."""
        before = "" if self.kind is Kind.ROWS or self._one_block() else "(program % blocks) * COLS + "
        self.outer.append(f"j = {before}tl.arange(0, COLS).to(INDEX)[None, :]")

    def _loops(self) -> bool:
        """Whether reductions are taken in chunks of columns."""
        return self.kind is Kind.LOOPED or (self.kind is Kind.TILE and bool(self.nest.reductions))

    def _is_part(self) -> bool:
        """Whether the number of the program, among those of its part, is handed to it."""
        return self.name != self.nest.name

    def _one_block(self) -> bool:
        columns = column_count(self.nest)
        return isinstance(columns, int) and columns <= self.schedule.columns

    def _reduction(self, reduction: Reduction) -> None:
        identity, combine, reduce = triton_primitives.reduction(reduction.fn, reduction.body.dtype)
        if not self._loops():
            with self._over(reduction.extent, self.columns):
                value = self._masked(reduction, identity)
            scan = triton_primitives.SCANS[reduction.fn] if reduction.running else f"{reduce}[:, None]"
            self.outer.append(f"{reduction.name} = {scan.format(value)}")
            return
        if reduction.running:
            return  # computed in each loop that reads it
        block = f"{reduction.name}_block"
        dtype = TYPES[reduction.body.dtype]
        self.outer.append(f"{block} = tl.full([ROWS, COLS], {identity}, {dtype})")

        def step() -> None:
            value = self._masked(reduction, identity)
            self._line(_COLUMN, f"{block} = {combine.format(block, value)}")

        self._loop(reduction.extent, [reduction.body], step)
        self.outer.append(f"{reduction.name} = {reduce.format(block)}[:, None]")

    def _online(self, first: Reduction, pair: triton_online.Pair) -> None:
        """Two reductions of one operand, the second over what the first makes of it, in one loop."""
        self.outer += pair.start()

        def step() -> None:
            identity = triton_primitives.reduction(first.fn, first.body.dtype)[0]
            value = self._name(_ROW | _COLUMN, self._masked(first, identity))
            for line in pair.step(value, self._column_mask(first.extent)):
                self._line(_COLUMN, line)

        self._loop(first.extent, [first.body], step)
        self.outer += pair.finish(symbols.print_python(first.extent))

    def _carried(self, roots: Sequence[Scalar]) -> list[Reduction]:
        """The scans that a loop over `roots` has to compute on the way, in order."""
        wanted = {n.name for n in scalar.walk(*roots) if isinstance(n, Scanned)}
        needed: list[Reduction] = []
        for reduction in reversed(self.nest.reductions):
            if reduction.name in wanted:
                needed.insert(0, reduction)
                wanted |= {n.name for n in scalar.walk(reduction.body) if isinstance(n, Scanned)}
        return needed

    def _run(self, scan: Reduction) -> None:
        """A chunk of a scan, inside a loop, from what the chunks before it came to."""
        identity, combine, reduce = triton_primitives.reduction(scan.fn, scan.body.dtype)
        carry = f"{scan.name}_carry"
        self.outer.append(f"{carry} = tl.full([ROWS, 1], {identity}, {TYPES[scan.body.dtype]})")
        value = self._name(_COLUMN, self._masked(scan, identity))
        part = triton_primitives.SCANS[scan.fn].format(value)
        self._line(_COLUMN, f"{scan.name} = {combine.format(carry, part)}")
        self._line(_COLUMN, f"{carry} = {combine.format(carry, reduce.format(value) + '[:, None]')}")

    def _masked(self, reduction: Reduction, identity: str) -> str:
        """The reduction's body, as a block of columns, with the identity beyond the row's end."""
        body = self._operand(reduction.body)
        mask = self._column_mask(reduction.extent)
        if not mask and not self._varies(reduction.body) & _COLUMN:
            mask = f"j < {symbols.print_python(reduction.extent)}"  # makes a block of it
        return f"tl.where({mask}, {body}, {identity})" if mask else body

    def _loop(self, extent: Dim, roots: Sequence[Scalar], body: Callable[[], object]) -> None:
        """A loop over the column in chunks of COLS, for expressions `roots` that `body` writes."""
        lines: list[str] = []
        self.inner = lines
        with self._over(extent, {}):
            for scan in self._carried(roots):
                self._run(scan)
            body()
        self.inner = None
        self.outer.append(f"for start in range(0, {symbols.print_python(extent)}, COLS):")
        self.outer.append("    j = start + tl.arange(0, COLS).to(INDEX)[None, :]")
        self.outer += [f"    {line}" for line in lines]

    @contextmanager
    def _over(self, extent: Dim, scopes: dict[Dim, _Scope]) -> Iterator[None]:
        """Expressions written inside vary over columns up to `extent`."""
        before = self.extent, self.column
        self.extent, self.column = extent, scopes.setdefault(extent, _Scope())
        yield
        self.extent, self.column = before

    def _stores(self, stores: list[Store]) -> None:
        for store in stores:
            self._store(store)

    def _store(self, store: Store) -> None:
        needed = _ROW if store.per_row else _ROW | _COLUMN
        needed = _COLUMN if self.kind is Kind.FLAT else needed
        value = self._operand(store.value, typed=True)
        masks = [self._row_mask()] if needed & _ROW else []
        if needed & _COLUMN:
            masks.append(self._column_mask(column_count(self.nest)))
        offset = self._offset(store.offset, needed)
        mask = " & ".join(filter(None, masks))
        self._line(needed, f"tl.store({store.output} + {offset}, {value}{', mask=' + mask if mask else ''})")

    # Masks and offsets.

    def _row_mask(self) -> str:
        rows = row_count(self.nest)
        if (isinstance(rows, int) and rows % self.schedule.rows == 0) or self.schedule.rows == 1:
            return ""
        return f"(row < {symbols.print_python(rows)})"

    def _column_mask(self, extent: Dim) -> str:
        if self.kind is not Kind.FLAT and isinstance(extent, int) and extent % self.schedule.columns == 0 and extent:
            return ""
        return f"(j < {symbols.print_python(extent)})"

    def _offset(self, offset: Dim, needed: int) -> str:
        """An element offset as a block that varies with `needed`, even where the numbers do not."""
        text = symbols.print_python(offset)
        missing = needed & ~self._dim_varies(offset)
        return text + (" + 0 * row" if missing & _ROW else "") + (" + 0 * j" if missing & _COLUMN else "")

    def _dim_varies(self, dim: Dim) -> int:
        names = {s.name for s in symbols.free_symbols([dim])}
        return (_ROW if names & self.row_names else 0) | (_COLUMN if scalar.COLUMN in names else 0)

    def _varies(self, node: Scalar) -> int:
        """What the node's value varies with."""
        if id(node) not in self.varies:
            own = 0
            match node:
                case Load(offset=offset):
                    own = self._dim_varies(offset) | self._guard_varies(node)
                case Size(dim=dim):
                    own = self._dim_varies(dim)
                case Select(index=index, bounds=bounds):
                    for dim in (index, *bounds):
                        own |= self._dim_varies(dim)
                case Reduced():
                    own = _ROW
                case Scanned():
                    own = _ROW | _COLUMN
                case _:
                    pass
            for child in scalar.children(node):
                own |= self._varies(child)
            self.varies[id(node)] = own
        return self.varies[id(node)]

    def _guard_varies(self, load: Load) -> int:
        varies = 0
        for path in self.guards[id(load)]:
            for condition in path:
                for dim in condition[:2]:
                    varies |= self._dim_varies(dim)
        return varies

    # Expressions.

    def _line(self, varies: int, line: str) -> None:
        (self.inner if self.inner is not None and varies & _COLUMN else self.outer).append(line)

    def _name(self, varies: int, text: str) -> str:
        """The name of a variable that holds `text`, made now unless there is one."""
        names = self._scope(varies).names
        if text not in names:
            names[text] = f"v{self.count}"
            self.count += 1
            self._line(varies, f"{names[text]} = {text}")
        return names[text]

    def _scope(self, varies: int) -> _Scope:
        return self.column if varies & _COLUMN else self.fixed

    def _operand(self, node: Scalar, typed: bool = False) -> str:
        """The node as text; a constant stands as a literal unless `typed`, where its dtype has to show."""
        if isinstance(node, Constant):
            if typed or triton_primitives.needs_type(node):
                return triton_primitives.typed(node, self._rank())
            return triton_primitives.literal(node)
        varies = self._varies(node)
        known = self._scope(varies).texts
        if id(node) not in known:
            known[id(node)] = self._fresh(node, varies)
        return known[id(node)]

    def _fresh(self, node: Scalar, varies: int) -> str:
        match node:
            case Reduced(name=name) | Scanned(name=name):
                return name
            case Load():
                return self._name(varies, self._load(node, varies))
            case Size(dtype=dtype, dim=dim):
                text = symbols.print_python(dim)
                if isinstance(dim, int) or not self._dim_varies(dim):
                    return f"tl.full({self._rank()}, {text}, {TYPES[dtype]})"
                return f"{text}.to({TYPES[dtype]})"
            case Select():
                return self._name(varies, self._select(node))
            case Apply():
                text = self._apply(node)
                hoisted = self.inner is not None and not varies & _COLUMN
                rounded = node.fn.startswith("round_")
                if self.uses[id(node)] > 1 or hoisted or rounded or len(text) > _LONG:
                    return self._name(varies, text)
                return text
            case _:
                raise LoweringError("primitive", f"Triton kernels have no form for a {type(node).__name__}.")

    def _load(self, load: Load, varies: int) -> str:
        masks = []
        if varies & _ROW:
            masks.append(self._row_mask())
        if varies & _COLUMN:
            masks.append(self._column_mask(self.extent))
        masks.append(any_path(self.guards[id(load)]))
        mask = " & ".join(filter(None, masks))
        loaded = f"tl.load({load.argument} + {self._offset(load.offset, varies)}{', mask=' + mask if mask else ''})"
        return loaded if load.storage == load.dtype else f"{loaded}.to({TYPES[load.dtype]})"

    def _select(self, node: Select) -> str:
        cases = [self._operand(case, typed=True) for case in node.cases]
        text = cases[-1]
        for bound, case in reversed(list(zip(node.bounds, cases[:-1], strict=True))):
            below = f"{symbols.print_python(node.index)} < {symbols.print_python(bound)}"
            text = f"tl.where({below}, {case}, {text})"
        return text

    def _apply(self, node: Apply) -> str:
        source = node.args[-1].dtype
        if node.fn == "cast" and node.dtype is torch.bool:
            return f"({self._operand(node.args[0], typed=True)} != 0)"
        form = triton_primitives.form(node.fn, source)
        literals = [isinstance(a, Constant) for a in node.args]
        # A literal takes its dtype from the operand beside it, so one operand at least has to have one.
        beside = literals[1:] if node.fn == "where" else literals
        typed = all(beside) or node.fn in ("max", "min", "div", "pow", "fmod", "fma")
        operands = [self._operand(a, typed=typed or (node.fn == "where" and i == 0)) for i, a in enumerate(node.args)]
        if form.count("{0}") > 1 and not operands[0].isidentifier():
            operands[0] = self._name(self._varies(node.args[0]), operands[0])
        return form.format(*operands, type=TYPES[node.dtype])

    def _rank(self) -> str:
        return "[1]" if self.kind is Kind.FLAT else "[1, 1]"
