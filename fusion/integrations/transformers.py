"""transformers: its caches are islands.

Registered when the library is already imported; nothing here imports it. The integration names methods of the cache
classes only; models are found by structure.
"""

from __future__ import annotations

import sys

from fusion.capture.islands import register_island

_READS = ("get_seq_length", "get_mask_sizes", "get_max_length", "get_max_cache_shape", "__len__")
_registered = False


def register() -> None:
    """Registers the cache classes of an imported transformers; does nothing without one."""
    global _registered
    library = sys.modules.get("transformers.cache_utils")
    if library is None or _registered:
        return
    _registered = True
    cache = library.Cache
    register_island(cache, "update", effect=True, grows=(-2,))
    for name in _READS:
        if name in vars(cache):
            register_island(cache, name, effect=False)
