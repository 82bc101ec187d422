"""Tiny random models of every causal language model that transformers knows, made by rule: nothing is downloaded.

A configuration is the architecture's own default with its sizes made small. The rules go by the names of fields and
by what holds between them, so an architecture that comes tomorrow is made small too, or is left out with its reason.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

MOST_PARAMETERS = 20_000_000  # above it a model is no tiny one: some part of it was not made small
_LAYERS = 3
_VOCABULARY = 128

# Field -> its small value. Configurations name the same size in many ways; a field's default that is smaller stays.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "emb_dim", "width"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_inner", "d_ff"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "feed_forward_size", "shared_intermediate_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_decoder_layers", "num_blocks"), _LAYERS),
    **dict.fromkeys(("encoder_layers", "depth"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "global_head_dim"), 16),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "v_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length"), 256),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "o_lora_rank"), 32),
    "kv_lora_rank": 16,
    "sliding_window": 8,
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_d_conv", "conv_kernel", "mamba_n_heads", "mamba_num_heads", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 32),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    **dict.fromkeys(("indexer_n_heads", "indexer_compress_ratio"), 2),
    **dict.fromkeys(("indexer_kv_heads",), 1),
    "indexer_head_dim": 16,
    "indexer_budget": 4,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
    "image_size": 32,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_ssm": 128,
    "attention_head_dim": 32,
    "mamba_dt_rank": 4,
    "hidden_size_global": 64,
    "attention_head_size": 16,
    **dict.fromkeys(("local_attn_chunk_length", "lsh_attn_chunk_length"), 4),
    **dict.fromkeys(("encoder_hash_byte_group_vocab", "ngram_vocab_size_base"), _VOCABULARY),
    "ple_embed_dim": 64,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_EXACT = ("head_dim", "encoder_layers", "decoder_layers", *_TOKENS)  # set even above the default
# Set where the default leaves them out.
_WHERE_NONE = (
    "head_dim", "num_key_value_heads", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "pad_token_id",
    "indexer_n_heads", "indexer_kv_heads", "indexer_head_dim", "indexer_budget", "indexer_compress_ratio",
)  # fmt: skip


def names() -> list[str]:
    """The model types that have a causal language model, in transformers' order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(model_type: str, seed: int = 0) -> Any:
    """A tiny fp32 model in eval mode; the first variant of the rules that runs.

    Args:
        model_type: one of `names()`.
        seed: of its weights, which are drawn around what the model's own initialisation gives, so that no norm is the
            identity and no bias is zero.

    Raises:
        RuntimeError: no variant builds and runs; the message holds the first one's reason.
    """
    first: Exception | None = None
    for variant in _VARIANTS:
        try:
            return _build(model_type, variant, seed)
        except Exception as error:
            first = first or error
    raise RuntimeError(f"{type(first).__name__}: {str(first).strip().splitlines()[0] if str(first) else ''}") from first


_VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"is_decoder": True},
    {"num_key_value_heads": 4},
    {"head_dim": None},
    {"head_dim": 8},
    {"num_hidden_layers": 4},
    {"layer_types": ["full_attention", "conv", "full_attention"]},
    {"layer_types": ["mamba", "attention", "mamba"]},
    {"attn_layer_indices": [1]},
    {"num_codebooks": 1},  # else the token ids of a text are those of several books
    {"qk_dim_factor": 1.0},
    {"clip_qkv": 8},
    {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
)


def _build(model_type: str, variant: Mapping[str, Any], seed: int) -> Any:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    made = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    configuration = CONFIG_MAPPING[model_type]
    if made.config_class is not None and not issubclass(configuration, made.config_class):
        configuration = made.config_class  # the part of a larger model that is a language model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny_config(configuration, variant)
        with torch.device("meta"):
            count = sum(p.numel() for p in made._from_config(config).parameters())
        if count > MOST_PARAMETERS:
            raise RuntimeError(f"{count / 1e6:.0f} million parameters after all rules")
        torch.manual_seed(seed)
        model = made._from_config(config).float().eval()
        _scatter(model)
        with torch.inference_mode():
            forward(model, torch.randint(3, 100, (2, 7)))
    return model


