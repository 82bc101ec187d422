"""A content-addressed cache on disk for what is expensive to make twice: libraries and decisions.

An entry is written to a new file and renamed into place under a lock; when it is read its SHA-256 is checked, and one
that does not match is a miss, as is anything that is no regular file. A folder that cannot be written is still read;
one that cannot be used at all turns the store off. Either way there is a reason; trouble with the disk never raises in
a call.
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
from typing import Annotated, Any, Literal

import platformdirs
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from fusion.patterns.errors import FusionError

_KEY = re.compile(r"[0-9a-f]{64}")
_LOCK_TIMEOUT_S = 5.0  # what is not kept for that is made again another time
_MOST_BYTES = {"entry": 1 << 20, "blob": 1 << 30}  # of a file that is read
_FORMAT = 1


class _Entry(BaseModel):
    """What a file of the store says."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal[1]
    key: str
    kind: str
    value: Any


class _File(BaseModel):
    """The value of an entry for a file: where it is among the blobs."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    name: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}(\.[a-z0-9]{1,8})?$")]


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
        self.reason = ""  # why the store is off, or is only read; empty while it works
        self.enabled = True  # whether it is read
        self.hits = 0
        self.misses = 0
        self._dropped: set[str] = set()
        try:
            self._open()
        except OSError as error:
            self.enabled = False
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
        try:
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.chmod(self.directory, 0o700)
            (self.directory / "blobs").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            if stat.S_IMODE(found.st_mode) & 0o022:
                raise  # others may have written what would be read
            self._only_read(error)

    def _only_read(self, error: OSError) -> None:
        self.reason = f"The cache folder {self.directory} is only read, for it cannot be written: {error}."

    def has(self, key: str, kind: str) -> bool:
        """Whether there is an entry of a kind, "json" or "file", under `key`; if it is a good one, reading tells."""
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
        content = Path(source).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        target = self.directory / "blobs" / f"{digest}{Path(source).suffix}"
        if not self._put(target, content):
            return None
        self._dropped.discard(key)
        return target if self._write(key, "file", {"sha256": digest, "name": target.name}) else None

    def drop(self, key: str) -> None:
        """Forgets the file stored under `key`, which turned out to be of no use."""
        self._dropped.add(key)
        with contextlib.suppress(OSError):
            self._entry(key, "file").unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes every entry. Libraries already loaded stay usable."""
        with contextlib.suppress(OSError), self._locked():
            for path in self._files():
                with contextlib.suppress(OSError):
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
        body = json.dumps({"format": _FORMAT, "key": key, "kind": kind, "value": value}, sort_keys=True).encode()
        return self._put(self._entry(key, kind), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def _put(self, target: Path, content: bytes) -> bool:
        """Writes a file; whether it is there now."""
        if self.reason:
            return False
        try:
            with self._locked():
                _replace(target, content)
        except IsADirectoryError:
            return False  # something of somebody's is in the place of this one file
        except OSError as error:
            self._only_read(error)
            return False
        return True

    def _read(self, key: str, kind: str) -> Any | None:
        _check(key)
        if not self.enabled:
            return None
        digest, _, body = (_content(self._entry(key, kind), "entry") or b"").partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        try:
            entry = _Entry.model_validate_json(body)
        except ValidationError:
            return None
        return entry.value if (entry.key, entry.kind) == (key, kind) else None

    def _blob(self, key: str) -> Path | None:
        value = None if key in self._dropped else self._read(key, "file")
        try:
            entry = _File.model_validate(value)
        except ValidationError:
            return None
        path = self.directory / "blobs" / entry.name
        content = _content(path, "blob")
        return path if content is not None and hashlib.sha256(content).hexdigest() == entry.sha256 else None


def _content(path: Path, kind: str) -> bytes | None:
    """What a regular file holds; None for anything else, which may wait for a writer for ever, or have no end."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as stream:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES[kind]:
                return None
            return stream.read(_MOST_BYTES[kind])
    except OSError:
        return None


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
