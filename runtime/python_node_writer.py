"""What a plan does for the nodes of a graph that are no operators: each kind's own text, then checks on what it gave.

A plan logs every result but a tensor's data, so that a re-run of the original gets the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from fusion.patterns.leaves import Argument, Attribute, Expect, Leaf, Ref
from fusion.patterns.nodes import argument_tensors
from fusion.patterns.python_nodes import (
    Keywords,
    Method,
    NewObject,
    ObjectRead,
    OpaqueCall,
    PythonNode,
    Receiver,
    TensorRead,
)
from fusion.runtime.call_log import (
    LoggedContainerChange,
    contents,
    held_before,
    keep_outer,
    kept,
    log_differences,
    log_writes,
    note_overwritten,
    note_passed_back,
    noted,
    versions,
)
from fusion.runtime.guard_writer import GuardWriter
from fusion.runtime.nest_source import keywords, nested
from fusion.runtime.plan import as_it_is, bound_later
from fusion.runtime.pytrees import tree_of

_PAD = "        "


class PythonNodeWriter:
    """Writes nodes that are no operators into a plan.

    Args:
        plan: the plan's names, values, checks and lines.
        allocate: gives a tensor value a local variable.
        taps: values to leave in the dict `TAP` on the way.
        log: whether the plan leaves what it gives to calls in `SEEN`.
    """

    def __init__(self, plan: GuardWriter, allocate: Callable[[str], str], taps: Collection[str], log: bool) -> None:
        self.plan = plan
        self.graph = plan.graph
        self.lines = plan.lines
        self.allocate = allocate
        self.taps = taps
        self.log = log
        self.groups = dict(plan.shape.conditions.opaque_aliases)

    def write(self, index: int, node: PythonNode) -> None:
        """Node `index`, its log entry, and the checks on what it gave."""
        match node:
            case OpaqueCall():
                self._call(index, node)
            case NewObject():
                self._make(index, node)
            case ObjectRead():
                self._read(index, node)
            case TensorRead():
                self._ask(node)
        self.plan.effects = self.plan.effects or node.effect
        self._results(node)

    # ---- each kind

    def _call(self, index: int, node: OpaqueCall) -> None:
        """`r = cache.update(v1, v2)`."""
        if isinstance(node.callee, Method):
            called = self._member(node.callee.receiver, node.callee.name)
        else:
            called = self.plan.text(node.callee)
        given = self._given(index, node.args, node.kwargs)
        writes = self._before(node)
        if node.nest:
            self._call_with_nest(called, node.nest, given, writes)
        else:
            self._attempt(f"{called}({', '.join(given)})", writes)
            self._note(node.copied)
            self.lines += [_PAD + line for line in writes]

    def _make(self, index: int, node: NewObject) -> None:
        """`r = h0(v1)`: the constructor of a class."""
        called = self.plan.text(node.constructor)
        given = self._given(index, node.args, node.kwargs)
        writes = self._before(node)
        self._attempt(f"{called}({', '.join(given)})", writes)
        self._note(False)
        self.lines += [_PAD + line for line in writes]

    def _read(self, index: int, node: ObjectRead) -> None:
        """`r = getattr(a1, key)`, or an item by the method that answers."""
        if isinstance(node.member, Attribute):
            self.lines.append(f"{_PAD}r = {self._member(node.receiver, str(node.member))}")
            self._note(node.copied)
            if self.log:
                self.lines.append(f"{_PAD}SEEN.append([])")
            return
        called = self._member(node.receiver, node.member.method)
        given = self._given(index, node.member.args, ())
        self._before(node)
        self._attempt(f"{called}({', '.join(given)})", ())
        self._note(node.copied)

    def _ask(self, node: TensorRead) -> None:
        """`r = getattr(v3, key)()`."""
        self.lines.append(f"{_PAD}r = {self._member(node.tensor, node.method)}()")

    def _member(self, receiver: Receiver, name: str) -> str:
        """Source of a member of an object. Its name comes from outside and is never text."""
        held = self.plan.text(receiver) if isinstance(receiver, Ref) else self.plan.path(receiver)
        return f"getattr({held}, {self.plan.outside(name)})"

    # ---- a call

    def _given(self, index: int, args: tuple[Leaf, ...], kwargs: Keywords) -> list[str]:
        """Source of a call's arguments. Numbers are bound by name: scopes that differ in them share the text."""
        given = [f"i{index}_{p}" if bound_later(leaf) else self.plan.text(leaf) for p, leaf in enumerate(args)]
        return [*given, f"**{keywords(self.plan, kwargs)}"] if kwargs else given

    def _before(self, node: OpaqueCall | NewObject | ObjectRead) -> list[str]:
        """Notes what a call is given before it may write to that; source of the notes of what it has done with it."""
        plan, names = self.plan, argument_tensors(node, self.graph.spec)
        lent = () if isinstance(node, ObjectRead) else node.lent
        given = [plan.value(name) for name in names]
        tensors = ", ".join(given[place] for place in lent)
        notes: list[str] = []
        if self.log:
            keep = plan.name("kept", kept)
            seen = [f"{keep}({text})" if place in lent else text for place, text in enumerate(given)]
            self.lines.append(f"{_PAD}SEEN.append([{', '.join(seen)}])")
            if lent:
                outer = "".join(f"{plan.path(path)}, " for path in plan.paths.values())
                self.lines.append(f"{_PAD}{plan.name('keep_outer', keep_outer)}(undo, ({outer}), {tensors})")
                self.lines.append(f"{_PAD}held = SEEN[-1]")
                notes.append(f"{plan.name('log_differences', log_differences)}(log, held, {lent}, {tensors})")
        elif lent and not isinstance(node, ObjectRead):
            self.lines.append(f"{_PAD}held = {plan.name('versions', versions)}({tensors})")
            old = {*node.overwrites, *node.may_overwrite}
            changing = tuple(place for place in lent if place in old or names[place] in self.graph.mutated)
            note = f"{plan.name('log_writes', log_writes)}(log, held, {lent}, {changing}, {tensors})"
            notes.append(f"if held is None or held != {plan.name('versions', versions)}({tensors}): {note}")
            if old:
                texts = ("".join(f"{given[p]}, " for p in ps) for ps in (node.overwrites, node.may_overwrite))
                kept_ones = ", ".join(f"({text})" for text in texts)
                self.lines.append(f"{_PAD}old = {plan.name('held_before', held_before)}({kept_ones})")
                notes.append(f"{plan.name('note_overwritten', note_overwritten)}(log, old)")
        if not isinstance(node, ObjectRead) and node.passed_back:
            back = ", ".join(given[place] for place in node.passed_back)
            notes.append(f"{plan.name('note_passed_back', note_passed_back)}(log, {node.passed_back}, {back})")
        return notes

    def _attempt(self, call: str, writes: Sequence[str]) -> None:
        """A call whose error goes into the log."""
        self.lines.append(f"{_PAD}try: r = {call}")
        self._raises("LoggedError(e)", writes)

    def _raises(self, entry: str, writes: Sequence[str]) -> None:
        """What the log says of a call that raises."""
        if not writes:
            self.lines.append(f"{_PAD}except Exception as e: log.append({entry}); raise")
            return
        self.lines += [f"{_PAD}except Exception as e:", f"{_PAD}    log.append({entry})"]
        self.lines += [*(f"{_PAD}    {line}" for line in writes), f"{_PAD}    raise"]

    def _call_with_nest(self, called: str, nest: str, leaves: Sequence[str], writes: Sequence[str]) -> None:
        """A call with lists or dicts among its arguments, made anew; one that changes them ends the plan."""
        plan = self.plan
        note, before = plan.name("noted", noted), f"{plan.name('contents', contents)}(nest)"
        self.lines += [
            f"{_PAD}nest = {nested(plan, tree_of(nest), iter(leaves))}",
            f"{_PAD}before = {before}",
            f"{_PAD}try: r = {called}(*nest[0], **nest[1])",
        ]
        self._raises("LoggedError(e, before)", writes)
        self.lines += [
            f"{_PAD}log.append({note}(r, before))",
            f"{_PAD}nest = before = None",
            f"{_PAD}changed = type(log[-1]) is {plan.name('container_change', LoggedContainerChange)}",
            *(_PAD + line for line in writes),
            f"{_PAD}if changed: raise Deoptimized",
        ]

    def _note(self, copied: bool) -> None:
        """Logs a result `r`. Where a later effect writes to it, that is a copy, and the result is `found`."""
        if copied:
            self.lines += [f"{_PAD}found = r", f"{_PAD}r = {self.plan.name('as_it_is', as_it_is)}(r)"]
        self.lines.append(f"{_PAD}log.append(r)")

    # ---- what it gave

    def _results(self, node: PythonNode) -> None:
        """Takes the result `r` apart, and checks and binds each leaf."""
        tensors: list[str] = []
        for target, output in zip(self._targets(node), node.outputs, strict=True):
            if isinstance(output, Expect):
                self.plan.miss(f"type({target}) is not {self.plan.name('type', type(output.value))}", _PAD)
                self.plan.miss(self.plan.differs(target, output.value), _PAD)
            elif isinstance(output, (Argument, Ref)):
                self.plan.miss(f"{target} is not {self.plan.text(output)}", _PAD)
            elif output in self.plan.made_objects:
                self._object(node, target, output)
            elif output in self.graph.spec:
                self._tensor(node, target, output)
                tensors.append(output)
            else:
                self._number(target, output)
        if tensors:
            self.plan.guard(tensors, [self.plan.shape.devices[0]] * len(tensors), _PAD)
        self.plan.flush(_PAD)

    def _targets(self, node: PythonNode) -> list[str]:
        """Variables of the flattened result, whose nest is checked."""
        if node.structure == "leaf":
            return ["r"]
        if node.structure in ("tuple", "list"):
            self.plan.miss(f"type(r) is not {node.structure} or len(r) != {len(node.outputs)}", _PAD)
        else:
            flatten, tree = self.plan.name("flatten", pytree.tree_flatten), tree_of(node.structure)
            self.lines.append(f"{_PAD}r, tree = {flatten}(r)")
            self.plan.miss(f"tree != {self.plan.name('tree', tree)}", _PAD)
        targets = [f"t{k}" for k in range(len(node.outputs))]
        self.lines.append(f"{_PAD}{', '.join(targets)}{',' if len(targets) == 1 else ''} = r")
        return targets

    def _object(self, node: PythonNode, target: str, output: str) -> None:
        """An object that was made, or found for the first time."""
        if isinstance(node, ObjectRead) and node.kind is not None:
            self.plan.miss(f"{target}.__class__ is not {self.plan.name('type', node.kind)}", _PAD)
            self._check_new(target)
        self.lines.append(f"{_PAD}{output} = {target}")

    def _tensor(self, node: PythonNode, target: str, output: str) -> None:
        """A tensor: the one that was known before, or one in other memory than all that is written to."""
        plan, met = self.plan, target
        if isinstance(node, OpaqueCall | ObjectRead) and node.copied:
            met = "found" if target == "r" else f"found[{target[1:]}]"
        if output in plan.register or output in plan.paths or output in plan.given:
            plan.miss(f"{met} is not {plan.value(output)}", _PAD)
            return
        group = self.groups.get(output)
        if group is not None:
            plan.miss(f"not memory.may_alias({met}, {group})", _PAD)
        if not node.effect and (group is None or group < 0):  # one that is written to may be read again
            self._check_new(met)
        self.lines.append(f"{_PAD}{self.allocate(output)} = {target}")

    def _number(self, target: str, output: Any) -> None:
        """A number that a size symbol stands for."""
        symbol = next(s.symbol for s in self.graph.symbols if s.value == output)
        self.lines.append(f"{_PAD}{symbol} = {target}")
        if output in self.taps:
            self.lines.append(f"{_PAD}TAP[{self.plan.name('tap', output)}] = {symbol}")
        self.plan.miss(f"type({symbol}) is not int or {symbol} < 2", _PAD)
        self.plan.bound.add(symbol)

    def _check_new(self, found: str) -> None:
        """What was another object than all that was met before it is so in every call."""
        self.plan.miss(f"id({found}) in met or id({found}) in OWN", _PAD)
        self.lines.append(f"{_PAD}met.add(id({found}))")
