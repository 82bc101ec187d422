"""Qwen3 and Llama as transformers has them: prefill, chunks, decode, caches, masks and generate().

By default each is taken in one dtype where one model serves several tests, with one kind of cache, and Qwen3 alone in
`generate`; `make test-all` takes both in all.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from thorough import FULL, combined
from tiny import assert_fused, assert_untouched, bits, close, planned, recordings, scopes, transformer

import fusion

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
KINDS = ("qwen3", "llama")
DTYPES = (torch.float32, torch.bfloat16)
# Kernels of a forward that sum in another order than eager does: five a layer, and the last norm.
STEPS = 3 * 5 + 1


class Trio:
    """One model under fusion, the same one eager, and the same one in double precision."""

    def __init__(self, config: fusion.FusionConfig, kind: str, dtype: torch.dtype, **changes: Any) -> None:
        self.eager = transformer(kind, dtype, **changes)
        self.exact = copy.deepcopy(self.eager).double()
        self.fused = fusion.enable(transformer(kind, dtype, **changes), config)

    def __call__(self, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Logits under fusion, checked against the other two."""
        untouched = bits(ids)
        with torch.inference_mode():
            found = self.fused(ids, **kwargs, use_cache=False).logits
            close(found, self.eager(ids, **kwargs, use_cache=False).logits, self._exact(ids, kwargs), STEPS)
        assert_untouched(ids, untouched)
        return found

    def _exact(self, ids: torch.Tensor, kwargs: Any) -> torch.Tensor:
        return self.exact(ids, **kwargs, use_cache=False).logits


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=combined(KINDS, DTYPES), ids=lambda p: f"{p[0]}-{p[1]}"[:30])
def trio(request: pytest.FixtureRequest, quick: fusion.FusionConfig) -> Trio:
    kind, dtype = request.param
    made = Trio(quick, kind, dtype)
    made(tokens(2, 9))  # recorded
    made(tokens(3, 7))  # checked at another shape
    return made


@pytest.mark.parametrize(("batch", "length"), [(2, 9), (3, 7), (2, 5), (4, 12), (3, 4)])
def test_prefill_at_other_batches_and_lengths(trio: Trio, batch: int, length: int) -> None:
    trio(tokens(batch, length))  # sizes of another bucket are checked once
    known, before = recordings(trio.fused), planned(trio.fused)
    trio(tokens(batch, length, seed=1))
    assert_fused(trio.fused, before)
    assert recordings(trio.fused) == known == len(scopes(trio.fused)), "one recording a scope serves all sizes"


def test_patterns_by_name(trio: Trio) -> None:
    regions = [r for s in fusion.report(trio.fused).scopes for r in s.regions if r.decision == "fused"]
    named = {(r.pattern or "").removesuffix(" x2") for r in regions}  # that of q and that of k are one kernel
    qwen = type(trio.fused).__name__.startswith("Qwen")
    assert {"Add+RMSNorm", "SwiGLU", "RMSNorm", "QK-norm+RoPE" if qwen else "RoPE"} <= named


def test_without_kernels_the_plan_is_bit_equal(quick: fusion.FusionConfig) -> None:
    for kind in KINDS:
        eager = transformer(kind, torch.bfloat16)
        model = fusion.enable(transformer(kind, torch.bfloat16), quick.replace(max_fusions=0))
        with torch.inference_mode():
            for batch, length in ((2, 9), (3, 7), (3, 7), (2, 9), (5, 3)):
                ids = tokens(batch, length)
                assert torch.equal(model(ids).logits, eager(ids).logits)
        assert all(count >= 2 for count in planned(model).values()), planned(model)
        rows = [r for s in fusion.report(model).scopes for r in s.regions]
        assert rows and {r.code for r in rows} == {"fuel"}


# ---- caches


def cache_of(kind: str, model: Any) -> Any:
    if kind == "dynamic":
        return transformers.DynamicCache(config=model.config)
    return transformers.StaticCache(config=model.config, max_cache_len=32)


def cached(cache: Any) -> list[torch.Tensor]:
    return [t for layer in cache.layers for t in (layer.keys, layer.values)]


