"""The file of digests: read, written, and compared with what was found."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STORED = Path(__file__).parent / "digests.json"
_DIGITS = 12  # of each digest: 48 bits, where each of some 300 texts is compared with one other
_LIBRARIES = ("torch", "transformers")  # whose version decides what is recorded

Texts = Mapping[str, Mapping[str, str]]  # case -> stage -> text
Digests = dict[str, dict[str, str]]  # case -> stage -> digest


def digests_of(texts: Texts) -> Digests:
    """The digest of each text."""
    return {
        case: {stage: hashlib.sha256(text.encode()).hexdigest()[:_DIGITS] for stage, text in stages.items()}
        for case, stages in texts.items()
    }


def versions() -> dict[str, str]:
    """What the digests depend on beside this repository: Python's minor version, and the libraries' without a build."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[library] = "none"
    return found


@dataclass(frozen=True)
class Stored:
    """The file's contents.

    Attributes:
        versions: under which the digests were made, by name.
        digests: of every case.
    """

    versions: dict[str, str]
    digests: Digests

    @staticmethod
    def empty() -> Stored:
        """No digests, of this process's versions."""
        return Stored(versions(), {})

    @staticmethod
    def read(path: Path = STORED) -> Stored:
        """The file's contents, `empty` where there is none."""
        if not path.exists():
            return Stored.empty()
        data = json.loads(path.read_text())
        return Stored(data["versions"], data["cases"])

    def write(self, path: Path = STORED) -> None:
        """Writes a line for each case, so that a change of one is a change of one line."""
        cases = ",\n".join(f"    {json.dumps(case)}: {json.dumps(self.digests[case])}" for case in sorted(self.digests))
        path.write_text(f'{{\n  "versions": {json.dumps(self.versions)},\n  "cases": {{\n{cases}\n  }}\n}}\n')

    def other_versions(self) -> str:
        """A sentence where the digests were made under other versions than this process has; else ""."""
        here = versions()
        if self.versions == here:
            return ""
        theirs, ours = (", ".join(f"{k} {v}" for k, v in found.items()) for found in (self.versions, here))
        return (
            f"The digests were made under {theirs}; here is {ours}. Texts differ between versions, so nothing was "
            "compared. Use the versions of constraints.txt, or write all digests anew: make replay ACCEPT=1"
        )


def differences(stored: Digests, found: Digests) -> dict[str, list[str]]:
    """The stages whose digests differ, by case; ["new"] for a case that is not stored."""
    differ: dict[str, list[str]] = {}
    for case, stages in found.items():
        known = stored.get(case)
        if known is None:
            differ[case] = ["new"]
        elif known != stages:
            differ[case] = [s for s in dict.fromkeys((*stages, *known)) if stages.get(s) != known.get(s)]
    return differ


def write_texts(texts: Texts, folder: Path, differ: Mapping[str, list[str]] | None = None) -> None:
    """Writes texts as folder/case/stage.txt.

    Args:
        texts: by case and stage.
        folder: is made; other files in it stay.
        differ: what `differences` found, to write nothing else; None writes all.
    """
    for case, stages in texts.items():
        wanted = ["new"] if differ is None else differ.get(case, [])
        for stage, text in stages.items():
            if stage in wanted or wanted == ["new"]:
                (folder / case).mkdir(parents=True, exist_ok=True)
                (folder / case / f"{stage}.txt").write_text(text)
