"""Function templates that kernels call, compiled once for all of them.

A tile of a matrix product takes the compiler longer than all else in its kernel, and is the same in each. So it becomes
an object file of its own, which the libraries of kernels are linked with. A kernel's source is complete without it:
what is not compiled elsewhere, the compiler makes of the prelude's text.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion.kernels.backends.cpp.libraries import is_whole
from fusion.kernels.backends.cpp.prelude import prelude
from fusion.kernels.backends.cpp.toolchain import Toolchain
from fusion.kernels.store import Store

_NAMES = (
    "tile", "pack_lanes", "pack_rows", "dots", "dots_of_one", "sum_rows", "scores_of", "weighted_of",
    "weights_of", "scores_of_many", "weighted_of_many", "products_of",
)  # fmt: skip
_CALL = re.compile(rf"\b((?:{'|'.join(_NAMES)})<[\w, ]+(?:<\w+>[\w, ]*)*>)\(")
_made: dict[str, Path] = {}  # object files of this process, by digest
_unfit: set[str] = set()  # toolchains that kernels did not compile with beside such objects, and did without


@dataclass(frozen=True, slots=True)
class Templates:
    """What some kernels need of the shared templates.

    Attributes:
        toolchain: the compiler's identity.
        found: by digest, the object files that hold what is compiled.
        missing: by digest, what is not, as C++ names it: "tile<float>".
    """

    toolchain: str
    found: dict[str, Path]
    missing: dict[str, str]

    @property
    def objects(self) -> list[Path]:
        """The files to link with."""
        return sorted(set(self.found.values()))

    @property
    def source(self) -> str:
        """A translation unit with what is missing; "" where nothing is."""
        lines = [f"template decltype({used}) {used};" for used in self.missing.values()]
        return "\n".join([prelude("\n".join(lines)), *lines, ""]) if lines else ""

    @property
    def any(self) -> bool:
        """Whether the kernels share anything."""
        return bool(self.found or self.missing)

    def keep(self, compiled: Path, store: Store | None) -> None:
        """Takes the object file that the compiler made of `source`."""
        for digest in self.missing:
            _made[digest] = (store.put_file(digest, compiled) if store else None) or compiled

    def give_up(self, store: Store | None) -> None:
        """From now on, kernels of this process share nothing: they compiled without, and did not with it."""
        _unfit.add(self.toolchain)
        for digest in self.found:
            if store is not None:
                store.drop(digest)


def needed(code: str, store: Store | None, toolchain: Toolchain) -> Templates:
    """The shared templates that the text of kernels uses.

    Args:
        code: of the kernels.
        store: where objects are kept; None for this process alone.
        toolchain: the compiler.
    """
    shared = _used(code) if toolchain.identity not in _unfit else ()
    digests = {_digest(used, toolchain.identity): used for used in shared}
    paths = {digest: _found(digest, store) for digest in digests}
    found = {digest: path for digest, path in paths.items() if path is not None}
    return Templates(toolchain.identity, found, {d: used for d, used in digests.items() if d not in found})


def declarations(code: str) -> list[str]:
    """Lines that tell the compiler which of the templates that `code` uses are compiled elsewhere."""
    return [f"extern template decltype({used}) {used};" for used in _used(code)]


def _used(code: str) -> Sequence[str]:
    return sorted(set(_CALL.findall(code)))


@functools.lru_cache(maxsize=256)
def _digest(used: str, toolchain: str) -> str:
    return hashlib.sha256(json.dumps([prelude(used), used, toolchain]).encode()).hexdigest()


def _found(digest: str, store: Store | None) -> Path | None:
    """The object file that holds a template; one that cannot be used is dropped, to be made again."""
    made = _made.get(digest)
    if made is not None and made.exists():
        return made
    path = store.get_file(digest) if store else None
    if store is not None and path is not None and not is_whole(path):
        store.drop(digest)
        return None
    return path
