"""`make replay`: what every stage of the pass makes of some models, compared with the digests that are stored.

Exit status: 0 where all is equal or accepted, 1 where something differs or a case fails, 2 where the digests were made
under other versions.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # where `bench` is

from replay_cases import cases  # noqa: E402
from replay_digests import Stored, Texts, differences, digests_of, write_texts  # noqa: E402
from replay_run import isolate, run  # noqa: E402

CHANGED = ROOT / "build" / "replay"  # where the texts go that differ


def main(arguments: Sequence[str] | None = None) -> int:
    """Replays, compares or stores, and says what differs."""
    parser = _parser()
    given = parser.parse_args(arguments)
    isolate()
    every = list(cases())
    names = [name for name in every if re.fullmatch(given.cases, name)]
    if not names:
        parser.error(f"no case's name is {given.cases!r}; there are {', '.join(every)}")
    stored = Stored.read()
    other = stored.other_versions()
    if other and given.accept and names == every:
        stored, other = Stored.empty(), ""
    if other and not given.texts:
        print(f"replay: {other}")
        return 2
    texts, failed = run(names, given.jobs)
    for name, why in failed.items():
        print(f"  {name} failed: {why}")
    if given.texts:
        write_texts(texts, given.texts)
        print(f"replay: the texts of {len(texts)} cases are in {given.texts}")
    if other:
        print(f"replay: {other}")
        return 2
    gone = [name for name in stored.digests if name not in every]
    return _accept(stored, texts, failed, gone) if given.accept else _compare(stored, texts, failed, gone)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="replay", description=__doc__)
    parser.add_argument("--accept", action="store_true", help="store what is found")
    parser.add_argument("--cases", default=".*", metavar="REGEX", help="names of cases; all of them if left out")
    parser.add_argument("--texts", type=Path, metavar="DIR", help="write all texts there, to compare two commits")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    return parser


def _accept(stored: Stored, texts: Texts, failed: Mapping[str, str], gone: Sequence[str]) -> int:
    if failed:
        print("replay: nothing was stored, as cases failed")
        return 1
    found = digests_of(texts)
    changed = len(differences(stored.digests, found)) + len(gone)
    kept = {name: digests for name, digests in stored.digests.items() if name not in gone}
    Stored(stored.versions, {**kept, **found}).write()
    print(f"replay: the digests of {changed} cases changed and were stored")
    return 0


def _compare(stored: Stored, texts: Texts, failed: Mapping[str, str], gone: Sequence[str]) -> int:
    differ = differences(stored.digests, digests_of(texts))
    for name, stages in {**differ, **{name: ["gone"] for name in gone}}.items():
        print(f"  {name}: {', '.join(stages)}")
    if not (differ or failed or gone):
        print(f"replay: {len(texts)} cases are equal")
        return 0
    shutil.rmtree(CHANGED, ignore_errors=True)
    write_texts(texts, CHANGED, differ)
    print(f"replay: {len(differ) + len(gone)} cases differ, {len(failed)} failed; the new texts are in {CHANGED}")
    print("The old texts: make replay ARGS='--texts DIR' at the earlier commit. A meant change: make replay ACCEPT=1")
    return 1


if __name__ == "__main__":
    sys.exit(main())
