"""A cache with room for further tokens gives what transformers' own gives."""

from __future__ import annotations

import copy
import gc
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers; pip install 'opfusion[hf]'")

import transformers

import fusion
from fusion.integrations import growing_cache as module
from fusion.patterns.errors import FusionError

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SIZES, head_dim=8)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def layer_states(cache: Any) -> list[torch.Tensor]:
    return [t for layer in cache.layers for t in (layer.keys, layer.values)]


def put(cache: Any, tokens: int, layer: int = 0, batch: int = 2) -> None:
    generator = torch.Generator().manual_seed(tokens)
    keys, values = torch.randn(2, batch, 2, tokens, 8, generator=generator)
    cache.update(keys, values, layer)


def both(model: Any) -> tuple[Any, Any]:
    return transformers.DynamicCache(config=model.config), fusion.growing_cache(model.config)


def assert_same(own: Any, growing: Any) -> None:
    assert own.get_seq_length() == growing.get_seq_length()
    for mine, theirs in zip(layer_states(growing), layer_states(own), strict=True):
        assert torch.equal(mine, theirs)


@torch.inference_mode()
def test_tokens_are_added_in_place_while_there_is_room(model: Any) -> None:
    own, growing = both(model)
    memories = set()
    for tokens in (5, *[1] * 400):
        for layer in (0, 1):
            for cache in (own, growing):
                put(cache, tokens, layer)
        memories.add(growing.layers[0].keys.data_ptr())
        assert_same(own, growing)
    assert 2 <= len(memories) <= 8, "each new memory is a copy of all tokens"
    room = growing.layers[0].keys.untyped_storage().nbytes() / growing.layers[0].keys.nbytes
    assert room <= 1.5


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-3),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_repeat_interleave(3),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        lambda cache: cache.reset(),
    ],
    ids=["crop", "reorder", "repeat", "select", "reset"],
)
@torch.no_grad()
def test_what_changes_the_cache_is_taken_over(model: Any, change: Any) -> None:
    own, growing = both(model)
    for cache in (own, growing):
        for layer in (0, 1):
            put(cache, 9, layer)
        before = [t.clone() for t in layer_states(cache)]
        held = layer_states(cache)
        change(cache)
        batch = cache.layers[0].keys.shape[0]
        for layer in (0, 1):
            put(cache, 2, layer, batch)
        if cache is growing and change.__code__.co_names != ("reset",):
            assert all(map(torch.equal, held, before)), "a tensor that was given out was written to"
    assert_same(own, growing)


@torch.no_grad()
def test_copies_go_their_own_ways(model: Any) -> None:
    growing = fusion.growing_cache(model.config)
    for layer in (0, 1):
        put(growing, 9, layer)
    deep, shallow = copy.deepcopy(growing), copy.copy(growing)
    shallow.layers = [copy.copy(layer) for layer in growing.layers]
    for tokens, cache in enumerate((growing, deep, shallow), start=1):
        for _ in range(2):
            for layer in (0, 1):
                put(cache, tokens, layer)
    for tokens, cache in enumerate((growing, deep, shallow), start=1):
        expected = transformers.DynamicCache(config=model.config)
        for count in (9, tokens, tokens):
            for layer in (0, 1):
                put(expected, count, layer)
        assert_same(expected, cache)


def test_modes_of_torch_may_change_between_calls(model: Any) -> None:
    own, growing = both(model)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for cache in (own, growing):
                for layer in (0, 1):
                    put(cache, 3, layer)
    keys = torch.randn(2, 2, 1, 8, requires_grad=True)
    found, _ = growing.update(keys, keys, 0)
    found.sum().backward()
    assert keys.grad is not None and torch.equal(keys.grad, torch.ones_like(keys))


@torch.inference_mode()
def test_a_model_under_fusion_decodes_with_it_in_two_recordings(model: Any, quick: fusion.FusionConfig) -> None:
    fused = fusion.enable(copy.deepcopy(model), quick)
    ids = torch.randint(2, 97, (1, 300), generator=torch.Generator().manual_seed(1))
    own, growing = both(model)
    for part in (ids[:, :20], *ids[:, 20:].split(1, dim=1)):
        wanted = model(input_ids=part, past_key_values=own).logits
        found = fused(input_ids=part, past_key_values=growing).logits
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    for scope in fusion.report(fused).scopes:
        assert scope.recordings <= 2 and scope.fused_calls > 270 and scope.fallbacks == 0, scope


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}], ids=["greedy", "beams", "sampled"]
)
@torch.inference_mode()
def test_generate_gives_the_same_tokens(model: Any, options: dict[str, Any]) -> None:
    ids = torch.randint(2, 97, (2, 11), generator=torch.Generator().manual_seed(2))
    found = []
    for cache in both(model):
        torch.manual_seed(3)
        found.append(model.generate(ids, past_key_values=cache, max_new_tokens=12, pad_token_id=0, **options))
    assert torch.equal(*found)


@torch.inference_mode()
def test_layers_of_other_kinds_stay_and_a_config_may_be_left_out() -> None:
    window = transformers.MistralConfig(**SIZES, sliding_window=6)
    kinds = [type(layer).__name__ for layer in fusion.growing_cache(window).layers]
    assert kinds == ["DynamicSlidingWindowLayer"] * 2
    cache = fusion.growing_cache()
    put(cache, 4, 0)
    put(cache, 4, 1)
    assert [type(layer).__name__ for layer in cache.layers] == ["GrowingLayer"] * 2


@torch.inference_mode()
def test_memory_goes_with_the_cache(model: Any) -> None:
    cache = fusion.growing_cache(model.config)
    put(cache, 4)
    before = len(gc.get_objects())
    for _ in range(50):
        other = fusion.growing_cache(model.config)
        put(other, 4)
    del other
    gc.collect()
    assert len(gc.get_objects()) < before + 400  # 50 caches that stayed would be some 750


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.cache_utils", None)
    with pytest.raises(FusionError, match="opfusion"):
        module.growing_cache()
