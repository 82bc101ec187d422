"""Compilers that hang, or whose words are not UTF-8."""

import os
from pathlib import Path

import pytest

from fusion.kernels import compiler
from fusion.kernels.toolchain import cpp
from fusion.patterns.errors import CompileError


def _toolchain(path: Path, body: str) -> cpp.Toolchain:
    path.write_bytes(b"#!/bin/sh\n" + body.encode("latin-1"))
    path.chmod(0o755)
    return cpp.Toolchain((str(path),), "fake", (), "", "")


def test_a_compiler_that_hangs_is_tried_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp, "_TIMEOUT_S", 0.5)
    monkeypatch.setattr(cpp, "_hung", set())
    toolchain = _toolchain(tmp_path / "cxx", "sleep 1000 &\nwait\n")
    for _ in range(2):
        with pytest.raises(CompileError, match="not tried again"):
            toolchain.compile_library(("int a;",), tmp_path / "a.so")
    assert cpp._hung == {str(tmp_path / "cxx")}


def test_the_compilers_own_words_come_first_and_need_not_be_utf8(tmp_path):
    toolchain = _toolchain(tmp_path / "cxx", "echo 'a.cpp:1: error: b\xe9d' >&2\nexit 1\n")
    with pytest.raises(CompileError) as caught:
        toolchain.compile_library(("int a;",), tmp_path / "a.so")
    assert "error: b\ufffdd" in str(caught.value).splitlines()[0]


def test_only_the_process_that_made_the_folder_removes_it(tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir()
    compiler._remove(os.getpid() + 1, folder)
    assert folder.is_dir()
    compiler._remove(os.getpid(), folder)
    assert not folder.exists()
