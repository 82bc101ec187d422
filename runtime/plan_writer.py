"""The source of a plan: its checks (`guard_writer`), then library calls, kernels and opaque calls in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fusion.patterns import symbols
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import Node, OpNode, made_by
from fusion.patterns.ops import resolve
from fusion.patterns.python_nodes import NewObject, ObjectRead, OpaqueCall, PythonNode, TensorRead
from fusion.runtime.call_log import let_go
from fusion.runtime.guard_writer import GuardWriter, head
from fusion.runtime.nest_source import keywords, nested
from fusion.runtime.op_calls import call
from fusion.runtime.plan import KernelCall, PlanSpec, Source, Step
from fusion.runtime.python_node_writer import PythonNodeWriter
from fusion.runtime.released_results import HandedOn, restored
from fusion.runtime.step_guards import StepGuards, WrittenStep
from fusion.runtime.verify import check_steps

_MOST_KEPT = 1 << 16  # bytes that a plan copies before it writes to them, in case it fails later


class Writer(GuardWriter):
    """Writes one plan. Use `write_plan`."""

    kept: frozenset[str] = frozenset()
    kept_before: frozenset[int] = frozenset()

    def __init__(self, shape: PlanSpec) -> None:
        super().__init__(shape)
        self.free: list[str] = []
        self.variables: set[str] = set()  # that hold what the plan makes
        self.logged = 0  # entries of the log so far
        self.logged_at: dict[str, int] = {}  # results that only opaque calls read: their place in the log
        self.lending: set[int] = set()  # places in the log of calls that may have written to what is used afterwards
        self.lets_go = False
        self.written: list[WrittenStep] = []  # the steps so far, and where they stand in the text
        looked_at = {r for n in self.graph.nodes if isinstance(n, OpNode | TensorRead) for r in n.refs}
        self.passed_on = {r for n in self.graph.nodes for r in n.refs} - looked_at

    def keeper(self, steps: Sequence[Step], log: bool) -> str:
        """Source of what keeps memory and generators as they were before the plan's lasting effects; notes where.

        A large tensor is kept only if a later check may still end the plan: an error after the write is then handed on.
        """
        at = [k for k, (kind, index) in enumerate(steps) if kind == "node" and index in self.graph.lasting]
        if log and any(isinstance(node, OpaqueCall | NewObject) and node.lent for node in self.graph.nodes):
            self.kept_before = frozenset(steps[k][1] for k in at)
            return "UNDO(None)"
        if not at or (at == [len(steps) - 1] and not log):
            return "None"
        self.kept_before = frozenset(steps[k][1] for k in at)
        later = any(kind == "node" and not isinstance(self.graph.nodes[i], OpNode) for kind, i in steps[at[0] :])
        return f"UNDO({None if log or later else _MOST_KEPT})"

    def given_identities(self) -> str:
        """Source of the identities of what a call is given, parameters apart, where something is found in objects."""
        if not any(map(self._finds, self.graph.nodes)):
            return ""
        objects = [path for path, _ in self.shape.conditions.kinds]
        given = [*map(self.path, (*self.paths.values(), *objects))]
        given += [held.name for held in self.graph.objects if held.kind == "attribute"]
        return "{" + ", ".join(f"id({one})" for one in given) + "}" if given else "set()"

    def _finds(self, node: Node) -> bool:
        """Whether a read gives a tensor or an object."""
        if isinstance(node, OpNode) or node.effect:
            return False
        looks = isinstance(node, ObjectRead) and node.kind is not None
        return any(looks or name in self.graph.spec for name in made_by(node))

    def allocate(self, name: str) -> str:
        """A local variable for a value; variables of dead values are used again, so that memory is freed."""
        self.register[name] = self.free.pop() if self.free else f"v{len(set(self.register.values()) | set(self.free))}"
        self.variables.add(self.register[name])
        return self.register[name]

    def release(self, names: Sequence[str], position: int, last: Mapping[str, int]) -> None:
        """Gives back the variables of values that are not read after `position`."""
        for name in dict.fromkeys(names):
            if last.get(name, -1) <= position and name in self.register and name not in self.kept:
                self.free.append(self.register.pop(name))

    def body(self, steps: Sequence[Step], kernels: Sequence[KernelCall], taps: frozenset[str], log: bool) -> None:
        """Library calls, kernels and opaque calls in order."""
        pad = "        "
        reads = [self._reads(step, kernels) for step in steps]
        last: dict[str, int] = {}
        for position, names in enumerate(reads):
            last.update(dict.fromkeys(names, position))
        returned = {leaf.name for leaf in self.graph.outputs if isinstance(leaf, Ref)}
        sources = {s.value for s in self.graph.symbols}
        self.kept = frozenset(returned | sources)
        python_nodes = PythonNodeWriter(self, self.allocate, taps, log)
        given = {*self.paths, *dict(self.graph.parameters), *self.graph.constants}
        for name in sorted(taps & given):
            self.lines.append(f"{pad}TAP[{self.name('tap', name)}] = {self.value(name)}")
        for position, (kind, index) in enumerate(steps):
            start = len(self.lines) + 1
            if kind == "region":
                made = self._kernel(index, kernels[index], reads[position], position, last)
            elif isinstance(node := self.graph.nodes[index], OpNode):
                made = self._operator(index, node, reads[position], position, last)
            else:
                if not log:
                    self._let_go(node)
                python_nodes.write(index, node)
                self.release(reads[position], position, last)
                made = [name for name in made_by(node) if name in self.graph.spec]
            nodes = kernels[index].nodes if kind == "region" else (index,)
            variables = {name: self.register[name] for name in made if name in self.register}
            self.written.append(WrittenStep(start, nodes, variables))
            for name in made:
                if name in taps:
                    self.lines.append(f"{pad}TAP[{self.name('tap', name)}] = {self.value(name)}")
            self.release(made, position, last)
            if log and self.free:  # a plan that runs beside eager has no memory to spare
                self.lines.append(f"{pad}{' = '.join(self.free)} = None")

    def _let_go(self, node: PythonNode) -> None:
        """Takes out of the log what the forward has given up by the time of a call, if only such calls read it."""
        for name in node.dead_results if isinstance(node, OpaqueCall) else ():
            if name in self.logged_at:
                gone = self.name("gone", HandedOn(self.spec(name), self.shape.devices[0]))
                place = self.logged_at.pop(name)
                plain = f"log[{place}] = {gone}"
                with_writes = f"{self.name('let_go', let_go)}(log, {place}, {gone})"
                self.lines.append(f"        {with_writes if place in self.lending else plain}")
                self.lets_go = True
        self.logged += not isinstance(node, TensorRead)
        if isinstance(node, OpaqueCall | NewObject) and node.lent:
            self.lending.add(self.logged - 1)
        if isinstance(node, OpaqueCall) and node.effect and node.structure == "leaf" and isinstance(node.receiver, Ref):
            (output,) = node.outputs
            if output in self.passed_on.intersection(self.graph.spec):
                self.logged_at[output] = self.logged - 1

    def _reads(self, step: Step, kernels: Sequence[KernelCall]) -> tuple[str, ...]:
        kind, index = step
        return kernels[index].inputs if kind == "region" else self.graph.nodes[index].refs

    def _kernel(
        self, index: int, kernel: KernelCall, reads: Sequence[str], position: int, last: Mapping[str, int]
    ) -> list[str]:
        given = [*map(self.value, kernel.inputs), *(symbols.print_python(d) for d in kernel.given)]
        self.release(reads, position, last)
        targets = ", ".join(self.allocate(o) for o in kernel.outputs)
        self.lines.append(f"        {targets} = kernel{index}({', '.join(given)})")
        return list(kernel.outputs)

    def _operator(
        self, index: int, node: OpNode, reads: Sequence[str], position: int, last: Mapping[str, int]
    ) -> list[str]:
        known = self.graph.spec.get(node.outputs[0]) if node.outputs else None
        source = call(node, self.text, self.name, known, hold_scalars=True)
        if index in self.kept_before:
            given = "".join(f"{self.text(a)}, " for a in node.args)
            named = keywords(self, node.kwargs)
            if index in self.graph.outer_writes:
                self.lines.append(f"        undo.before({self.name('op', resolve(node.op))}, ({given}), {named})")
            else:
                self.lines.append(f"        undo.drawing(({given}), {named})")
        if index in self.graph.lasting:
            self.effects = True
        self.release(reads, position, last)
        fresh = [o for o in node.outputs if o not in self.register and o not in self.paths]
        unsure = [o for o in fresh if o in self.graph.opaque]
        if not fresh:
            self.lines.append(f"        {source}")
        else:
            returns = resolve(node.op)._schema.returns
            rest = ", *_" if 1 < len(returns) > len(node.outputs) else ""  # what the operator leaves undefined
            several = len(node.outputs) > 1 or isinstance(returns[0].type, torch.ListType)
            targets = ", ".join(self.allocate(o) for o in node.outputs)
            self.lines.append(f"        {targets}{rest or (',' if several else '')} = {source}")
        if unsure:
            self.guard(unsure, [self.shape.devices[0]] * len(unsure), "        ")
            self.flush("        ")
        return fresh

    def finish(self, log: bool) -> None:
        """What the plan returns, and the items it sets of dicts it was given: last, where nothing can fail any more.

        With a log they are left to the caller, who gets the result and their values.
        """
        pad, items = "        ", self.graph.items
        result = nested(self, self.shape.tree, iter([self.text(leaf) for leaf in self.graph.outputs]))
        if log or not items:
            self.lines.append(f"{pad}return {result}")
            return
        self.lines.append(f"{pad}r, t0 = {result}")
        for k, (path, key) in enumerate(items):
            self.lines.append(f"{pad}{self.path((*path, key))} = t0[{k}]")
        self.lines.append(f"{pad}return r")


def write_plan(
    shape: PlanSpec,
    steps: Sequence[Step],
    kernels: Sequence[KernelCall] = (),
    *,
    within: Mapping[str, tuple[int, int]] | None = None,
    pinned: bool = False,
    taps: frozenset[str] = frozenset(),
    log: bool = False,
) -> Source:
    """The source of a plan.

    Args:
        shape: what was recorded.
        steps: execution order.
        kernels: the kernels that "region" steps call as kernel0, kernel1, ...
        within: bounds (lowest, highest) on input symbols this plan is for.
        pinned: the plan is only for the values of the input symbols in the set `PROVED`.
        taps: values to leave in the dict `TAP` on the way.
        log: leave opaque calls' tensor arguments in the list `SEEN`, and their results in the list `LOGGED`.

    Names to bind: parameters, constants and `call_constants` by name, kernel0.., `FAIL(error, log, arguments,
    undo)`, what `standing` gives, and `PROVED`, `TAP`, `SEEN`, `LOGGED` where asked for. `undo` is None, or takes back
    what the plan has written and drawn so far.
    """
    check_steps(shape.graph, steps, kernels)
    writer = Writer(shape)
    writer.lines.append(head(shape, "plan"))
    writer.checks()
    for symbol, (low, high) in (within or {}).items():
        writer.miss(f"not {low} <= {symbol} <= {high}")
    if pinned:
        inputs = sorted(writer.bound)
        writer.miss(f"({', '.join(inputs)}{',' if inputs else ''}) not in PROVED")
    arguments = ", ".join(f"a{i}" for i in range(len(shape.parameters)))
    given = writer.given_identities()
    writer.lines += [f"    met = {given}"] if given else []
    writer.lines += [
        "    log = LOGGED" if log else "    log = []",
        f"    undo = {writer.keeper(steps, log)}",
        "    try:",
    ]
    writer.body(steps, kernels, taps, log)
    writer.finish(log)
    writer.lines.append("    except Exception as error:")
    if writer.lets_go:
        writer.lines.append(f"        log = {writer.name('restored', restored)}(log, locals())")
    if writer.variables:  # what the plan has made must not be in the way of what stands in for it
        writer.lines.append(f"        {' = '.join(sorted(writer.variables))} = None")
    writer.lines.append(f"        return FAIL(error, log, ({arguments}{',' if arguments else ''}), undo)")
    return Source("\n".join(writer.lines), writer.names, StepGuards(shape, writer.written))
