"""The disk cache: round trips, damage, foreign entries, permissions, two writers at once."""

import contextlib
import hashlib
import multiprocessing
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from fusion.kernels import store as store_module
from fusion.kernels.store import Store, default_directory
from fusion.patterns.errors import FusionError

KEY = hashlib.sha256(b"key").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def library(tmp_path, content=b"library"):
    path = tmp_path / "made.so"
    path.write_bytes(content)
    return path


def test_json_round_trip_and_statistics(store):
    assert store.get_json(KEY) is None
    assert store.put_json(KEY, {"a": [1, 2.5, "x"]})
    assert store.get_json(KEY) == {"a": [1, 2.5, "x"]}
    assert Store(store.directory).get_json(KEY) == {"a": [1, 2.5, "x"]}
    told = store.statistics()
    assert (told["hits"], told["misses"], told["entries"]) == (1, 1, 1)
    assert told["bytes"] > 64


def test_files_are_copied_and_shared_by_content(store, tmp_path):
    assert store.get_file(KEY) is None
    kept = store.put_file(KEY, library(tmp_path))
    assert store.put_file(OTHER, library(tmp_path)) == kept
    assert store.get_file(KEY) == kept
    assert kept.read_bytes() == b"library"
    assert kept.suffix == ".so"
    assert store.statistics()["entries"] == 2


def test_json_and_files_under_one_key_do_not_meet(store, tmp_path):
    store.put_json(KEY, 1)
    assert store.get_file(KEY) is None
    store.put_file(KEY, library(tmp_path))
    assert store.get_json(KEY) == 1


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b"", lambda b: b[:-1] + b"!", lambda b: b"0" * 64 + b"\n{}"]
)
def test_a_damaged_value_is_a_miss_and_is_replaced(store, damage):
    store.put_json(KEY, [1, 2, 3])
    (entry,) = store.directory.glob("*.entry")
    entry.write_bytes(damage(entry.read_bytes()))
    assert store.get_json(KEY) is None
    store.put_json(KEY, [4])
    assert store.get_json(KEY) == [4]


def test_a_damaged_or_missing_file_is_a_miss_and_is_replaced(store, tmp_path):
    kept = store.put_file(KEY, library(tmp_path))
    kept.write_bytes(b"librar?")
    assert store.get_file(KEY) is None
    assert store.put_file(KEY, library(tmp_path)).read_bytes() == b"library"
    assert store.get_file(KEY) == kept
    kept.unlink()
    assert store.get_file(KEY) is None


def test_an_entry_of_another_key_is_foreign(store):
    store.put_json(OTHER, "theirs")
    (entry,) = store.directory.glob("*.entry")
    entry.rename(store.directory / entry.name.replace(OTHER, KEY))
    assert store.get_json(KEY) is None
    body = b'["no entry at all"]'
    (store.directory / f"{KEY}.json.entry").write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert store.get_json(KEY) is None


@pytest.mark.parametrize("key", ["", "../../etc/passwd", KEY[:-1], KEY.upper(), KEY + "\n"])
def test_a_key_that_is_no_digest_is_refused(store, tmp_path, key):
    for call in (store.get_json, store.get_file, lambda k: store.put_json(k, 1), lambda k: store.put_file(k, tmp_path)):
        with pytest.raises(FusionError, match="64 hexadecimal digits"):
            call(key)


def test_the_directory_is_private(store):
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    store.directory.chmod(0o777)
    assert stat.S_IMODE(Store(store.directory).directory.stat().st_mode) == 0o700


def test_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(FusionError, match=r"symbolic link.*FUSION_CACHE_DIR"):
        Store(tmp_path / "link")


def test_someone_elses_directory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(store_module.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(FusionError, match=r"belongs to user.*FUSION_CACHE_DIR"):
        Store(tmp_path / "cache")


def test_a_place_that_cannot_be_made_turns_the_store_off(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "cache")
    assert not store.enabled
    assert str(tmp_path / "file") in store.reason
    assert store.get_json(KEY) is None
    assert store.put_json(KEY, 1) is False
    assert store.put_file(KEY, library(tmp_path)) is None
    store.clear()
    assert store.statistics()["bytes"] == 0


def test_a_folder_that_cannot_be_written_is_still_read(store, tmp_path, monkeypatch):
    kept = store.put_file(KEY, library(tmp_path))
    store.put_json(OTHER, [1])

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("chmod", "replace"):
        monkeypatch.setattr(store_module.os, name, read_only)
    monkeypatch.setattr(store_module, "FileLock", read_only)
    again = Store(store.directory)
    assert again.put_json(KEY, 2) is False
    assert "only read" in again.reason and "Read-only file system" in again.reason
    assert again.get_json(OTHER) == [1]
    assert again.get_file(KEY) == kept
    again.drop(KEY)
    assert again.get_file(KEY) is None


def test_a_folder_that_others_may_write_and_that_cannot_be_closed_is_not_read(store, monkeypatch):
    store.put_json(KEY, 1)
    store.directory.chmod(0o777)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store_module.os, "chmod", read_only)
    assert Store(store.directory).get_json(KEY) is None


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind("s")  # a socket's path is short
        os.rename("s", path)


