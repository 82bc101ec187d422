"""Which recordings leave their small matrix products to torch at first; `tiers.py` says why, and what ends that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fusion import faults
from fusion.choices.kernel_cache import Backends
from fusion.config import FusionConfig
from fusion.jit.compiled import Template
from fusion.jit.tiers import LONG_US
from fusion.kernels.backend import backends_of
from fusion.partition import cost_model
from fusion.patterns.recorded import RecordedGraph


class SmallProducts:
    """Tells recordings whose small products torch computes for now from others.

    Args:
        config: says whether, and for how long.
        backends: their store keeps which recordings were worth kernels, for later processes.
    """

    def __init__(self, config: FusionConfig, backends: Backends) -> None:
        self._config = config
        self._backends = backends
        self._hurries = 0  # blocks of `hurrying` that are open
        self._worth: set[str] = set()  # recordings whose small products are worth their kernels, by digest

    @property
    def reason(self) -> str:
        """What the report says of such a product."""
        return (
            f"is torch's until equal layers have spent {self._config.product_seconds:g} s in products, by an estimate"
        )

    def left_to_torch(self, graph: RecordedGraph, values: Mapping[str, int]) -> bool:
        """Whether the first plans of a recording leave its products to torch.

        Args:
            graph: the recording.
            values: size symbols' values in it.
        """
        config = self._config
        if config.matrix_products != "auto" or not (config.profile and config.product_seconds) or self._hurries:
            return False
        if graph.digest in self._worth or not 0 < self._estimate(graph, values) < LONG_US:
            return False
        store = self._backends.store
        return store is None or store.get_json(self._key(graph)) is None

    def spent_us(self, template: Template, values: Mapping[str, int]) -> float:
        """What a call is expected to spend in products that torch computes for now, in microseconds."""
        return self._estimate(template.shape.graph, values) if template.first is not None else 0.0

    def mark_worth(self, graph: RecordedGraph) -> None:
        """From now on, new plans of such a recording in this process have kernels of its products at once."""
        self._worth.add(graph.digest)

    def store_worth(self, graph: RecordedGraph) -> None:
        """Writes to the cache that a recording's products became kernels: later processes make them at once."""
        store, key = self._backends.store, self._key(graph)
        if store is not None and store.get_json(key) is None:
            store.put_json(key, True)

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """Inside the block new recordings leave no products to torch for now."""
        self._hurries += 1
        try:
            yield
        finally:
            self._hurries -= 1

    def forget(self) -> None:
        """Forgets what was worth kernels in this process."""
        self._worth.clear()

    def _estimate(self, graph: RecordedGraph, values: Mapping[str, int]) -> float:
        try:
            return cost_model.products_us(graph, values)
        except Exception as error:
            faults.noted(error, "an estimate of how long products take")
            return 0.0

    def _key(self, graph: RecordedGraph) -> str:
        settings = (self._config.numerics, self._config.backend, [one.identity() for one in backends_of("cpu")])
        return hashlib.sha256(json.dumps(["worth", graph.digest, *settings]).encode()).hexdigest()
