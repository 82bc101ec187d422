"""The demo's model: a transformers decoder built from its configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from .patterns.errors import ConfigError, FusionError

# The published shapes of Qwen3-0.6B and Llama-3.2-1B (config.json of Qwen/Qwen3-0.6B and meta-llama/Llama-3.2-1B).
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "tie_word_embeddings": True,
    },
}


def build_model(name: str, path: Path | None, dtype: str, layers: int | None, seed: int) -> Any:
    """A transformers causal language model in eval mode on the CPU: random weights, or those beside `path`.

    Args:
        name: a key of SHAPES, used where `path` is None.
        path: a transformers config.json, or a folder that holds one.
        dtype: a torch dtype by name.
        layers: decoder layers, or None for the configuration's own number.
        seed: of the random weights.

    Raises:
        ConfigError: a configuration that cannot be read or is not a causal language model.
        FusionError: transformers is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise FusionError("The demo needs transformers.", remedy="pip install 'opfusion[hf]'") from error
    element = getattr(torch, dtype)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **SHAPES[name]) if path is None else _read_config(path, AutoConfig)
    if layers is not None:
        config.num_hidden_layers = layers
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
    folder = path if path is not None and path.is_dir() else None
    model: Any
    auto: Any = AutoModelForCausalLM
    try:
        if folder is not None and any(folder.glob("*.safetensors")):
            model = auto.from_pretrained(folder, config=config, dtype=element, local_files_only=True)
        else:
            model = auto.from_config(config, dtype=element)
    except Exception as error:  # transformers raises what its many models raise
        raise ConfigError(
            f"No causal language model can be built from {path or name}: {_first_line(error)}.",
            remedy="Give the configuration of a decoder such as Qwen3 or Llama.",
        ) from error
    return model.eval()


def _read_config(path: Path, auto_config: Any) -> Any:
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.", remedy="Check --config.") from error
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {_first_line(error)}.", remedy="Correct it.") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ConfigError(f"{file} names no model_type.", remedy="Give a transformers config.json.")
    try:
        return auto_config.for_model(values.pop("model_type"), **values)
    except Exception as error:  # transformers raises what its many configurations raise
        raise ConfigError(
            f"{file} is no configuration of this transformers: {_first_line(error)}.",
            remedy="Correct it, or use a newer transformers.",
        ) from error


def _first_line(error: BaseException, limit: int = 160) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    return line if len(line) <= limit else f"{line[:limit]}..."
