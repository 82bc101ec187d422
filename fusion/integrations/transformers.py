"""transformers: its caches are called as they are; the hooks it leaves on modules are idle but in calls that collect.

Registered when the library is already imported; nothing here imports it. The integration names methods of the cache
classes only; models are found by structure.
"""

from __future__ import annotations

import inspect
import sys

from fusion.capture.hooks import Collecting, register_collecting
from fusion.capture.python.registry import NativeFunction, register_function, register_island, register_made

_EFFECTS = {"update": (-2,), "update_conv_state": (), "update_recurrent_state": (), "update_indexer": (-2,)}
_READS = (
    "get_seq_length", "get_mask_sizes", "get_max_length", "get_max_cache_shape", "get_query_offset",
    "has_previous_state", "__len__",
)  # fmt: skip
_MADE = ("DynamicCache", "EncoderDecoderCache")  # what a forward makes when it is called without a cache
_HOOK = "install_output_capuring_hook.<locals>.output_capturing_hook"
_COLLECTS = "asks for its modules' outputs (output_hidden_states, output_attentions)"
_registered = _collects = False


def register() -> None:
    """Registers the classes and hooks of an imported transformers; does nothing without one."""
    _register_collecting()
    _register_caches()


def _register_collecting() -> None:
    """Calls with output_hidden_states collect it by hooks, which transformers 5 leaves on the modules afterwards."""
    global _collects
    library = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(library, "_active_collector", None)
    install = getattr(library, "maybe_install_capturing_hooks", None)
    if library is None or collector is None or install is None or _collects:
        return
    _collects = True
    register_collecting(Collecting(library.__name__, _HOOK, lambda: bool(collector.get())))
    register_function(NativeFunction(install, None, True, asks=_COLLECTS))


def _register_caches() -> None:
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