def chunks(model: Any, cache: Any, ids: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Logits of a sequence fed in pieces."""
    out = []
    for piece in ids.split(sizes, dim=1):
        with torch.inference_mode():
            out.append(model(piece, past_key_values=cache, use_cache=True).logits)
    return torch.cat(out, dim=1)


@pytest.mark.parametrize(("kind", "cache"), combined(KINDS, ("dynamic", "static")))
def test_chunks_and_decode_write_the_cache_once(kind: str, cache: str, quick: fusion.FusionConfig) -> None:
    eager = transformer(kind)
    exact = copy.deepcopy(eager).double()
    model = fusion.enable(transformer(kind), quick)
    sizes = (6, 4, 3, *[1] * 4)
    for seed, batch in enumerate((2, 3)):
        ids = tokens(batch, sum(sizes), seed)
        caches = [cache_of(cache, eager) for _ in range(3)]
        before = planned(model)
        fused, plain, truth = (chunks(m, c, ids, sizes) for m, c in zip((model, eager, exact), caches, strict=True))
        close(fused, plain, truth, STEPS)
        for mine, theirs, true in zip(*map(cached, caches), strict=True):
            close(mine, theirs, true, STEPS)
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == sum(sizes)
    counts = {n: planned(model)[n] - before[n] for n in before}
    if cache == "static":  # its layers write to a length that the forward around them has read: that one stays eager
        assert counts.pop(type(model).__name__) == 0
    assert all(c >= len(sizes) - 4 for c in counts.values()), counts  # a new batch may be checked in two buckets
    assert all(s.statistics.fallbacks == 0 for s in scopes(model).values())
    states = {s.name: (s.state, s.reason) for s in fusion.report(model).scopes if s.name in counts}
    assert all(state == "fused" for state, _ in states.values()), states


def test_longer_caches_need_no_new_recording(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(transformer(), quick)
    eager = transformer()
    mine, theirs = cache_of("dynamic", model), cache_of("dynamic", eager)
    chunks(model, mine, tokens(2, 5), (5,))
    chunks(eager, theirs, tokens(2, 5), (5,))
    for position in range(12):
        ids = tokens(2, 1, position)
        if position == 4:
            known, before = recordings(model), planned(model)
        found, plain = chunks(model, mine, ids, (1,)), chunks(eager, theirs, ids, (1,))
        assert torch.equal(found.argmax(-1), plain.argmax(-1))
    assert recordings(model) == known
    assert {n: planned(model)[n] - before[n] for n in before} == dict.fromkeys(before, 8)


# ---- masks


def test_left_padded_masks(trio: Trio) -> None:
    for batch, length, pad in ((3, 8, 3), (2, 6, 2), (2, 6, 4), (3, 8, 3), (3, 8, 2)):
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, :pad] = 0
        before = planned(trio.fused)
        with torch.inference_mode():
            ids = tokens(batch, length)
            found, plain, true = (
                m(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
                for m in (trio.fused, trio.eager, trio.exact)
            )
        close(found, plain, true, STEPS)
    assert all(planned(trio.fused)[n] > before[n] for n in before)


def test_a_mask_given_then_left_out_then_given(quick: fusion.FusionConfig) -> None:
    trio = Trio(quick, "qwen3", torch.float32)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    for given in (mask, None, mask, None, mask, None):
        with torch.inference_mode():
            keep = mask.bool() if given is not None else slice(None)
            found, plain, true = (
                m(tokens(2, 6), attention_mask=given, use_cache=False).logits[keep]
                for m in (trio.fused, trio.eager, trio.exact)
            )
        close(found, plain, true, STEPS)
    layers = [s for n, s in scopes(trio.fused).items() if "layers" in n]
    assert all(s.statistics.recordings == 2 for s in layers), "None and a mask are two structures"


def test_sliding_window(quick: fusion.FusionConfig) -> None:
    changes = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
    eager = transformer(**changes)
    assert "sliding_attention" in eager.config.layer_types
    exact = copy.deepcopy(eager).double()
    model = fusion.enable(transformer(**changes), quick)
    sizes = (6, 5, *[1] * 5)
    for seed in range(3):
        ids = tokens(2, sum(sizes), seed)
        before = planned(model)
        found, plain, true = (chunks(m, cache_of("dynamic", m), ids, sizes) for m in (model, eager, exact))
        close(found, plain, true, STEPS)
    assert all(planned(model)[n] > before[n] for n in before)


# ---- generate


@pytest.mark.parametrize("kind", KINDS if FULL else KINDS[:1])
def test_greedy_tokens_are_eagers(kind: str, quick: fusion.FusionConfig) -> None:
    eager = transformer(kind)
    model = fusion.enable(transformer(kind), quick)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    for ids, extra in (
        (tokens(1, 5), {}),
        (tokens(3, 7), {"attention_mask": mask}),
        (tokens(2, 6), {"cache_implementation": "static"}),
        (tokens(2, 4), {"use_cache": False}),
    ):
        given = {"attention_mask": torch.ones_like(ids), **extra}
        expected = eager.generate(ids, **given, **options)
        assert torch.equal(model.generate(ids, **given, **options), expected), extra
    assert all(count >= 8 for count in planned(model).values()), planned(model)


def test_hidden_states_and_attentions_come_along(quick: fusion.FusionConfig) -> None:
    eager = transformer(attn_implementation="eager")
    exact = copy.deepcopy(eager).double()
    model = fusion.enable(transformer(attn_implementation="eager"), quick)
    for length in (6, 6, 9, 9, 6):
        with torch.inference_mode():
            found, plain, true = (
                m(tokens(2, length), output_hidden_states=True, output_attentions=True, use_cache=False)
                for m in (model, eager, exact)
            )
        for field in ("hidden_states", "attentions"):
            assert len(getattr(found, field)) == len(getattr(plain, field)) > 2
            for a, b, c in zip(getattr(found, field), getattr(plain, field), getattr(true, field), strict=True):
                close(a, b, c, STEPS)
