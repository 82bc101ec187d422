"""What is replayed: tiny random models of transformers, and plain functions; by name, each with the calls it gets."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from replay_functions import FUNCTIONS, Written

from bench import architectures

Call = Callable[[Any], object]  # of what is under fusion

_SHAPES = ((2, 7), (3, 11))  # (batch, length) of the forwards
_PROMPTS = ((2, 5), (2, 6))
_STEPS = 3  # of each decode
_ROWS = (6, 11)  # of the functions' inputs
_CACHES = ("past_key_values", "cache_params", "state")  # what models call what they remember

# Causal language models, of which the sweep has more: the kinds of blocks that there are, each once or twice. Left out
# are those that take long, and gemma3, whose forward goes through a set of strings: its order follows their hashes.
_CAUSAL = (
    "bart", "bloom", "codegen", "ctrl", "deepseek_v3", "falcon", "gemma", "gemma2", "glm4", "gpt2", "gpt_neox",
    "gpt_oss", "gptj", "granitemoe", "llama", "mamba", "mistral", "mpt", "nemotron", "olmo2", "opt", "persimmon", "phi",
    "phi3", "qwen3", "qwen3_moe", "recurrent_gemma", "smollm3", "starcoder2", "xglm",
)  # fmt: skip
_IN_BFLOAT16 = ("qwen3",)


@dataclass(frozen=True)
class Case:
    """One model or function.

    Attributes:
        make: gives it anew, with random weights that are the same in every run.
        first: calls that are recorded and checked.
        again: calls that plans may answer by then.
        config: fields of the config beside those that all cases share.
    """

    make: Callable[[], Any]
    first: tuple[Call, ...]
    again: tuple[Call, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


def cases() -> dict[str, Case]:
    """Every case by name; models are there where transformers is."""
    found = {name: _function(written) for name, written in FUNCTIONS.items()}
    try:
        known = set(architectures.names())
    except ImportError:
        return found
    found |= {name: _causal(name, torch.float32) for name in _CAUSAL if name in known}
    found |= {f"{name}_bfloat16": _causal(name, torch.bfloat16) for name in _IN_BFLOAT16 if name in known}
    return found | {"bert": _bert(), "t5": _t5(), "vit": _vit(), "whisper": _whisper()}


# ---- functions


def _function(written: Written) -> Case:
    def call(rows: int) -> Call:
        return lambda fused: fused(*written.inputs(rows))

    def make() -> Any:
        torch.manual_seed(0)
        return written.subject()

    one, other = map(call, _ROWS)
    return Case(make, (one, one, other, one, other), (one, other), dict(written.config))


# ---- causal language models


def _causal(name: str, dtype: torch.dtype) -> Case:
    forwards = [functools.partial(_forward, shape=shape) for shape in _SHAPES]
    decodes = [functools.partial(_decode, prompt=prompt) for prompt in _PROMPTS]
    calls = (*forwards, *decodes)
    return Case(lambda: architectures.build(name).to(dtype), (forwards[0], *calls, decodes[0]), calls)


def _forward(model: Any, shape: tuple[int, int]) -> None:
    architectures.forward(model, _ids(*shape))


def _decode(model: Any, prompt: tuple[int, int]) -> None:
    """A prefill and steps with the cache that the model makes, of tokens that do not follow from its logits."""
    known = inspect.signature(type(model).forward).parameters
    name = next((n for n in _CACHES if n in known), "")
    if not name or "use_cache" not in known:
        return
    cache = getattr(model(input_ids=_ids(*prompt), use_cache=True), name, None)
    for step in range(_STEPS) if cache is not None else ():
        model(input_ids=_ids(prompt[0], 1, seed=step), use_cache=True, **{name: cache})


def _ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 100, (batch, length), generator=torch.Generator().manual_seed(seed))


# ---- other models

_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def _of(kind: str, sizes: Mapping[str, Any], inputs: Callable[[int], dict[str, torch.Tensor]]) -> Case:
    """A model of transformers, called with `inputs` of two batches."""

    def make() -> Any:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes)
        return getattr(transformers, f"{kind}Model")(config).eval()

    def call(batch: int) -> Call:
        return lambda model: model(**copy.copy(inputs(batch)))

    one, other = call(2), call(3)
    return Case(make, (one, one, other, one, other), (one, other))


def _bert() -> Case:
    sizes = {**_SMALL, "vocab_size": 128, "max_position_embeddings": 64}
    return _of("Bert", sizes, lambda n: {"input_ids": _ids(n, 9), "attention_mask": torch.ones(n, 9).long()})


def _vit() -> Case:
    sizes = {**_SMALL, "image_size": 32, "patch_size": 8}
    return _of("ViT", sizes, lambda n: {"pixel_values": _noise(n, 3, 32, 32)})


def _t5() -> Case:
    sizes = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
    sizes |= {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    return _of("T5", sizes, lambda n: {"input_ids": _ids(n, 9), "decoder_input_ids": _ids(n, 5, seed=1)})


def _whisper() -> Case:
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 128, "num_mel_bins": 16}
    sizes |= {"max_source_positions": 20, "max_target_positions": 32}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    return _of("Whisper", sizes, lambda n: {"input_features": _noise(n, 16, 40), "decoder_input_ids": _ids(n, 5)})


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
