"""Whether fusing a region pays: first by rule, then by proof and measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fusion.choices.decision import Decision, best
from fusion.choices.kernel_cache import Backends, Kernel, KernelChoice
from fusion.choices.proof import prove
from fusion.config import FusionConfig
from fusion.kernels.backend import waits_for
from fusion.kernels.lower import given_symbols
from fusion.partition import cost_model
from fusion.patterns import known_products, symbols
from fusion.patterns.graph import SubGraph
from fusion.patterns.ops import Kind, kind_of
from fusion.patterns.reference import bind_symbols
from fusion.patterns.shortage import is_shortage
from fusion.runtime.measure import compare, eager_function

_LONG_US = 1000.0  # eager time from which a call's overhead is negligible, so that a gain of a tenth is worth having
_SECONDS = 0.02  # time a measurement may take, beyond its least number of samples

Launcher = Callable[..., Any]


def bytes_moved(graph: SubGraph, values: Mapping[str, int]) -> tuple[int, int]:
    """Bytes read and written by a SubGraph's operators one by one, and by one kernel; views move nothing.

    Args:
        graph: the SubGraph.
        values: the value of every size symbol.
    """
    expected = cost_model.estimate(graph, values)
    return expected.bytes_before, expected.bytes_after


class FusionHeuristics:
    """Decides by the rules of a config.

    Args:
        config: `min_nodes`, `min_tensor_elements`, `fusion_ratio`, `verify` and `profile` are read.
    """

    def __init__(self, config: FusionConfig | None = None) -> None:
        self.config = FusionConfig.resolve(config)

    def should_fuse(self, graph: SubGraph, values: Mapping[str, int] | None = None) -> Decision:
        """The static decision: enough operators, enough elements, and fewer bytes or launches than before.

        Args:
            graph: the region.
            values: size symbols' values; without them only rules that need no sizes apply.
        """
        compute = [n for n in graph.nodes if kind_of(n.op) is not Kind.VIEW]
        if len(compute) < self.config.min_nodes:
            return Decision(
                False, "too_small", f"{len(compute)} operators, fewer than min_nodes={self.config.min_nodes}"
            )
        if values is None:
            return Decision(True, "unmeasured", f"{len(compute)} operators become one kernel")
        expected = cost_model.estimate(graph, values)
        before, after = expected.bytes_before, expected.bytes_after
        elements = max(math.prod(symbols.evaluate(d, values) for d in graph.spec[o].shape) for o in graph.outputs)
        if elements < self.config.min_tensor_elements:
            least = self.config.min_tensor_elements
            reason = f"{elements} elements, fewer than min_tensor_elements={least}"
            return Decision(False, "few_elements", reason, bytes_before=before, bytes_after=after)
        product = any(kind_of(n.op) is Kind.PRODUCT for n in compute)  # how fast torch's is, only measuring tells
        if expected.saved_us <= 0 and self.config.profile and not product:
            reason = f"{before} bytes become {after}, {expected.operations} operations: no gain is expected"
            return Decision(False, "no_gain", reason, bytes_before=before, bytes_after=after)
        reason = f"{len(compute)} operators become one kernel; {before} bytes become {after}"
        return Decision(True, "unmeasured", reason, bytes_before=before, bytes_after=after)

    def profile_and_decide(
        self,
        graph: SubGraph,
        inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
        kernel: Launcher | None = None,
    ) -> Decision:
        """Proves the kernel against eager and double precision on `inputs`, times both, and decides.

        Args:
            graph: the region.
            inputs: a tensor for every input, by name or in order.
            kernel: takes the inputs in order, then the sizes its nest is given; None compiles every candidate.

        Returns:
            the decision with both times in microseconds.

        Raises:
            StructureMismatch: the inputs do not have the graph's structure.
        """
        tensors = inputs if isinstance(inputs, Mapping) else dict(zip(graph.inputs, inputs, strict=True))
        values = bind_symbols(graph, tensors)
        real = [tensors[i] for i in graph.inputs]
        if kernel is not None:
            return self.judge(graph, real, values, kernel, ())
        choice = Backends(self.config).compile([graph])[0]
        if any(given_symbols(candidate.nest) for candidate in choice.kernels.values()):
            return Decision(False, "guard", "its sizes cannot be read off its inputs")
        return self.choose(graph, real, values, choice, ())

    def choose(
        self,
        graph: SubGraph,
        tensors: Sequence[torch.Tensor],
        values: Mapping[str, int],
        choice: KernelChoice,
        given: Sequence[int],
        known: Decision | None = None,
    ) -> Decision:
        """Proves and times every candidate for a region, and takes the fastest that is accurate and fast enough.

        Args:
            graph: the region.
            tensors: its inputs, in order.
            values: of its size symbols.
            choice: its candidates.
            given: what launchers take after the inputs.
            known: a decision that was measured before: the kernel it chose is proved, and nothing is timed, unless
                that proof fails. Then the others compete.
        """

        def judged(kernel: Kernel, measured: Decision | None = None) -> Decision:
            return self.judge(graph, tensors, values, kernel.launch, given, measured=measured)

        decisions = dict(choice.refusals)
        if known is not None:
            again = judged(choice.kernels[known.chosen], known)
            if again.fused:
                return known
            decisions[known.chosen] = again
        for label, kernel in choice.kernels.items():
            if label not in decisions:
                decisions[label] = judged(kernel)
        return best((label, decisions[label]) for label in choice.candidates)

    def judge(
        self,
        graph: SubGraph,
        tensors: Sequence[torch.Tensor],
        values: Mapping[str, int],
        kernel: Launcher,
        given: Sequence[int],
        measured: Decision | None = None,
    ) -> Decision:
        """`profile_and_decide` for a kernel that is compiled already; with `measured`, it is proved and not timed."""
        before, after = bytes_moved(graph, values)
        facts: dict[str, Any] = {"bytes_before": before, "bytes_after": after}
        try:
            fused = kernel(*tensors, *given)
        except Exception as error:
            if is_shortage(error):
                raise  # which says nothing about the kernel
            return Decision(False, "launch_error", f"{type(error).__name__}: {error}", **facts)
        if self.config.verify:
            try:
                verdict = prove(graph, tensors, values, fused, None if given else lambda few, _: kernel(*few))
            except Exception as error:
                if is_shortage(error):
                    raise
                return Decision(False, "unproved", f"the proof failed: {type(error).__name__}: {error}", **facts)
            facts |= {"error_eager": verdict.error_eager, "error_fused": verdict.error_fused}
            if not verdict.ok:
                return Decision(False, "inaccurate", verdict.reason, **facts)
        del fused
        if measured is not None:
            return measured
        if not self.config.profile:
            return Decision(True, "unmeasured", "fused by rule; profile=False", **facts)
        eager = eager_function(graph)
        sizes = [values[s] for s in graph.symbols]
        with torch.no_grad():
            times = compare(
                lambda: eager(*tensors, *sizes),
                lambda: kernel(*tensors, *given),
                wait=waits_for(graph.spec[graph.outputs[0]].device),
                seconds=_SECONDS,
                known=known_products.seconds_of(graph, dict(zip(graph.inputs, tensors, strict=True))),
            )
        facts |= {"eager_us": times.first_us, "fused_us": times.second_us}
        counted = "lower quartiles on a noisy machine" if times.noisy else "spread counted"
        percent = f"{times.ratio:.0%} of eager's time, {counted}"
        bar = self._bar(times.first_us)
        if times.ratio > bar:
            return Decision(False, "slower", f"{percent}; the bar is {bar:.0%}", **facts)
        return Decision(True, "faster", percent, **facts)

    def _bar(self, eager_us: float) -> float:
        """The share of eager's time that a kernel may take: `fusion_ratio`; of a long call, half way from it to 1."""
        ratio = self.config.fusion_ratio
        return ratio if eager_us < _LONG_US else (1 + ratio) / 2
