"""Compilers as processes: run side by side, watched for a hang, and ended with all that they have started.

A compiler that hangs is told from one that a busy machine keeps waiting by what it does, not by a clock. One that waits
for a processor is ready to run, and one that waits for a disk says so; one that hangs does neither, or computes without
end. So a busy machine loses no kernels, and a hang costs a known time.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

QUIET_S = 8.0  # of seeing a compiler neither run, nor wait for a processor or a disk, after which it hangs
_LOOKS_EVERY_S = 0.4
_ACTIVE_SHARE = 0.1  # of the time since the last look: a process that used more of a processor is at work
_FORGIVES_S = 1.0  # of quiet for each look that finds it at work: a loop of sleeps is at work now and then
_MOST_S = 120.0  # where no /proc tells what a process does
_LAST_WAIT_S = 2.0  # for a killed process to be gone
_MOST_WORDS = 1 << 16  # bytes that are kept of what a compiler says
_aside: contextvars.ContextVar[bool] = contextvars.ContextVar("aside", default=False)
_meanwhile: contextvars.ContextVar[list[Callable[[], None]]] = contextvars.ContextVar("meanwhile")
_all: set[_Running] = set()
_ending = False  # whether the process ends


class Hung(Exception):
    """A program hangs; it and all that it has started were killed. `computes`: it was at work, to no end."""

    def __init__(self, why: str, *, computes: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.computes = computes


class Ended(NamedTuple):
    """How a process ended: its exit status, and what it wrote to its two outputs."""

    status: int
    output: str
    words: str


def run(
    commands: Sequence[Sequence[str]],
    *,
    processor_s: float,
    quiet_s: float | None = None,
    temporary: Path | None = None,
    on_look: Callable[[float], None] = lambda used: None,
    kept: int = _MOST_WORDS,
) -> list[Ended]:
    """Runs commands side by side, each in a session of its own, until all have ended.

    Args:
        commands: programs with their arguments.
        processor_s: processor seconds that each may use, with all that it starts.
        quiet_s: seconds that each may spend asleep; `QUIET_S` by default.
        temporary: a folder for their temporary files, which one that is killed leaves behind.
        on_look: called every now and then with the processor seconds that the busiest has used; may raise Hung.
        kept: bytes of each output that are read; what follows is left out.

    Returns:
        how each one ended, in order.

    Raises:
        Hung: one hangs; all were killed.
        OSError: one could not be started; the others were killed.
    """
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_started(command, temporary)) for command in commands]
        for work in _taken():
            work()
        pause, looked = 0.002, time.monotonic()
        while any(r.process.poll() is None for r in running):
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
            now = time.monotonic()
            if now - looked >= _LOOKS_EVERY_S:
                for r in running:
                    r.look(now - looked, processor_s, QUIET_S if quiet_s is None else quiet_s)
                on_look(max(r.used for r in running))
                looked = now
        return [Ended(r.process.returncode, _text(r.output, kept), _text(r.words, kept)) for r in running]


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Inside the block, this thread starts programs that run where nothing else does.

    A low priority is not enough: torch's threads wait for each other after each operator, and one that shares its
    processor with a compiler gets it back after milliseconds. A lone small operator took 200 times as long beside a
    compiler of low priority, and 6 times beside an idle one (2 cores).
    """
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Inside the block, the first `run` in this context does `work`, too, after it has started its programs."""
    token = _meanwhile.set([work])
    try:
        yield
    finally:
        _meanwhile.reset(token)


def _taken() -> list[Callable[[], None]]:
    """What is to be done while the programs run; nobody else gets it."""
    waiting = _meanwhile.get([])
    taken = waiting[:]
    waiting.clear()
    return taken


def end_all() -> None:
    """Ends every program that some thread waits for in `run`, and lets none be started aside any more."""
    global _ending
    _ending = True
    for running in list(_all):
        running.kill()


class _Running:
    """A process under watch."""

    def __init__(
        self, command: Sequence[str], output: IO[bytes], words: IO[bytes], temporary: Path | None = None
    ) -> None:
        self.output, self.words = output, words
        environment = None if temporary is None else {**os.environ, "TMPDIR": str(temporary)}
        prefix = _giving_way() if _aside.get() else ()
        self.process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=words,
            env=environment,
            start_new_session=True,
        )
        self._passed = self._quiet = self.used = 0.0

    def look(self, passed: float, processor_s: float, quiet_s: float) -> None:
        """Looks at the process, `passed` seconds after it was looked at last.

        Raises:
            Hung: it hangs.
        """
        if self.process.poll() is not None:
            return
        self._passed += passed
        seen = _session(self.process.pid)
        if seen is None:
            if self._passed > _MOST_S:
                raise Hung(f"ran past {_MOST_S:g} s")
            return
        used, ready = seen
        if ready or used - self.used > _ACTIVE_SHARE * passed:
            self._quiet = max(0.0, self._quiet - _FORGIVES_S)
        else:
            self._quiet += min(passed, 2 * _LOOKS_EVERY_S)  # what a starved watcher did not see does not count
        self.used = used
        if self._quiet >= quiet_s:
            raise Hung(f"slept for {quiet_s:g} s")
        if used > processor_s:
            raise Hung(f"used {processor_s:g} s of processor time", computes=True)

    def kill(self) -> None:
        """Ends the process, if it has not ended, with all in its session."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_LAST_WAIT_S)


@functools.cache
def _giving_way() -> tuple[str, ...]:
    """The beginning of a command whose program, and all that it starts, runs where nothing else does; () for none."""
    for prefix in (("chrt", "--idle", "0"), ("nice", "-n", "19")):
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return prefix
    return ()


@contextlib.contextmanager
def _started(command: Sequence[str], temporary: Path | None = None) -> Iterator[_Running]:
    """A process whose outputs are files: a pipe stays open as long as any orphan holds it."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as words:
        running = _Running(command, output, words, temporary)
        _all.add(running)
        try:
            if _ending and _aside.get():
                raise OSError("the process ends")
            yield running
        finally:
            running.kill()
            _all.discard(running)


def _text(file: IO[bytes], most: int) -> str:
    file.seek(0)
    return file.read(most).decode(errors="replace")


def _session(leader: int) -> tuple[float, bool] | None:
    """Processor seconds used by the processes of a session, and whether one of them runs or waits for a processor or a
    disk; None where the system does not tell."""
    ticks, ready, found = 0, False, False
    try:
        names = os.listdir("/proc")
    except OSError:
        return None
    for name in names:
        if not name.isdecimal():
            continue
        try:
            fields = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if len(fields) > 14 and fields[3] == str(leader):
            found = True
            ready = ready or fields[0] in "RD"
            ticks += sum(map(int, fields[11:15]))  # its own, and of children that have ended
    return (ticks / os.sysconf("SC_CLK_TCK"), ready) if found else None
