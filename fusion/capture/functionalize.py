"""In-place calls as functional ones, where nobody could tell: so that they can be part of a kernel.

`v1 = add_(v0, y)` becomes `v1 = add(v0, y)` when the run itself made the memory of `v0` and no other value in that
memory is used afterwards. What stays in place stays in order; `mutated` says which values that makes unsafe to touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusion.capture.settled_calls import SettledCalls
from fusion.capture.writes_to_cat import slices_to_cat
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import Node, OpNode, argument_tensors, made_by
from fusion.patterns.ops import CALLED, Kind, kind_of, resolve
from fusion.patterns.ops.effects import draws, has_effect, names_written
from fusion.patterns.ops.spellings import functional
from fusion.patterns.python_nodes import NewObject, OpaqueCall
from fusion.refusal import Refused

_TO_DTYPE = "aten.to.dtype"


class Functionalized:
    """A recording's calls once in-place ones are settled.

    Args:
        recorder: the finished recorder; it is given the shadows and real tensors of new values.
        returned: names of the values in the result.

    Attributes:
        calls: the calls, as they are now.
        mutated: values whose memory is written to after they are made.
        renamed: constants that each run starts from a copy of: the name of the copy.
        outer: memory that is written to and outlives the run.
        outer_writes: indices of the calls that write to it.
        draws: indices of the calls that draw random numbers.
    """

    def __init__(self, recorder: Any, returned: Sequence[str]) -> None:
        self.calls = SettledCalls(recorder, returned)
        self.recorder = recorder
        met = set(self.calls.memory.values())
        self.native = {(i, key) for i, key in recorder.state.effects.native if key in met}
        self.renamed: dict[str, str] = {}
        self.last: dict[str, int] = {name: i for i, n in enumerate(self.calls.nodes) for name in n.refs}
        self.last.update(dict.fromkeys(self.calls.returned, len(self.calls.nodes)))
        self._note_lent()
        self._copy_before_unknown_writes()
        for name, i in recorder.reads.copied:
            self._copy(name, i)
        self._check_elided()
        for i in [i for i, _ in self.calls.writes]:
            self._functionalize(i)
        for key in dict.fromkeys(key for _, key in self.calls.writes):
            slices_to_cat(self.calls, key)
        self.mutated = {
            name
            for name, key in self.calls.memory.items()
            if any(k == key and i > self.calls.made_at(name) for i, k in self.calls.writes)
        }
        self.outer = {k for _, k in self.calls.writes if k >= 0 and k not in recorder.state.effects.made}
        memory = self.calls.memory
        lent = {memory[o] for n in self.calls.nodes if not isinstance(n, OpNode) for o in made_by(n) if o in memory}
        self.outer -= lent & {key for _, key in self.native}  # a call's own memory, which another hands to it again
        self._check_native()
        self._check_shared()
        outer_writes = sorted({i for i, k in self.calls.writes if k in self.outer})
        drawing = [i for i, n in enumerate(self.calls.nodes) if isinstance(n, OpNode) and _draws(n)]
        self._copy_constants()
        places = self._insert()
        self.outer_writes = tuple(places[i] for i in outer_writes)
        self.draws = tuple(places[i] for i in drawing)

    def _check_elided(self) -> None:
        written = {key for _, key in self.calls.writes}
        for name in self.recorder.state.effects.elided:
            if self.calls.memory[name] in written:
                what = "whether contiguous() copies decides what an in-place operator writes to"
                raise Refused("guard", what, self._writer_of(self.calls.memory[name]), "write to a clone()")

    def _writer_of(self, key: int) -> str:
        """The user's line that first writes to some memory."""
        return next((self.calls.nodes[i].origin for i, written in self.calls.writes if written == key), "")

    def _note_lent(self) -> None:
        """Which tensors a native call is given that it wrote to, or may in another call, as they are used after it."""
        used: dict[int, int] = {}  # the last use of each memory
        answered: set[int] = set()  # memory of what earlier Python nodes gave
        for name, i in self.last.items():
            if name in self.calls.memory:
                used[self.calls.memory[name]] = max(i, used.get(self.calls.memory[name], -1))
        for i, node in enumerate(self.calls.nodes):
            if isinstance(node, OpaqueCall | NewObject) and node.effect:
                tensors = argument_tensors(node, self.calls.memory)
                memory = [self.calls.memory[name] for name in tensors]
                lent = tuple(p for p, key in enumerate(memory) if used.get(key, -1) > i or (i, key) in self.native)
                old = {p: (i, memory[p]) in self.native for p in lent if memory[p] in answered}
                given_back = {self.calls.memory[o] for o in made_by(node) if o in self.calls.memory}
                back = tuple(p for p, key in enumerate(memory) if key in given_back)
                written, others = (tuple(p for p, seen in old.items() if seen is wanted) for wanted in (True, False))
                node = replace(node, lent=lent, overwrites=written, may_overwrite=others, passed_back=back)
                self.calls.nodes[i] = self.recorder.state.nodes[i] = node
            if not isinstance(node, OpNode):
                answered.update(self.calls.memory[o] for o in made_by(node) if o in self.calls.memory)

    def _copy_before_unknown_writes(self) -> None:
        """What a native call writes to without the forward ever meeting it may, in another call, be what was found."""
        recorder = self.recorder
        given = {
            self.calls.memory[n]
            for n in (*(g.name for g in recorder.state.arguments.inputs), *recorder.state.values.parameters)
        }
        for name, found in recorder.reads.lookups:
            i = next((i for i in recorder.reads.unknown_writes if i > found), None)
            key = self.calls.memory[name]
            written = any(k == key for _, k in self.calls.writes)
            known = key in given or written or any(name == n for n, _ in recorder.reads.copied)
            if i is None or known or not any(n in self.last for n, k in self.calls.memory.items() if k == key):
                continue
            self.calls.nodes[found] = recorder.state.nodes[found] = replace(recorder.state.nodes[found], copied=True)
            recorder.reads.copied.append((name, i))

    def _copy(self, name: str, i: int) -> None:
        """A value found inside an object, which native call `i` writes to, is a copy in plans."""
        key, fresh = self.calls.memory[name], -2 * i - 1
        older = [n for n, k in self.calls.memory.items() if k == key and self.calls.made_at(n) < i]
        state = self.recorder.state
        given = {self.calls.memory[n] for n in (*(g.name for g in state.arguments.inputs), *state.values.parameters)}
        if (
            key in given
            or any(self.last.get(n, -1) > i for n in older)
            or any(k == key and j < i for j, k in self.calls.writes)
        ):
            what = "a call made as it is writes to what an object holds and the forward uses otherwise"
            raise Refused("outer_write", what, self.calls.nodes[i].origin)
        self.calls.memory.update(dict.fromkeys(older, fresh))
        self.calls.writes = [(j, k) for j, k in self.calls.writes if (j, k) != (i, key)]
        self.native.discard((i, key))

    def _check_native(self) -> None:
        """A native call is not made again when the rest of a run is, so nobody may have read what it overwrites."""
        for key in {key for _, key in self.native} & self.outer:
            last = max(i for i, k in self.native if k == key)
            users = {
                i for i, n in enumerate(self.calls.nodes[:last]) if any(self.calls.memory.get(r) == key for r in n.refs)
            }
            users |= {i for i, k in self.calls.writes if k == key}
            if not users <= {i for i, k in self.native if k == key}:
                what = "a call made as it is writes to a tensor of the caller's that is used before"
                raise Refused("outer_write", what, self.calls.nodes[last].origin)

    def _check_shared(self) -> None:
        """What a native call returns may be its argument in one call and a copy in the next: `x.contiguous()`. Then
        whoever writes to one of them in place must not find the other in use."""
        written = [(i, key) for i, key in self.calls.writes if (i, key) not in self.native]
        for j, node in enumerate(self.calls.nodes):
            later = {key for i, key in written if i > j}
            if not later or isinstance(node, OpNode):
                continue
            given = {self.calls.memory[name] for name in node.refs if name in self.calls.memory}
            made = {self.calls.memory[o] for o in made_by(node) if o in self.calls.memory}
            if not (given and made):
                continue
            used = {self.calls.memory[r] for n in self.calls.nodes[j + 1 :] for r in n.refs if r in self.calls.memory}
            used |= {self.calls.memory[name] for name in self.calls.returned if name in self.calls.memory}
            if later & made & given or (later & made and used & given) or (later & given and used & made):
                raise Refused(
                    "outer_write", "what a call made as it is returned, or was given, is written to", node.origin
                )

    # ---- one call

    def _functionalize(self, i: int) -> None:
        node = self.calls.nodes[i]
        if not isinstance(node, OpNode):
            return
        targets = names_written(node)
        spelling = functional(node.op)
        if len(targets) != 1 or len(node.outputs) != 1 or spelling is None or spelling.writes is None:
            return
        if kind_of(spelling.op) in (*CALLED, Kind.EFFECT) or not self._alone(targets[0], i):
            return
        kwargs = tuple((k, v) for k, v in node.kwargs if k != spelling.writes)
        call = OpNode(spelling.op, node.args, kwargs, node.outputs, node.origin)
        if not has_effect(call) and self._shadow(call, targets[0], i):
            self._take_out(i, node.outputs[0], self.calls.memory[targets[0]])

    def _alone(self, target: str, i: int) -> bool:
        """Whether call `i` is the last user of the target's memory, but for what is made of its result."""
        key = self.calls.memory[target]
        if key >= 0 and key not in self.recorder.state.effects.made:
            return False
        older = [name for name, k in self.calls.memory.items() if k == key and self.calls.made_at(name) < i]
        if any(self.last.get(name, -1) > i for name in older):
            return False
        in_python = [node for node in self.calls.nodes[:i] if not isinstance(node, OpNode)]
        passed = {name for node in in_python for name in (*node.refs, *made_by(node))}
        return passed.isdisjoint(older)

    def _shadow(self, call: OpNode, target: str, i: int) -> bool:
        """Puts the functional call in place if its result is laid out as the written tensor; casts it if need be."""
        recorder, old = self.recorder, self.recorder.state.values.fakes[target]
        try:
            made = self.calls.run(call, recorder.state.values.fakes, fake=True)
            cast = made if made.dtype == old.dtype else self.calls.quietly(lambda: made.to(old.dtype))
        except Exception:  # torch has no shape function for it: it stays in place
            return False
        if not self.calls.same_layout(cast, old):
            return False
        (name,) = call.outputs
        if cast is not made:
            wide = f"w{i}"
            recorder.state.values.fakes[wide] = made
            recorder.state.values.real[wide] = self.calls.run(call, recorder.state.values.real, fake=False)
            self.calls.memory[wide] = -2 * i - 2
            self.calls.made[wide] = i
            self.calls.before[i] = replace(call, outputs=(wide,))
            call = OpNode(_TO_DTYPE, (Ref(wide), old.dtype), (), (name,), call.origin)
        self.calls.nodes[i] = call
        recorder.state.values.fakes[name] = cast
        return True

    def _take_out(self, i: int, made: str, key: int) -> None:
        """Call `i` writes to nothing any more: what it makes, and what is made of that, lives in memory of its own."""
        fresh = -2 * i - 1
        for name, k in self.calls.memory.items():
            if k == key and self.calls.made_at(name) >= i:
                self.calls.memory[name] = fresh
        self.calls.writes = [(j, fresh if k == key and j > i else k) for j, k in self.calls.writes if j != i]

    # ---- constants

    def _copy_constants(self) -> None:
        """A constant that is written to or handed out is copied at the start of each run."""
        outgoing = {self.calls.memory[name] for name in self.calls.returned if name in self.calls.memory}
        for name in self.recorder.state.values.constants:
            if name in self.mutated or self.calls.memory[name] in outgoing:
                self.renamed[name] = f"k{name}"
        if not self.renamed:
            return

        def copy_of(name: str) -> str:
            return self.renamed.get(name, name)

        self.calls.nodes = [n.renamed(copy_of) for n in self.calls.nodes]
        self.calls.before = {i: n.renamed(copy_of) for i, n in self.calls.before.items()}
        self.mutated = set(map(copy_of, self.mutated))
        for name, copy in self.renamed.items():
            self.recorder.state.values.fakes[copy] = self.recorder.state.values.fakes[name]
            self.recorder.state.values.real[copy] = self.recorder.state.values.real[name]

    def _insert(self) -> list[int]:
        """Puts the new calls in between; where each call stands then."""
        copies: list[Node] = [OpNode("aten.clone.default", (Ref(c),), (), (k,)) for c, k in self.renamed.items()]
        places = []
        for i, node in enumerate(self.calls.nodes):
            if i in self.calls.before:
                copies.append(self.calls.before[i])
            places.append(len(copies))
            if i not in self.calls.dropped:
                copies.append(node)
        self.calls.nodes = copies
        return places


def _draws(node: OpNode) -> bool:
    return draws(resolve(node.op), node.args, dict(node.kwargs))