def forward(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a forward without a cache, where the model has one to leave out.

    Args:
        ids: token ids, (batch, length) int64.
    """
    known = inspect.signature(type(model).forward).parameters
    without = {"use_cache": False} if "use_cache" in known else {}
    logits: torch.Tensor = model(input_ids=ids, **without).logits
    return logits


def _scatter(model: torch.nn.Module) -> None:
    """Moves every weight off the round values that initialisation gives: ones in norms, zeros in biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn_like(parameter)
                parameter.mul_(1 + 0.1 * noise).add_(0.02 * torch.randn_like(parameter))


def tiny_config(configuration: Any, variant: Mapping[str, Any]) -> Any:
    """An instance of a configuration class with its sizes made small, sub-configurations included.

    Args:
        configuration: the class; its default instance is where the rules start.
        variant: fields to set differently, where the configuration has them.
    """
    default = configuration()
    fields = default.to_dict()
    renamed = getattr(configuration, "attribute_map", {}) or {}
    declared = getattr(configuration, "sub_configs", {}) or {}
    kinds = {
        name: kind if hasattr(kind, "to_dict") else type(getattr(default, name)) for name, kind in declared.items()
    }
    parts = {
        name: tiny_config(part, variant)
        for name, part in kinds.items()
        if hasattr(part, "to_dict") and hasattr(part, "model_type") and fields.get(name) is not None
    }
    _hand_down(fields, parts.values())
    small = {k: v for k, v in _small(fields) if k not in renamed and k not in parts}
    small |= _layer_lists(fields, small)
    small |= _consistent(fields, {**fields, **small})
    small |= {k: v for k, v in variant.items() if k in fields and k not in renamed}
    return configuration(**small, **parts)


def _small(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The fields that have a small value."""
    sizes = {**_SIZES, **_TOKENS}
    for name, value in fields.items():
        small = _VOCABULARY if "vocab_size" in name else sizes.get(name)
        if small is None:
            continue
        if value is None and name in _WHERE_NONE:
            yield name, small
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield name, small if name in _EXACT else min(small, value)


def _layer_lists(fields: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """Lists with an entry per layer, cut alike: the first layer of each kind, and as many layers as there are sizes."""
    counts = [n for n in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if n in small]
    layers = fields[counts[0]] if counts else 0
    lists = {k: v for k, v in fields.items() if isinstance(v, list) and len(v) == layers > _LAYERS}
    lists = {k: v for k, v in lists.items() if not isinstance(v[0], (list, dict))}
    if not lists:
        return {}
    kinds = list(zip(*lists.values(), strict=True))
    kept = sorted(kinds.index(kind) for kind in dict.fromkeys(kinds))
    kept = sorted([*kept, *(i for i in range(layers) if i not in kept)][: max(_LAYERS, len(kept))])
    cut = {name: [values[i] for i in kept] for name, values in lists.items()}
    return {**cut, **{name: len(kept) for name in counts}}


def _hand_down(fields: Mapping[str, Any], parts: Iterable[Any]) -> None:
    """Gives parts without rotary parameters of their own the whole's base, which some of them are read for."""
    theta = (fields.get("rope_parameters") or {}).get("rope_theta")
    for part in parts:
        if theta is not None and not hasattr(part, "rope_parameters"):
            part.rope_theta = theta


def _consistent(default: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that follow from others: `default` holds them as they were, `fields` as they are now."""
    found: dict[str, Any] = {}
    if _equal(default, "num_key_value_heads", "num_attention_heads"):
        found["num_key_value_heads"] = fields["num_attention_heads"]
    if isinstance(wide := default.get("attention_hidden_size"), int) and "hidden_size" in default:
        found["attention_hidden_size"] = fields["hidden_size"] * wide // default["hidden_size"]
    if _equal(default, "head_dim", "qk_rope_head_dim"):
        found["head_dim"] = fields["qk_rope_head_dim"]
    if {"qk_rope_head_dim", "qk_nope_head_dim", "qk_head_dim"} <= set(fields):
        found["qk_head_dim"] = fields["qk_rope_head_dim"] + fields["qk_nope_head_dim"]
    if {"expand", "state_size", "num_heads", "head_dim"} <= set(fields):
        found["head_dim"] = fields["hidden_size"] * fields["expand"] // fields["num_heads"]
    if {"mamba_d_ssm", "mamba_n_heads", "mamba_d_head"} <= set(fields):
        found["mamba_d_ssm"] = fields["mamba_n_heads"] * fields["mamba_d_head"]
    if isinstance(shares := default.get("axial_pos_embds_dim"), list) and "hidden_size" in default:
        found["axial_pos_embds_dim"] = [share * fields["hidden_size"] // sum(shares) for share in shares]
    if fields.get("rope_parameters") == {} and fields.get("layer_types"):
        rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}  # halves of a head of 16
        found["rope_parameters"] = dict.fromkeys(fields["layer_types"], rotary)
    if fields.get("default_language", 0) is None and fields.get("languages"):
        found["default_language"] = fields["languages"][0]
    if fields.get("hash_seed", 0) is None:
        found["hash_seed"] = 0  # without one a forward hashes by chance, and two runs of it differ
    return found


def _equal(fields: Mapping[str, Any], one: str, other: str) -> bool:
    return one in fields and other in fields and fields[one] == fields[other]
