"""Children forked while another thread compiles the C runtime, records, or holds a lock of ours."""

import builtins
import faulthandler
import os
import threading
import traceback
from collections.abc import Callable

import pytest
import torch

import fusion
from fusion.capture.python import interception
from fusion.runtime import native

QUICK = {"profile": False, "min_nodes": 1, "min_tensor_elements": 0}


def in_child(does: Callable[[], bool]) -> bool:
    """Whether `does` says yes in a forked child; one that hangs is ended. The child says on stderr what went wrong."""
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(120, exit=True, file=2)
        # OpenMP's threads do not survive a fork, and torch's own calls wait for them for ever.
        torch.set_num_threads(1)
        try:
            os._exit(0 if does() else 1)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(3)
    return os.waitpid(child, 0)[1] == 0


class Waits(torch.nn.Module):
    """Waits in its forward, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.waits:
            _reached.set()
            _go_on.wait()
        return torch.tanh(x) * 2 + max(1, 0)


_reached, _go_on = threading.Event(), threading.Event()


def test_a_child_that_is_forked_while_another_thread_records_calls_the_model() -> None:
    model = Waits().eval()
    model.waits = True
    fusion.enable(model, QUICK)
    x = torch.randn(3, 64)
    before = (builtins.print, builtins.max, torch.nn.Module.__init__)

    def call() -> None:
        with torch.no_grad():
            model(x)

    def works() -> bool:
        unpatched = before == (builtins.print, builtins.max, torch.nn.Module.__init__)
        _go_on.set()
        model.waits = False
        with torch.no_grad():
            return unpatched and all(torch.allclose(model(x), torch.tanh(x) * 2 + 1, atol=1e-6) for _ in range(4))

    thread = threading.Thread(target=call)
    thread.start()
    _reached.wait()
    try:
        assert before != (builtins.print, builtins.max, torch.nn.Module.__init__)
        assert in_child(works)
    finally:
        _go_on.set()
        thread.join()
    assert before == (builtins.print, builtins.max, torch.nn.Module.__init__)


def test_a_child_that_is_forked_while_the_c_runtime_compiles_loads_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, done = threading.Event(), threading.Event()
    load = native._load

    def slow(store: object) -> object:
        compiling.set()
        done.wait()
        return load(store)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(native, "_load", slow)
    thread = threading.Thread(target=native.load_native)
    thread.start()
    compiling.wait()

    def works() -> bool:
        native._load = load
        return native.load_native() is not None or native.native_available() is not None

    try:
        assert in_child(works)
    finally:
        done.set()
        thread.join()


def test_a_child_may_record_while_a_thread_of_its_parent_does() -> None:
    """The lock that only one recording has."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with interception._LOCK:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()

    def works() -> bool:
        function = fusion.fuse(lambda x: torch.tanh(x) * 2 + 1, QUICK)
        x = torch.randn(3, 64)
        with torch.no_grad():
            return all(torch.allclose(function(x), torch.tanh(x) * 2 + 1, atol=1e-6) for _ in range(3))

    try:
        assert in_child(works)
    finally:
        leave.set()
        thread.join()