def _link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_fifo, Path.mkdir, _socket, _link], ids=["fifo", "folder", "socket", "link"])
@pytest.mark.parametrize("what", ["entry", "blob"])
def test_what_is_no_regular_file_is_a_miss_and_holds_up_nobody(store, tmp_path, make, what):
    kept = store.put_file(KEY, library(tmp_path))
    store.put_json(OTHER, 1)
    path = store.directory / f"{KEY}.file.entry" if what == "entry" else kept
    path.unlink()
    make(path)
    assert store.get_file(KEY) is None
    assert (store.put_file(KEY, library(tmp_path)) is None) == path.is_dir()
    assert (store.get_file(KEY) is None) == path.is_dir()
    assert store.get_json(OTHER) == 1 and store.put_json(OTHER, 2)  # others are as they were
    store.clear()
    assert store.get_json(OTHER) is None


@pytest.mark.parametrize(
    "value",
    [
        [1, 2], "x", None, 5, {"sha256": "0" * 64}, {"sha256": "0" * 64, "name": 5}, {"sha256": 5, "name": "0" * 64},
        {"sha256": "0" * 64, "name": "../../etc/passwd"}, {"sha256": "0" * 64, "name": "0" * 64, "more": 1},
        {"sha256": "0" * 64, "name": "0" * 64 + ".so"},
    ],
)  # fmt: skip
def test_a_well_signed_entry_for_a_file_that_says_something_else_is_a_miss(store, value):
    store._write(KEY, "file", value)
    assert store.get_file(KEY) is None


@pytest.mark.parametrize("body", [b"[1]", b"[" * 100_000, b"\xff", b'{"format": 1}', b"1e999"])
def test_a_well_signed_body_that_is_no_entry_is_a_miss(store, body):
    signed = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    (store.directory / f"{KEY}.json.entry").write_bytes(signed)
    assert store.get_json(KEY) is None


def test_a_full_disk_turns_the_store_off_and_keeps_the_call_alive(store, tmp_path, monkeypatch):
    def full(target, content):
        raise OSError(28, "No space left on device")

    store.put_json(OTHER, 1)
    monkeypatch.setattr(store_module, "_replace", full)
    assert store.put_file(KEY, library(tmp_path)) is None
    assert "No space left" in store.reason
    assert store.get_json(OTHER) == 1
    assert store.put_json(KEY, 1) is False


def test_a_write_that_fails_leaves_no_file_behind(store, monkeypatch):
    def fails(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "replace", fails)
    assert store.put_json(KEY, 1) is False
    assert not list(store.directory.glob(".new-*"))


def test_clear_removes_everything(store, tmp_path):
    store.put_json(KEY, 1)
    store.put_file(OTHER, library(tmp_path))
    store.clear()
    assert store.get_json(KEY) is None
    assert store.get_file(OTHER) is None
    assert store.statistics()["bytes"] == 0
    assert store.put_json(KEY, 2)


def test_has_tells_of_an_entry_by_kind(tmp_path):
    store = Store(tmp_path / "cache")
    assert not store.has(KEY, "json")
    store.put_json(KEY, 1)
    assert store.has(KEY, "json") and not store.has(KEY, "file")


def _write(directory, start, number):
    store = Store(directory)
    start.wait(10)
    for turn in range(50):
        assert store.put_json(KEY, [number] * 500)
        source = Path(directory).parent / f"{number}.so"
        source.write_bytes(bytes([number]) * 5000)
        assert store.put_file(OTHER, source)
        value, path = store.get_json(KEY), store.get_file(OTHER)
        assert value in ([1] * 500, [2] * 500), turn
        assert path is not None and path.read_bytes() in (b"\1" * 5000, b"\2" * 5000)


def test_two_processes_write_the_same_key_at_once(tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    start = context.Barrier(2)
    workers = [context.Process(target=_write, args=(tmp_path / "cache", start, n)) for n in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_the_environment_names_the_directory(monkeypatch):
    monkeypatch.setenv("FUSION_CACHE_DIR", "~/elsewhere")
    assert default_directory() == Path.home() / "elsewhere"
    monkeypatch.delenv("FUSION_CACHE_DIR")
    assert default_directory().name == "opfusion"
