"""The source of a plan: its checks (`guard_writer`), then library calls, kernels and islands in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils import _pytree as pytree

from fusion.patterns import symbols
from fusion.patterns.leaves import Argument, Expect, Ref
from fusion.patterns.nodes import IslandNode, OpNode, given_tensors
from fusion.patterns.ops import resolve
from fusion.runtime.call_log import (
    LoggedContainerChange,
    contents,
    keep_outer,
    kept,
    let_go,
    log_differences,
    log_writes,
    noted,
    versions,
)
from fusion.runtime.guard_writer import GuardWriter, head
from fusion.runtime.op_calls import call
from fusion.runtime.plan import KernelCall, PlanSpec, Source, Step, as_it_is, bound_later
from fusion.runtime.pytrees import tree_of, unflatten
from fusion.runtime.released_results import HandedOn, restored
from fusion.runtime.step_guards import StepGuards, WrittenStep
from fusion.runtime.verify import check_steps

_MOST_KEPT = 1 << 16  # bytes that a plan copies before it writes to them, in case it fails later


class Writer(GuardWriter):
    """Writes one plan. Use `write_plan`."""

    kept: frozenset[str] = frozenset()
    taps: frozenset[str] = frozenset()
    kept_before: frozenset[int] = frozenset()

    def __init__(self, shape: PlanSpec) -> None:
        super().__init__(shape)
        self.free: list[str] = []
        self.variables: set[str] = set()  # that hold what the plan makes
        self.logged = 0  # entries of the log so far
        self.logged_at: dict[str, int] = {}  # results of steps that only other steps read: their place in the log
        self.lending: set[int] = set()  # places in the log of calls that may have written to what is used afterwards
        self.lets_go = False
        self.groups = dict(shape.conditions.met)
        self.written: list[WrittenStep] = []  # the steps so far, and where they stand in the text
        by_operators = {r for n in self.graph.nodes if isinstance(n, OpNode) for r in n.refs}
        asked = {r for n in self.graph.nodes if self._reads_data(n) for r in n.refs}
        by_islands = {r for n in self.graph.nodes if isinstance(n, IslandNode) for r in n.refs}
        self.passed_on = by_islands - by_operators - asked

    def keeper(self, steps: Sequence[Step], log: bool) -> str:
        """Source of what keeps memory and generators as they were before the plan's lasting effects; notes where.

        A large tensor is kept only if a later check may still end the plan: an error after the write is then handed on.
        """
        at = [k for k, (kind, index) in enumerate(steps) if kind == "node" and index in self.graph.lasting]
        if log and any(isinstance(node, IslandNode) and node.lent for node in self.graph.nodes):
            self.kept_before = frozenset(steps[k][1] for k in at)
            return "UNDO(None)"
        if not at or (at == [len(steps) - 1] and not log):
            return "None"
        self.kept_before = frozenset(steps[k][1] for k in at)
        later = any(kind == "node" and isinstance(self.graph.nodes[i], IslandNode) for kind, i in steps[at[0] :])
        return f"UNDO({None if log or later else _MOST_KEPT})"

    def island(self, index: int, node: IslandNode, log: bool) -> None:
        """An island call, its log entry, and the checks on what it returned."""
        receiver = self.text(node.receiver) if isinstance(node.receiver, Ref) else self.path(node.receiver)
        method = self.outside(node.method) if node.method else ""
        pad = "        "
        if self._reads_data(node):
            asked = ", ".join(map(self.text, node.args or ()))
            self.lines.append(f"{pad}r = getattr({receiver}, {method})({asked})")
        elif node.args is None:
            self.lines.append(f"{pad}r = getattr({receiver}, {method})")
            self._note_found(node)
            if log:
                self.lines.append(f"{pad}SEEN.append([])")
        else:
            given = [f"i{index}_{p}" if bound_later(leaf) else self.text(leaf) for p, leaf in enumerate(node.args)]
            if node.kwargs:
                given.append(f"**{self._named(node)}")
            called = f"getattr({receiver}, {method})" if method else receiver
            lent = self._before_call(index, node, log)
            writes = [self._note_writes(node, lent, log)] if lent else []
            if node.given:
                self._call_with_nest(called, node.given, given, writes)
            else:
                self.lines.append(f"{pad}try: r = {called}({', '.join(given)})")
                self._raises("LoggedError(e)", writes)
                self._note_found(node)
                self.lines += [pad + line for line in writes]
        self.effects = self.effects or node.effect
        if node.structure not in ("leaf", "tuple", "list"):
            flatten, tree = self.name("flatten", pytree.tree_flatten), tree_of(node.structure)
            self.lines.append(f"{pad}r, tree = {flatten}(r)")
            self.miss(f"tree != {self.name('tree', tree)}", pad)
        elif node.structure != "leaf":
            self.miss(f"type(r) is not {node.structure} or len(r) != {len(node.outputs)}", pad)
        if node.structure != "leaf":
            targets = [f"t{k}" for k in range(len(node.outputs))]
            self.lines.append(f"{pad}{', '.join(targets)}{',' if len(targets) == 1 else ''} = r")
        else:
            targets = ["r"]
        tensors: list[str] = []
        for target, output in zip(targets, node.outputs, strict=True):
            if isinstance(output, Expect):
                self.miss(f"type({target}) is not {self.name('type', type(output.value))}", pad)
                self.miss(self.differs(target, output.value), pad)
            elif isinstance(output, (Argument, Ref)):
                self.miss(f"{target} is not {self.text(output)}", pad)
            elif output in self.made_objects:
                if node.kind is not None:
                    self.miss(f"{target}.__class__ is not {self.name('type', node.kind)}", pad)
                    self._check_new(target)
                self.lines.append(f"{pad}{output} = {target}")
            elif output in self.graph.spec:
                met = target if not node.copied else "found" if target == "r" else f"found[{target[1:]}]"
                if output in self.register or output in self.paths or output in self.given:
                    self.miss(f"{met} is not {self.value(output)}", pad)
                else:
                    group = self.groups.get(output)
                    if group is not None:
                        self.miss(f"not memory.may_alias({met}, {group})", pad)
                    if not node.effect and (group is None or group < 0):  # one that is written to may be read again
                        self._check_new(met)
                    self.lines.append(f"{pad}{self.allocate(output)} = {target}")
                tensors.append(output)
            else:
                symbol = next(s.symbol for s in self.graph.symbols if s.value == output)
                self.lines.append(f"{pad}{symbol} = {target}")
                if output in self.taps:
                    self.lines.append(f"{pad}TAP[{self.name('tap', output)}] = {symbol}")
                self.miss(f"type({symbol}) is not int or {symbol} < 2", pad)
                self.bound.add(symbol)
        if tensors:
            self.guard(tensors, [self.shape.devices[0]] * len(tensors), pad)
        self.flush(pad)

    def _named(self, node: OpNode | IslandNode) -> str:
        """Source of a dict of a call's arguments by keyword."""
        return "{" + ", ".join(f"{self.outside(k)}: {self.text(v)}" for k, v in node.kwargs) + "}"

    def _before_call(self, index: int, node: IslandNode, log: bool) -> list[str]:
        """Notes what a call is given before it may write to that; source of the tensors that are used afterwards."""
        pad, names = "        ", given_tensors(node, self.graph.spec)
        given = [self.value(name) for name in names]
        lent = [given[place] for place in node.lent]
        tensors = ", ".join(lent)
        if log:
            keep = self.name("kept", kept)
            seen = [f"{keep}({text})" if place in node.lent else text for place, text in enumerate(given)]
            self.lines.append(f"{pad}SEEN.append([{', '.join(seen)}])")
            if lent:
                outer = "".join(f"{self.path(path)}, " for path in self.paths.values())
                self.lines.append(f"{pad}{self.name('keep_outer', keep_outer)}(undo, ({outer}), {tensors})")
                self.lines.append(f"{pad}held = SEEN[-1]")
        elif lent:
            self.lines.append(f"{pad}held = {self.name('versions', versions)}({tensors})")
        return lent

    def _note_writes(self, node: IslandNode, lent: Sequence[str], log: bool) -> str:
        """Source of the note of what a call has written to."""
        tensors, names = ", ".join(lent), given_tensors(node, self.graph.spec)
        if log:
            return f"{self.name('log_differences', log_differences)}(log, held, {node.lent}, {tensors})"
        changing = tuple(place for place in node.lent if names[place] in self.graph.mutated)
        noted_ = f"{self.name('log_writes', log_writes)}(log, held, {node.lent}, {changing}, {tensors})"
        return f"if held is None or held != {self.name('versions', versions)}({tensors}): {noted_}"

    def _note_found(self, node: IslandNode) -> None:
        """Logs a call's result `r`. Where a later effect writes to it, that is a copy, and the result is `found`."""
        if node.copied:
            self.lines += ["        found = r", f"        r = {self.name('as_it_is', as_it_is)}(r)"]
        self.lines.append("        log.append(r)")

    def _check_new(self, found: str) -> None:
        """What was another object than all that was met before it is so in every call."""
        self.miss(f"id({found}) in met or id({found}) in OWN", "        ")
        self.lines.append(f"        met.add(id({found}))")

    def _met(self) -> str:
        """Source of the identities of what a call is given, parameters apart, where something is found in objects."""
        found = [n for n in self.graph.nodes if isinstance(n, IslandNode) and not n.effect]
        if not any(isinstance(o, str) and (n.kind or o in self.graph.spec) for n in found for o in n.outputs):
            return ""
        objects = [path for path, _ in self.shape.conditions.kinds]
        given = [*map(self.path, (*self.paths.values(), *objects))]
        given += [held.name for held in self.graph.objects if held.kind == "attribute"]
        return "{" + ", ".join(f"id({one})" for one in given) + "}" if given else "set()"

    def _raises(self, entry: str, writes: Sequence[str]) -> None:
        """What the log says of a call that raises."""
        pad = "        "
        if not writes:
            self.lines.append(f"{pad}except Exception as e: log.append({entry}); raise")
            return
        self.lines += [f"{pad}except Exception as e:", f"{pad}    log.append({entry})"]
        self.lines += [*(f"{pad}    {line}" for line in writes), f"{pad}    raise"]

    def _call_with_nest(self, called: str, given: str, leaves: Sequence[str], writes: Sequence[str]) -> None:
        """A call with lists or dicts among its arguments, made anew; one that changes them ends the plan."""
        pad = "        "
        noted_, before = self.name("noted", noted), f"{self.name('contents', contents)}(nest)"
        self.lines += [
            f"{pad}nest = {self._nested(tree_of(given), iter(leaves))}",
            f"{pad}before = {before}",
            f"{pad}try: r = {called}(*nest[0], **nest[1])",
        ]
        self._raises("LoggedError(e, before)", writes)
        self.lines += [
            f"{pad}log.append({noted_}(r, before))",
            f"{pad}nest = before = None",
            f"{pad}changed = type(log[-1]) is {self.name('container_change', LoggedContainerChange)}",
            *(pad + line for line in writes),
            f"{pad}if changed: raise Deoptimized",
        ]

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
        """Library calls, kernels and islands in order."""
        pad = "        "
        reads = [self._reads(step, kernels) for step in steps]
        last: dict[str, int] = {}
        for position, names in enumerate(reads):
            last.update(dict.fromkeys(names, position))
        returned = {leaf.name for leaf in self.graph.outputs if isinstance(leaf, Ref)}
        sources = {s.value for s in self.graph.symbols}
        self.kept = frozenset(returned | sources)
        self.taps = taps
        given = {*self.paths, *dict(self.graph.parameters), *self.graph.constants}
        for name in sorted(taps & given):
            self.lines.append(f"{pad}TAP[{self.name('tap', name)}] = {self.value(name)}")
        for position, (kind, index) in enumerate(steps):
            start = len(self.lines) + 1
            if kind == "region":
                made = self._kernel(index, kernels[index], reads[position], position, last)
            elif isinstance(self.graph.nodes[index], IslandNode):
                node = self.graph.nodes[index]
                assert isinstance(node, IslandNode)
                if not log:
                    self._let_go(node)
                self.island(index, node, log)
                self.release(reads[position], position, last)
                made = [o for o in node.outputs if isinstance(o, str) and o in self.graph.spec]
            else:
                made = self._operator(index, reads[position], position, last)
            nodes = kernels[index].nodes if kind == "region" else (index,)
            variables = {name: self.register[name] for name in made if name in self.register}
            self.written.append(WrittenStep(start, nodes, variables))
            for name in made:
                if name in taps:
                    self.lines.append(f"{pad}TAP[{self.name('tap', name)}] = {self.value(name)}")
            self.release(made, position, last)
            if log and self.free:  # a plan that runs beside eager has no memory to spare
                self.lines.append(f"{pad}{' = '.join(self.free)} = None")

    def _let_go(self, node: IslandNode) -> None:
        """Takes out of the log what the forward has given up by the time it makes a call, if only steps read it."""
        for name in node.dead_results:
            if name in self.logged_at:
                gone = self.name("gone", HandedOn(self.spec(name), self.shape.devices[0]))
                place = self.logged_at.pop(name)
                plain = f"log[{place}] = {gone}"
                with_writes = f"{self.name('let_go', let_go)}(log, {place}, {gone})"
                self.lines.append(f"        {with_writes if place in self.lending else plain}")
                self.lets_go = True
        self.logged += not self._reads_data(node)
        if node.lent:
            self.lending.add(self.logged - 1)
        passed_on = node.structure == "leaf" and node.outputs[0] in self.passed_on.intersection(self.graph.spec)
        if node.effect and isinstance(node.receiver, Ref) and passed_on:
            self.logged_at[node.outputs[0]] = self.logged - 1

    def _reads_data(self, node: OpNode | IslandNode) -> bool:
        receiver = node.receiver if isinstance(node, IslandNode) else None
        return isinstance(receiver, Ref) and receiver.name in self.graph.spec

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

    def _operator(self, index: int, reads: Sequence[str], position: int, last: Mapping[str, int]) -> list[str]:
        node = self.graph.nodes[index]
        assert isinstance(node, OpNode)
        known = self.graph.spec.get(node.outputs[0]) if node.outputs else None
        source = call(node, self.text, self.name, known, hold_scalars=True)
        if index in self.kept_before:
            given = "".join(f"{self.text(a)}, " for a in node.args)
            named = self._named(node)
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
        result = self._nested(self.shape.tree, iter([self.text(leaf) for leaf in self.graph.outputs]))
        if log or not items:
            self.lines.append(f"{pad}return {result}")
            return
        self.lines.append(f"{pad}r, t0 = {result}")
        for k, (path, key) in enumerate(items):
            self.lines.append(f"{pad}{self.path((*path, key))} = t0[{k}]")
        self.lines.append(f"{pad}return r")

    def _nested(self, tree: pytree.TreeSpec, leaves: Iterator[str]) -> str:
        """Source of a nest of leaves, which are taken off in order."""
        if tree.is_leaf():
            return next(leaves)
        if tree.type not in (tuple, list, dict):
            taken = ", ".join(next(leaves) for _ in range(tree.num_leaves))
            if tree.type is torch.Size:  # which torch's pytrees would make a plain tuple
                return f"{self.name('Size', torch.Size)}([{taken}])"
            return f"{self.name('unflatten', unflatten)}([{taken}], {self.name('tree', tree)})"
        inner = [self._nested(child, leaves) for child in tree.children()]
        if tree.type is dict:
            keys = [self.outside(key) for key in tree.context]
            return "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, inner, strict=True)) + "}"
        text = ", ".join(inner)
        return f"[{text}]" if tree.type is list else f"({text}{',' if len(inner) == 1 else ''})"


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
        log: leave islands' tensor arguments in the list `SEEN`, and their results in the list `LOGGED`.

    Names to bind: parameters, constants and island constants by value name, kernel0.., `FAIL(error, log, arguments,
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
    met = writer._met()
    writer.lines += [f"    met = {met}"] if met else []
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
