"""Compilers that hang, that are slow, or whose words are not UTF-8."""

import collections
import os
import signal
import subprocess
from pathlib import Path

import pytest

from fusion.kernels import processes
from fusion.kernels.backends.cpp import toolchain as cpp_toolchain
from fusion.patterns.errors import CompileError


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What earlier tests found out about compilers is forgotten."""
    monkeypatch.setattr(cpp_toolchain, "_hung", {})
    monkeypatch.setattr(cpp_toolchain, "_overruns", collections.Counter())


def _program(path: Path, body: str) -> str:
    path.write_bytes(b"#!/bin/sh\n" + body.encode("latin-1"))
    path.chmod(0o755)
    return str(path)


def _toolchain(path: Path, body: str) -> cpp_toolchain.Toolchain:
    return cpp_toolchain.Toolchain((_program(path, body),), "fake", (), "", "")


def _alive(name: str) -> bool:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return any(line.strip() == name for line in found.splitlines())


@pytest.mark.parametrize("body", ["sleep 98761 &\nwait\n", "trap '' TERM INT\nsleep 98761\n"], ids=["waits", "deaf"])
def test_a_compiler_that_sleeps_for_ever_is_tried_once_and_leaves_nothing(tmp_path, monkeypatch, body):
    monkeypatch.setattr(processes, "QUIET_S", 0.5)
    toolchain = _toolchain(tmp_path / "cxx", f"echo x >> {tmp_path}/calls\n{body}")
    for _ in range(2):
        with pytest.raises(CompileError, match=r"hangs: it slept for .*not tried again"):
            toolchain.compile_library(("int a;", "int b;"), tmp_path / "a.so")
    assert len((tmp_path / "calls").read_text().split()) == 2  # one for each of the two sources
    assert not _alive("sleep 98761")


def test_a_compiler_that_computes_for_ever_is_told_by_a_trifle(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp_toolchain, "_TRIFLE_S", 0.3)
    toolchain = _toolchain(tmp_path / "cxx", "while :; do :; done\n")
    with pytest.raises(CompileError, match="processor time for a source of one line"):
        toolchain.compile_library(("int a;",), tmp_path / "a.so")
    assert set(cpp_toolchain._hung) == {toolchain.command}


def test_a_large_source_may_take_long_and_one_that_takes_for_ever_is_refused_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp_toolchain, "_TRIFLE_S", 0.3)
    monkeypatch.setattr(cpp_toolchain, "_PROCESSOR_S", 1.0)
    spins = 'case "$*" in *trifle*) exit 0;; esac\nwhile :; do :; done\n'
    toolchain = _toolchain(tmp_path / "cxx", spins)
    with pytest.raises(CompileError, match="for one source"):
        toolchain.compile_library(("int a;",), tmp_path / "a.so")
    assert not cpp_toolchain._hung


def test_a_process_that_a_busy_machine_keeps_waiting_does_not_hang(monkeypatch):
    """No process is seen to get any processor time, but each is ready to run."""
    monkeypatch.setattr(processes, "_session", lambda leader: (0.0, True))
    monkeypatch.setattr(processes, "_LOOKS_EVERY_S", 0.05)
    (ended,) = processes.run([["sleep", "1"]], processor_s=1.0, quiet_s=0.2)
    assert ended.status == 0


def test_what_a_starved_watcher_did_not_see_does_not_count(monkeypatch):
    monkeypatch.setattr(processes, "_session", lambda leader: (0.0, False))
    with processes._started(["sleep", "98762"]) as running:
        running.look(1000.0, 1.0, processes.QUIET_S)  # the watcher had no processor for a long time
        with pytest.raises(processes.Hung):
            for _ in range(100):
                running.look(processes._LOOKS_EVERY_S, 1.0, processes.QUIET_S)


def test_orphans_that_hold_its_outputs_do_not_hold_up_a_call(tmp_path):
    program = _program(tmp_path / "cxx", "sleep 98763 &\necho $!\n")
    (ended,) = processes.run([[program]], processor_s=10.0)
    os.kill(int(ended.output), signal.SIGKILL)


def test_a_compiler_that_hangs_when_asked_what_it_is_does_not_count_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp_toolchain, "_TELLS_VERSION_S", 0.5)
    program = _program(tmp_path / "g++", f"echo x >> {tmp_path}/calls\n/bin/sleep 98764\n")
    for runtime in ("", "/lib/libgomp.so"):
        assert cpp_toolchain._find(program, str(tmp_path), runtime) is None
    assert len((tmp_path / "calls").read_text().split()) == 1
    assert not _alive("/bin/sleep 98764")


def test_the_compilers_own_words_come_first_and_need_not_be_utf8(tmp_path):
    toolchain = _toolchain(tmp_path / "cxx", "echo 'a.cpp:1: error: b\xe9d' >&2\nexit 1\n")
    with pytest.raises(CompileError) as caught:
        toolchain.compile_library(("int a;",), tmp_path / "a.so")
    assert "error: b\ufffdd" in str(caught.value).splitlines()[0]


def test_files_that_cannot_be_written_are_a_failure_to_compile(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(CompileError, match="could not be written"):
        _toolchain(tmp_path / "cxx", "exit 0\n").compile_library(("int a;",), tmp_path / "a.so")
