"""The models that are measured: built from a configuration with random weights, nothing downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from fusion.demo_model import SHAPES

# 28 layers whose matrices are so small that a step's time is what operators cost to call.
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 28,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
QWEN3_06B = SHAPES["qwen3"]


def build(shape: dict[str, Any], dtype: torch.dtype, device: str = "cpu", layers: int | None = None) -> Any:
    """A Qwen3 in eval mode with random weights.

    Args:
        shape: fields of a Qwen3Config.
        dtype, device: of the weights.
        layers: decoder layers, or None for the shape's own number.
    """
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(**{**shape, **({} if layers is None else {"num_hidden_layers": layers})})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to(device)


def twin(model: torch.nn.Module) -> Any:
    """A second model with the very same parameters and buffers: its own modules, no memory for weights."""
    held = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


def widened(model: torch.nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a model in a higher precision: what both sides' errors are measured against."""
    return copy.deepcopy(model).to(dtype)


def new_cache(model: Any) -> Any:
    """An empty DynamicCache for a model."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def tokens(model: Any, count: int, device: str = "cpu") -> torch.Tensor:
    """Random tokens, int64 [1, count], the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (1, count), generator=generator).to(device)


def library_calls(model: Any) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """The floor of a step: the model's matrix products, attention and cache updates, and nothing between them.

    Every layer starts from the embeddings, so that values stay in an ordinary range without norms and residuals.
    """
    weights = [
        [p.weight for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj)]
        for a, m in ((layer.self_attn, layer.mlp) for layer in model.model.layers)
    ]
    embedding, head, head_dim = model.model.embed_tokens.weight, model.lm_head.weight, model.config.head_dim
    linear, attend = functional.linear, functional.scaled_dot_product_attention

    def call(ids: torch.Tensor, cache: Any) -> torch.Tensor:
        hidden = functional.embedding(ids, embedding)
        heads = (*ids.shape, -1, head_dim)
        out = hidden
        for index, (q, k, v, o, gate, up, down) in enumerate(weights):
            query, key, value = (linear(hidden, w).view(heads).transpose(1, 2) for w in (q, k, v))
            key, value = cache.update(key, value, index)
            made = attend(query, key, value, is_causal=ids.shape[1] > 1, enable_gqa=True)
            linear(made.transpose(1, 2).flatten(2), o)
            linear(hidden, gate)
            out = linear(linear(hidden, up), down)
        return linear(out, head)[:, -1]

    return call
