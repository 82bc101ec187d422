"""Libraries that cannot be used: made by a compiler, or found in the store."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from compiled_examples import needs_compiler, nests, works

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp.libraries import is_whole, why_unusable
from fusion.kernels.backends.cpp.toolchain import Toolchain, find_toolchain
from fusion.kernels.store import Store
from fusion.patterns.errors import CompileError
from fusion.runtime import native


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("no library\n" * 20)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _another(path: Path) -> None:
    found = find_toolchain()
    assert found is not None
    path.unlink()
    found.compile_library(('extern "C" int another;',), path)


BROKEN = pytest.mark.parametrize("breaks", [_empty, _text, _cut_off, _another])


@needs_compiler
@BROKEN
def test_a_library_in_the_store_that_cannot_be_used_is_made_again(
    tmp_path: Path, breaks: Callable[[Path], None]
) -> None:
    store = Store(tmp_path / "cache")
    (kernel,) = cpp_compile.compile_cpp(nests(("swiglu",)), None)
    copy = tmp_path / "broken.so"
    shutil.copy(kernel.library, copy)
    breaks(copy)
    store.put_file(kernel.digest, copy)
    (again,) = cpp_compile.compile_cpp(nests(("swiglu",)), store)
    assert not again.from_cache
    works(again, "swiglu")
    assert cpp_compile.compile_cpp(nests(("swiglu",)), Store(store.directory))[0].from_cache


@needs_compiler
@BROKEN
def test_a_library_that_cannot_be_used_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[Path], None]
) -> None:
    store = Store(tmp_path / "cache")
    made = Toolchain._compile

    def compiles(
        self: Toolchain, sources: tuple[str, ...], folder: Path, path: Path, objects: Sequence[Path], shared: str
    ) -> None:
        made(self, sources, folder, path, objects, shared)
        monkeypatch.undo()  # `_another` compiles, too
        breaks(path)

    monkeypatch.setattr(Toolchain, "_compile", compiles)
    with pytest.raises(CompileError, match="cannot be used"):
        cpp_compile.compile_cpp(nests(("swiglu",)), store)
    assert store.statistics()["entries"] == 0
    (kernel,) = cpp_compile.compile_cpp(nests(("swiglu",)), store)
    works(kernel, "swiglu")


@needs_compiler
@BROKEN
def test_a_c_runtime_in_the_store_that_cannot_be_used_is_made_again(
    tmp_path: Path, breaks: Callable[[Path], None]
) -> None:
    store = Store(tmp_path / "cache")
    native._load(store)
    (blob,) = (store.directory / "blobs").glob("*.so")
    (entry,) = store.directory.glob("*.entry")
    key = entry.name.partition(".")[0]
    copy = tmp_path / "broken.so"
    shutil.copy(blob, copy)
    breaks(copy)
    store.put_file(key, copy)
    assert native._load(store).Snapshot
    assert (kept := store.get_file(key)) is not None and is_whole(kept)
    assert native._imported(kept).Snapshot


def test_a_file_of_another_system_counts_as_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.dylib"
    path.write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))
    assert is_whole(path)
    assert why_unusable(path, ()) != ""
