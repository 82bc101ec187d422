"""The templates that kernels share: compiled once, found again, and never needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled_examples import needs_compiler
from graphs import trace

from fusion.kernels.backends.cpp import emit, templates
from fusion.kernels.backends.cpp.compile import compile_cpp, run_ctypes
from fusion.kernels.backends.cpp.toolchain import Toolchain
from fusion.kernels.bundle import Nest
from fusion.kernels.lower import lower
from fusion.kernels.store import Store
from fusion.patterns.errors import CompileError

pytestmark = needs_compiler
X, WEIGHT = torch.randn(20, 40), torch.randn(30, 40)


def product(scale: float) -> Nest:
    """A product, and what makes it a kernel of its own."""
    return lower(trace(lambda x, w: F.linear(x, w) * scale, X, WEIGHT))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], tuple[Path, ...], str]]:
    """Of each library that is made: its units, what it is linked with, and what is kept for others."""
    monkeypatch.setattr(templates, "_made", {})
    monkeypatch.setattr(templates, "_unfit", set())
    calls: list[tuple[tuple[str, ...], tuple[Path, ...], str]] = []
    compile_library = Toolchain.compile_library

    def noted(
        toolchain: Toolchain, sources: tuple[str, ...], path: Path, objects: Sequence[Path] = (), shared: str = ""
    ) -> Any:
        calls.append((sources, tuple(objects), shared))
        return compile_library(toolchain, sources, path, objects, shared)

    monkeypatch.setattr(Toolchain, "compile_library", noted)
    return calls


def works(nest: Nest, store: Store | None, scale: float) -> None:
    (kernel,) = compile_cpp([nest], store)
    torch.testing.assert_close(run_ctypes(kernel, [X, WEIGHT])[0], F.linear(X, WEIGHT) * scale)


@pytest.mark.parametrize("kept", [True, False])
def test_what_kernels_share_is_compiled_once(tmp_path: Path, compiled: list[Any], kept: bool) -> None:
    store = Store(tmp_path) if kept else None
    works(product(2.0), store, 2.0)
    works(product(3.0), store, 3.0)
    (_, before, made), (units, linked, more) = compiled
    assert not before and "template decltype(tile<float>) tile<float>;" in made
    assert linked and not more and "extern template decltype(tile<float>)" in units[0]


def test_another_process_finds_them_in_the_store(
    tmp_path: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    works(product(2.0), Store(tmp_path), 2.0)
    monkeypatch.setattr(templates, "_made", {})
    works(product(3.0), Store(tmp_path), 3.0)
    assert compiled[1][1] and not compiled[1][2]


def test_objects_that_cannot_be_linked_with_are_done_without(
    tmp_path: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    works(product(2.0), store, 2.0)
    broken = tmp_path / "broken.o"
    broken.write_text("no object\n" * 20)
    monkeypatch.setattr(templates, "_made", dict.fromkeys(templates._made, broken))
    works(product(3.0), store, 3.0)
    works(product(4.0), store, 4.0)
    assert [bool(objects) for _, objects, _ in compiled] == [False, True, False, False]
    assert all("extern template" not in unit for units, _, _ in compiled[2:] for unit in units)


def test_a_broken_kernel_is_no_fault_of_what_it_shares(compiled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "_run_function", lambda *_: ["nonsense"])
    with pytest.raises(CompileError, match="nonsense"):
        compile_cpp([product(5.0)], None)
    assert len(compiled) == 2 and not templates._unfit


def test_kernels_without_products_share_nothing(compiled: list[Any]) -> None:
    compile_cpp([lower(trace(lambda x: torch.softmax(x, -1), X))], None)
    assert compiled[0][1:] == ((), "")
