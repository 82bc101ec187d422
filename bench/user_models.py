"""Models that nothing in the package names, in bfloat16: what anybody would write or take from a library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

import fusion

from .measure import calls, interleave
from .models import twin
from .options import Options
from .rows import Row, Target, make_row
from .sides import AFTER_MANY_CALLS

_LEAST = 1.2  # of eager's speed
_WARM = 4  # calls until every scope runs a plan


@dataclass(frozen=True)
class Case:
    """A model and what it is called with.

    Attributes:
        measured: for the row.
        build: makes it, with random weights.
        inputs: of a call, by name; floating ones are converted to the model's dtype.
    """

    measured: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, torch.Tensor]]


def _stack() -> nn.Module:
    blocks = (nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768)) for _ in range(4))
    return nn.Sequential(*blocks)


def _bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(num_hidden_layers=4))


def _vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=4))


def _whisper() -> nn.Module:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 6)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 1536)
    return transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(d_model=384, **sizes))


def _experts() -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        num_hidden_layers=2, hidden_size=512, intermediate_size=1024, moe_intermediate_size=384, num_experts=8,
        num_experts_per_tok=2, num_attention_heads=8, num_key_value_heads=4, vocab_size=8000, use_cache=False,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config)


def _tokens(count: int) -> torch.Tensor:
    return torch.arange(count)[None] * 7 % 1000


CASES = (
    Case("four blocks of nn.Linear and GELU, 128 rows", _stack, lambda: {"input": torch.randn(1, 128, 768)}),
    Case("BERT, 4 layers, 128 tokens", _bert, lambda: {"input_ids": _tokens(128)}),
    Case("ViT, 4 layers, one image of 224 x 224", _vit, lambda: {"pixel_values": torch.randn(1, 3, 224, 224)}),
    Case(
        "whisper tiny, 2 + 2 layers, 30 s of speech", _whisper,
        lambda: {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": _tokens(32)},
    ),
    Case("mixture of 8 experts, 2 layers, 128 tokens", _experts, lambda: {"input_ids": _tokens(128)}),
)  # fmt: skip


@torch.inference_mode()
def rows(options: Options) -> Iterator[Row]:
    """A row for each model: fused against eager."""
    for case in CASES[:2] if options.quick else CASES:
        yield _row(case, options)


def _row(case: Case, options: Options) -> Row:
    torch.manual_seed(0)
    eager = case.build().to(torch.bfloat16).eval()
    fused = twin(eager)
    given = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in case.inputs().items()}
    fusion.enable(fused, AFTER_MANY_CALLS)
    try:
        for _ in range(_WARM):
            result = _first(fused(**given))
        sides = {"eager": lambda: eager(**given), "fused": lambda: fused(**given)}
        rounds = interleave({name: calls(call, samples=1) for name, call in sides.items()}, 5)
        report = fusion.report(fused)
        wanted = _first(eager(**given))
    finally:
        fusion.disable(fused)
    kernels = sum(row.decision == "fused" for row in report.regions)
    apart = float((result - wanted).abs().max() / wanted.abs().max())
    why = [] if kernels else ["nothing was fused"]
    why += [] if apart < 0.05 else [f"the results are {apart:.2g} of the greatest value apart"]
    return make_row(
        "products", options.label(f"{case.measured}, bf16: fused against eager"), rounds.speedup("eager", "fused"), "x",
        Target("at least", _LEAST), why=why, rounds=rounds, command=options.command("products"),
        facts={"kernels": kernels, "apart": apart},
    )  # fmt: skip


def _first(result: Any) -> torch.Tensor:
    """The first tensor of a result."""
    return result if isinstance(result, torch.Tensor) else next(iter(result.values()))
