"""First runs of kernels in a process of their own, so that one that reads or writes astray does not harm the user's."""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fusion.kernels.backend import Fault
from fusion.kernels.backends.cpp import isolated_worker as cpp_isolated_worker
from fusion.kernels.backends.cpp.compile import CompiledKernel
from fusion.kernels.backends.cpp.native_call import type_code
from fusion.kernels.backends.cpp.toolchain import openmp_runtime
from fusion.patterns import symbols

_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP)
_TIMEOUT_S = 120.0  # of all kernels together, which take milliseconds: only one that never ends gets there


class FirstRuns:
    """A process that runs kernels for the first time. It starts at once and waits for what `outcome` sends it.

    Attributes:
        available: whether such a process can be had here.
    """

    def __init__(self) -> None:
        self._process = _start()

    @property
    def available(self) -> bool:
        return self._process is not None

    def outcome(self, kernels: Sequence[tuple[CompiledKernel, Sequence[Mapping[str, int]]]]) -> dict[int, Fault]:
        """Runs kernels between guard pages.

        Args:
            kernels: each with the values of its nest's size symbols that it is run at; operators allow all of them.

        Returns:
            why a kernel must not be run, by its position; those that may are left out.
        """
        wrong: dict[int, Fault] = {}
        waiting = [(k, _request(kernel, cases)) for k, (kernel, cases) in enumerate(kernels)]
        while waiting:
            process, self._process = self._process or _start(), None
            if process is None:
                return wrong
            lines, died = _answer(process, {"runtime": openmp_runtime(), "kernels": waiting})
            wrong |= {int(line[1]): Fault(" ".join(line[2:]), True) for line in lines if line[0] == "wrong"}
            begun = [int(line[1]) for line in lines if line[0] == "begin"]
            if died is None or not begun:
                return wrong  # all have run, or the process could not run them
            wrong[begun[-1]] = died
            waiting = [(k, request) for k, request in waiting if k > begun[-1]]
        return wrong

    def close(self) -> None:
        """Ends the process where it still waits."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[bytes] | None:
    # torch's OpenMP runtime reads its number of threads from the environment: as many as kernels get here.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "PASSIVE"}
    environment = {**os.environ, **threads}
    command = [sys.executable, "-I", "-S", str(Path(cpp_isolated_worker.__file__))]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    if os.name != "posix" or not Path(sys.executable).name.startswith("python"):
        return None  # in a frozen or embedding program that would start the program again
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, env=environment)
    except OSError:
        return None


def _answer(process: subprocess.Popen[bytes], request: Any) -> tuple[list[list[str]], Fault | None]:
    """The words of the lines it wrote, and what a kernel ended it with."""
    died: Fault | None = None
    try:
        told = process.communicate(marshal.dumps(request), timeout=_TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        told = process.communicate()[0]
        died = Fault(f"its first run did not end within {_TIMEOUT_S:g} s", lasting=False)
    finally:
        if process.returncode is None:
            process.kill()
    if died is None and process.returncode < 0:
        number = -process.returncode
        ended = f"its first run, in a process of its own, ended it with {signal.Signals(number).name}"
        died = Fault(ended, lasting=number in _FAULTS)  # the others come from outside: somebody ended it
    return [line.split() for line in told.decode().splitlines()], died


def _request(kernel: CompiledKernel, cases: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    nest = kernel.nest
    given = [s for s in nest.sizes if s.source == "given"]
    return {
        "library": kernel.library,
        "symbol": kernel.symbol,
        "sizes": len(nest.sizes),
        "inputs": [(type_code(a.dtype), 8 * a.dtype.itemsize) for a in nest.inputs],
        "outputs": [(o.dtype.itemsize, len(o.order), len(o.loose)) for o in nest.outputs],
        "cases": [
            {
                "inputs": [
                    [[symbols.evaluate(d, at) for d in dims] for dims in (a.shape, a.strides)] for a in nest.inputs
                ],
                "given": [at[s.symbol] for s in sorted(given, key=lambda s: s.argument)],
            }
            for at in cases
        ],
    }
