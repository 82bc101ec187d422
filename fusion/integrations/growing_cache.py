"""A cache for transformers that keeps room for further tokens, rather than copying all of them for each new one."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fusion.patterns.errors import FusionError

_LEAST_ROOM = 64  # tokens


def growing_cache(config: Any = None) -> Any:
    """A `transformers.DynamicCache` that writes new tokens behind the old ones.

        cache = fusion.growing_cache(model.config)
        model.generate(**inputs, past_key_values=cache)

    transformers' own `DynamicCache` copies every layer's keys and values in each step. This one copies them only when
    its room is used up, and then makes room for a quarter more. Values, shapes and methods are those of a
    `DynamicCache`; strides are not, as keys and values are slices. Layers of other kinds, such as sliding windows, are
    transformers' own.

    Args:
        config: the model's, which says what kind each layer is; without it every layer attends to all tokens.

    Raises:
        FusionError: transformers is not installed, or has no `DynamicCache` of layers.
    """
    try:
        from transformers.cache_utils import DynamicCache, DynamicLayer
    except ImportError as error:
        raise FusionError(
            f"A growing cache is one of transformers' kind, which cannot be imported: {error}.",
            remedy="pip install 'opfusion[hf]'",
        ) from error
    kind = _growing_layer()
    cache = DynamicCache(config=config)
    cache.layers = [kind() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = kind
    return cache


@functools.cache
def _growing_layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # a hook of its base has no annotations
        """Keys and values of one layer, shape [batch, heads, tokens, head size] each, with room behind the tokens."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
            self._rooms = _Room(), _Room()

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            """Adds tokens; returns all keys and all values."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.keys = self._rooms[0].extended(self.keys, key_states)
            self.values = self._rooms[1].extended(self.values, value_states)
            return self.keys, self.values

    return GrowingLayer


class _Room:
    """Memory that a tensor lies at the beginning of."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._held: Tensor | None = None  # the tensor that was given out last

    def extended(self, held: Tensor | None, new: Tensor) -> Tensor:
        """`held` and behind it `new`, along the last dimension but one.

        Written in place only where `held` is the very tensor that was given out last: then nobody sees what lies behind
        it. Anything else - a cache that was cropped, reordered, copied or filled by hand - is copied to new memory.
        """
        assert held is not None  # the layer has been given its first tensors
        if torch.is_grad_enabled() and (held.requires_grad or new.requires_grad):
            return torch.cat([held, new], dim=-2)
        start = held.shape[-2] if held.numel() else 0
        end = start + new.shape[-2]
        memory = self._memory
        if memory is None or held is not self._held or not _fits(memory, new, end):
            memory = new.new_empty(*new.shape[:-2], end + max(_LEAST_ROOM, end // 4), new.shape[-1])
            if start:
                memory[..., :start, :] = held
        memory[..., start:end, :] = new
        self._memory, self._held = memory, memory[..., :end, :]
        return self._held


def _fits(memory: Tensor, new: Tensor, end: int) -> bool:
    """Whether tokens up to `end` have room, and may be written to: outside of inference mode its tensors may not."""
    alike = (memory.shape[:-2], memory.shape[-1], memory.dtype, memory.device) == (
        new.shape[:-2], new.shape[-1], new.dtype, new.device,
    )  # fmt: skip
    return alike and end <= memory.shape[-2] and (torch.is_inference_mode_enabled() or not memory.is_inference())
