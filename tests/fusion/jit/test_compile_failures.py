"""Compilers, kernels and caches that fail: the results stay right, and the report says what went wrong."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import pytest
import torch.nn.functional as F
from beside_eager import Stack, Store, pair, same, trust, values
from tiny import scopes

import fusion
from fusion.choices import kernel_cache
from fusion.jit.stages import Stages
from fusion.runtime.native import native_available


def failing(monkeypatch: pytest.MonkeyPatch, allowed: int) -> list[int]:
    """Makes the compile stage raise OSError after `allowed` calls; the list grows by one for each."""
    compile_, calls = Stages.compile, []

    def compiles(self: Stages, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > allowed:
            raise OSError("the library cannot be loaded")
        return compile_(self, *args, **kwargs)

    monkeypatch.setattr(Stages, "compile", compiles)
    return calls


def test_a_compile_that_raises_while_following_a_twin(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = Stack().eval()
    for index, layer in enumerate(eager.layers):
        layer.layer_idx, layer.window = index, 0  # twins but for their numbers
    module = fusion.enable(copy.deepcopy(eager), quick)
    calls = failing(monkeypatch, allowed=1)
    same(module, eager, values(), Store(), steps=4)
    assert len(calls) == 2
    first, second, _ = fusion.report(module).scopes
    assert "the library cannot be loaded" not in first.reason
    assert "OSError: the library cannot be loaded" in second.reason


def test_a_compile_that_raises_at_another_shape(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, eager = pair(quick, lambda m, x, _: F.silu(x) * m.w)
    same(module, eager, values(10))
    calls = failing(monkeypatch, allowed=0)
    same(module, eager, values(40))
    assert len(calls) == 1
    assert "OSError: the library cannot be loaded" in fusion.report(module).to_json()


def test_a_kernel_that_raises_is_in_the_report(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = kernel_cache.make_launcher
    broken: list[bool] = []

    def fragile(kernel: Any) -> Any:
        launch = make(kernel)

        def run(*args: Any) -> Any:
            if broken:
                raise RuntimeError("the kernel stopped")
            return launch(*args)

        return run

    monkeypatch.setattr(kernel_cache, "make_launcher", fragile)
    config = fusion.FusionConfig(profile=False, cache_dir=tmp_path)
    module, eager = pair(config, lambda m, x, _: F.silu(x) * m.w)
    trust(module, eager)
    broken.append(True)
    same(module, eager, values())
    report = fusion.report(module)
    assert report.scopes[0].fallbacks == 1
    assert "RuntimeError: the kernel stopped" in report.to_json()


def test_the_report_names_an_unusable_cache_and_the_c_runtime(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    config = fusion.FusionConfig(profile=False, cache_dir=tmp_path / "file" / "folder")
    module, eager = pair(config, lambda m, x, _: F.silu(x) * m.w)
    trust(module, eager)
    environment = json.loads(fusion.report(module).to_json())["environment"]
    assert "cannot be used" in environment["cache"] and str(tmp_path) in environment["cache"]
    assert environment["C runtime"] == (native_available() or "in use")
    assert scopes(module)["Module"].stages.backends.store.reason == environment["cache"]
