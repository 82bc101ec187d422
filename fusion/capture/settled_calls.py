"""A recording's calls while in-place ones are made functional: which memory each value is in, and who writes to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fusion.capture.released_memory import alike
from fusion.capture.symbolic_shapes import hint, is_symbolic
from fusion.patterns.leaves import Ref, map_leaves
from fusion.patterns.nodes import Node, OpNode, made_by
from fusion.patterns.ops import resolve


class SettledCalls:
    """A recording's calls, which change as in-place ones are settled.

    Args:
        recorder: the finished recorder; it is given the shadows and real tensors of new values.
        returned: names of the values in the result.

    Attributes:
        nodes: the calls.
        memory: by value name: a key of the memory it is in.
        writes: (index of a call, key of the memory it writes to), in the order of execution.
        made: by value name: the index of the call that makes it.
        before: calls to put in front of others, by their index.
        dropped: indices of calls that nothing needs any more.
    """

    def __init__(self, recorder: Any, returned: Sequence[str]) -> None:
        self.recorder = recorder
        self.nodes: list[Node] = list(recorder.state.nodes)
        self.memory: dict[str, int] = dict(recorder.state.effects.memory)
        met = set(self.memory.values())
        self.writes: list[tuple[int, int]] = [(i, key) for i, key in recorder.state.effects.writes if key in met]
        self.returned = set(returned)
        self.before: dict[int, OpNode] = {}
        self.dropped: set[int] = set()
        self.made = {o: i for i, n in enumerate(self.nodes) for o in made_by(n)}

    def op(self, i: int) -> OpNode:
        """Node `i`, which is a call."""
        node = self.nodes[i]
        assert isinstance(node, OpNode)
        return node

    def made_at(self, name: str) -> int:
        """The index of the call that makes a value; -1 for what enters."""
        return self.made.get(name, -1)

    def run(self, call: OpNode, tensors: Any, *, fake: bool) -> torch.Tensor:
        """The one result of a call on the tensors of its operands' names, real ones or shadows."""

        held = {name: tensors[name] for name in call.refs}
        if not fake:
            held = alike(held)

        def leaf(x: Any) -> Any:
            return held[x.name] if isinstance(x, Ref) else x if fake else hint(x)

        args, kwargs = map_leaves(leaf, call.args), {k: map_leaves(leaf, v) for k, v in call.kwargs}
        function = resolve(call.op)
        made: torch.Tensor = self.quietly(lambda: function(*args, **kwargs)) if fake else function(*args, **kwargs)
        return made

    def known(self, size: Any) -> Any:
        """A size, to be compared with others in every call that the recording stands for; comparing leaves no guard."""
        return self.recorder.state.fake_values.env.replace(size.node.expr) if is_symbolic(size) else size

    def same_layout(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        """Whether two shadows agree in every call that this recording stands for; asking leaves no guard."""
        ours, theirs = ([*map(self.known, t.shape), *map(self.known, t.stride())] for t in (a, b))
        return a.device == b.device and ours == theirs

    def quietly(self, build: Any) -> Any:
        """What `build` makes of shadows; none of it is recorded."""

        def call() -> Any:
            with self.recorder.state.fake_values.mode:
                return build()

        return self.recorder.state.quiet(call)
