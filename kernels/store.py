"""A content-addressed cache on disk for what is expensive to make twice: libraries and decisions.

An entry is written to a new file and renamed into place under a lock; when it is read its SHA-256 is checked, and one
that does not match is a miss. Trouble with the disk turns the store off with a reason; it never raises in a call.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from fusion.patterns.errors import FusionError

_KEY = re.compile(r"[0-9a-f]{64}")
_LOCK_TIMEOUT_S = 20.0
_FORMAT = 1


def default_directory() -> Path:
    """The cache folder: FUSION_CACHE_DIR, else the user's cache folder for opfusion."""
    named = os.environ.get("FUSION_CACHE_DIR", "")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("opfusion"))


class Store:
    """JSON values and files by SHA-256 key, in a directory only its owner can enter.

    Args:
        directory: where; made with mode 0700 if it is not there.

    Raises:
        FusionError: the directory is a symbolic link, no directory, or someone else's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.reason = ""  # why the store is off; empty while it works
        self.hits = 0
        self.misses = 0
        try:
            self._open()
        except OSError as error:
            self.reason = f"The cache folder {self.directory} cannot be used: {error}."

    def _open(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(self.directory)
        remedy = "Remove it, or name another folder with FUSION_CACHE_DIR."
        if stat.S_ISLNK(found.st_mode):
            raise FusionError(f"The cache folder {self.directory} must not be a symbolic link.", remedy=remedy)
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            raise FusionError(
                f"The cache folder {self.directory} belongs to user {found.st_uid}, not to {os.getuid()}.",
                remedy=remedy,
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.chmod(self.directory, 0o700)
        (self.directory / "blobs").mkdir(mode=0o700, exist_ok=True)

    @property
    def enabled(self) -> bool:
        """Whether the store works; if not, `reason` says why."""
        return not self.reason

    def has(self, key: str, kind: str) -> bool:
        """Whether there is an entry of a kind, "json" or "file", under `key`; whether it is a good one, reading tells."""
        _check(key)
        return self.enabled and self._entry(key, kind).exists()

    def get_json(self, key: str) -> Any | None:
        """The value stored under `key`, or None."""
        value = self._read(key, "json")
        self._count(value is not None)
        return value

    def put_json(self, key: str, value: Any) -> bool:
        """Stores a JSON-able value; False if the disk refused."""
        return self._write(key, "json", value)

    def get_file(self, key: str) -> Path | None:
        """The verified file stored under `key`, or None. It must not be written to."""
        path = self._blob(key)
        self._count(path is not None)
        return path

    def put_file(self, key: str, source: Path) -> Path | None:
        """Stores a copy of `source`; returns where it is now, or None if the disk refused."""
        _check(key)
        if not self.enabled:
            return None
        try:
            content = Path(source).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            target = self.directory / "blobs" / f"{digest}{Path(source).suffix}"
            with self._locked():
                _replace(target, content)
        except (OSError, TimeoutError) as error:
            self.reason = f"The cache folder {self.directory} cannot be written: {error}."
            return None
        return target if self._write(key, "file", {"sha256": digest, "name": target.name}) else None

    def clear(self) -> None:
        """Removes every entry. Libraries already loaded stay usable."""
        with contextlib.suppress(OSError, TimeoutError), self._locked():
            for path in self._files():
                path.unlink(missing_ok=True)

    def statistics(self) -> dict[str, int]:
        """Hits and misses of this object; entries and bytes on disk."""
        files = list(self._files())
        size = 0
        for path in files:
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        entries = sum(path.suffix == ".entry" for path in files)
        return {"hits": self.hits, "misses": self.misses, "entries": entries, "bytes": size}

    def _count(self, hit: bool) -> None:
        self.hits += hit
        self.misses += not hit

    def _files(self) -> Iterator[Path]:
        yield from self.directory.glob("*.entry")
        yield from self.directory.glob(".new-*")
        yield from (self.directory / "blobs").glob("*")

    def _locked(self) -> FileLock:
        return FileLock(self.directory / ".lock", timeout=_LOCK_TIMEOUT_S, mode=0o600)

    def _entry(self, key: str, kind: str) -> Path:
        return self.directory / f"{key}.{kind}.entry"

    def _write(self, key: str, kind: str, value: Any) -> bool:
        _check(key)
        if not self.enabled:
            return False
        body = json.dumps({"format": _FORMAT, "key": key, "kind": kind, "value": value}, sort_keys=True).encode()
        try:
            with self._locked():
                _replace(self._entry(key, kind), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except (OSError, TimeoutError) as error:
            self.reason = f"The cache folder {self.directory} cannot be written: {error}."
            return False
        return True

    def _read(self, key: str, kind: str) -> Any | None:
        _check(key)
        if not self.enabled:
            return None
        try:
            digest, _, body = self._entry(key, kind).read_bytes().partition(b"\n")
        except OSError:
            return None
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        entry = json.loads(body)
        right = isinstance(entry, dict) and [entry.get(k) for k in ("format", "key", "kind")] == [_FORMAT, key, kind]
        return entry.get("value") if right else None

    def _blob(self, key: str) -> Path | None:
        entry = self._read(key, "file")
        if entry is None:
            return None
        path = self.directory / "blobs" / entry["name"]
        try:
            content = path.read_bytes()
        except OSError:
            return None
        return path if hashlib.sha256(content).hexdigest() == entry["sha256"] else None


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise FusionError(f"A cache key is 64 hexadecimal digits, not {key!r}.", remedy="Pass a SHA-256 hex digest.")


def _replace(target: Path, content: bytes) -> None:
    """Writes a file so that readers see all of it or none of it; a torn one after a crash fails its digest."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
