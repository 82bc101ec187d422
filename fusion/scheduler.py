"""The public scheduler: runs graphs given by hand, and tells what its cache holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fusion.config import FusionConfig
from fusion.frontend.subgraph_dispatch import dispatcher_for
from fusion.jit.stages import Stages
from fusion.patterns.graph import SubGraph


class FusionScheduler:
    """Runs SubGraphs and recordings, fused where that is proved and faster, and remembers what it compiled.

    Args:
        config: a FusionConfig, a mapping, a file, or None for the environment's.

    Raises:
        ConfigError: the config is not valid.
        BackendUnavailable: the config names a backend that this machine cannot provide.
    """

    def __init__(self, config: FusionConfig | Mapping[str, Any] | str | None = None) -> None:
        # Whoever dispatches a graph wants it to run as a kernel, and there is no model to wait for.
        self.stages = Stages(FusionConfig.resolve(config).replace(compile="blocking"))
        self._dispatchers: dict[Any, Any] = {}

    @property
    def config(self) -> FusionConfig:
        """What it was made with, resolved."""
        return self.stages.config

    def dispatch(self, graph: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs a SubGraph (or a recording) on named inputs, fused where that is proved and faster, else eagerly.

        Args:
            graph: a SubGraph such as `create_swiglu_pattern()`, or what `fusion.record` gave.
            inputs: a tensor per input name; shapes as the graph's, up to its size symbols; any floating dtype.

        Returns:
            a tensor per output name.

        Raises:
            StructureMismatch: the inputs do not fit the graph.
        """
        key = graph if isinstance(graph, SubGraph) else id(graph)
        known = self._dispatchers.get(key)
        if known is None:
            known = self._dispatchers[key] = (dispatcher_for(graph, self.stages), graph)
        result: dict[str, torch.Tensor] = known[0](dict(inputs))
        return result

    def cache_stats(self) -> dict[str, int | float]:
        """Counts since this scheduler was made: kernels found on disk and compiled, decisions held, seconds spent."""
        costs = self.stages.backends.costs
        return {
            "hits": costs.cache_hits,
            "misses": costs.cache_misses,
            "kernels": sum(len(choice.kernels) for choice in self.stages.backends.kernels.values()),
            "decisions": len(self.stages.backends.decisions),
            "compile_seconds": costs.compile_seconds,
            "profile_seconds": costs.profile_seconds,
        }

    def clear_cache(self) -> None:
        """Forgets every kernel and decision, in memory and on disk. Scopes that run already keep their plans."""
        self._dispatchers.clear()
        self.stages.forget()
