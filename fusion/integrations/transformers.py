"""transformers: its caches are islands.

Registered when the library is already imported; nothing here imports it. The integration names methods of the cache
classes only; models are found by structure.
"""

from __future__ import annotations

import inspect
import sys

from fusion.capture.islands import register_island, register_made

_EFFECTS = {"update": (-2,), "update_conv_state": (), "update_recurrent_state": (), "update_indexer": (-2,)}
_READS = (
    "get_seq_length", "get_mask_sizes", "get_max_length", "get_max_cache_shape", "get_query_offset",
    "has_previous_state", "__len__",
)  # fmt: skip
_MADE = ("DynamicCache", "EncoderDecoderCache")  # what a forward makes when it is called without a cache
_registered = False


def register() -> None:
    """Registers the cache classes of an imported transformers; does nothing without one."""
    global _registered
    library = sys.modules.get("transformers.cache_utils")
    if library is None or _registered:
        return
    _registered = True
    for kind in vars(library).values():
        if inspect.isclass(kind) and issubclass(kind, library.Cache):
            for name, grows in _EFFECTS.items():
                if name in vars(kind):
                    register_island(kind, name, grows=grows)
            for name in _READS:
                if name in vars(kind):
                    register_island(kind, name, effect=False)
    for name in _MADE:
        register_made(vars(library)[name])
