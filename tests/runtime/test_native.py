"""Guards: the C ones against the Python ones, and both against what they promise; and the extension that has them."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch
from c_extension import c_extension
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.kernels.store import Store
from fusion.patterns import symbols
from fusion.patterns.errors import GraphError
from fusion.patterns.specs import TensorSpec
from fusion.runtime import native
from fusion.runtime.native import PythonGuard, SizeSource, make_guard
from fusion.runtime.snapshots import PythonSnapshot, make_snapshot

CPU = torch.device("cpu")
S0, S1 = symbols.symbol("s0"), symbols.symbol("s1")
FLOAT = torch.float32


def native_guard(specs: list[TensorSpec], sources: list[SizeSource], devices: list[torch.device] | None = None):
    module = c_extension()
    guard = make_guard(specs, devices or [CPU] * len(specs), sources)
    assert isinstance(guard, module.Guard)
    return guard


def python_guard(specs: list[TensorSpec], sources: list[SizeSource], devices: list[torch.device] | None = None):
    return PythonGuard(specs, devices or [CPU] * len(specs), sources)


guards = pytest.mark.parametrize("make", [native_guard, python_guard])


@guards
def test_a_guard_returns_the_symbols_in_order(make) -> None:
    specs = [TensorSpec.contiguous(FLOAT, (S0, 4)), TensorSpec.contiguous(FLOAT, (S1, S0, 8))]
    guard = make(specs, [SizeSource("s1", 1, "shape", 0), SizeSource("s0", 0, "shape", 0)])
    assert guard(torch.zeros(3, 4), torch.zeros(5, 3, 8)) == (5, 3)
    assert make([TensorSpec.contiguous(FLOAT, (2,))], [])(torch.zeros(2)) == ()
    assert make([], [])() == ()


@guards
@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3, 4, dtype=torch.float64),
        torch.zeros(3, 4, dtype=torch.int32),
        torch.zeros(3, 4, device="meta"),
        torch.zeros(3, 4, 1),
        torch.zeros(3),
        torch.zeros(3, 5),
        torch.zeros(1, 4),
        torch.zeros(0, 4),
        torch.zeros(4, 3).t(),
        torch.zeros(3, 8)[:, ::2],
        torch._neg_view(torch.zeros(3, 4)),
        torch._efficientzerotensor(3, 4),
        torch.zeros(3, 4).to_sparse(),
        torch.nn.UninitializedParameter(),
        torch.zeros(3, 4).as_subclass(type("Named", (torch.Tensor,), {})),
        None,
        3,
        [[0.0] * 4] * 3,
    ],
    ids=lambda x: f"{type(x).__name__}-{getattr(x, 'dtype', '')}",
)
def test_a_guard_refuses_what_differs_in_one_field(make, wrong: object) -> None:
    guard = make([TensorSpec.contiguous(FLOAT, (S0, 4))], [SizeSource("s0", 0, "shape", 0)])
    assert guard(torch.zeros(3, 4)) == (3,)
    assert guard(wrong) is None


@guards
def test_a_guard_refuses_another_number_of_tensors(make) -> None:
    guard = make([TensorSpec.contiguous(FLOAT, (2,))], [])
    assert guard() is None
    assert guard(torch.zeros(2), torch.zeros(2)) is None


@guards
def test_a_guard_refuses_storage_that_was_freed(make) -> None:
    guard = make([TensorSpec.contiguous(FLOAT, (2,))], [])
    tensor = torch.zeros(2)
    tensor.untyped_storage().resize_(0)
    assert guard(tensor) is None


@guards
def test_a_guard_refuses_another_device(make) -> None:
    for device in (torch.device("cuda", 0), torch.device("cpu", 1)):
        assert make([TensorSpec.contiguous(FLOAT, (2,))], [], [device])(torch.zeros(2)) is None


@guards
def test_a_guard_refuses_a_lazy_conjugate(make) -> None:
    guard = make([TensorSpec.contiguous(torch.complex64, (2,))], [])
    tensor = torch.zeros(2, dtype=torch.complex64)
    assert guard(tensor) == ()
    assert guard(tensor.conj()) is None
    assert guard(tensor.conj().resolve_conj()) == ()


@guards
def test_a_guard_takes_parameters_that_require_grad(make) -> None:
    guard = make([TensorSpec.contiguous(FLOAT, (S0,))], [SizeSource("s0", 0, "shape", 0)])
    parameter = torch.nn.Parameter(torch.zeros(3))
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            assert guard(parameter) == (3,)
            assert guard(torch.zeros(4, requires_grad=True)) == (4,)


@guards
def test_a_symbol_is_the_same_everywhere(make) -> None:
    specs = [TensorSpec.contiguous(FLOAT, (S0, 4)), TensorSpec.contiguous(FLOAT, (S0, 2 * S0))]
    guard = make(specs, [SizeSource("s0", 0, "shape", 0)])
    assert guard(torch.zeros(3, 4), torch.zeros(3, 6)) == (3,)
    assert guard(torch.zeros(3, 4), torch.zeros(4, 6)) is None
    assert guard(torch.zeros(3, 4), torch.zeros(3, 7)) is None


@guards
def test_strides_are_monomials_and_symbols(make) -> None:
    heads = TensorSpec(FLOAT, (S0, 8, S1, 16), (128 * S1, 16, 128, 1))
    guard = make([heads], [SizeSource("s0", 0, "shape", 0), SizeSource("s1", 0, "shape", 2)])
    assert guard(torch.zeros(2, 5, 8, 16).transpose(1, 2)) == (2, 5)
    assert guard(torch.zeros(2, 8, 5, 16)) is None
    padded = make([TensorSpec(FLOAT, (4, 3), (S0, 1))], [SizeSource("s0", 0, "stride", 0)])
    assert padded(torch.zeros(4, 10)[:, :3]) == (10,)
    assert padded(torch.zeros(4, 3)) == (3,)
    assert padded(torch.zeros(1, 3).expand(4, 3)) is None  # strides of 0 and 1 are numbers


@guards
def test_strides_count_at_size_one_and_not_without_elements(make) -> None:
    one = make([TensorSpec.contiguous(FLOAT, (1, 4))], [])
    assert one(torch.zeros(4).as_strided((1, 4), (4, 1))) == ()
    assert one(torch.zeros(4).as_strided((1, 4), (77, 1))) is None
    assert one(torch.zeros(8).as_strided((1, 4), (77, 2))) is None
    none = make([TensorSpec.contiguous(FLOAT, (0, 4))], [])
    assert none(torch.zeros(8).as_strided((0, 4), (5, 2))) == ()


@guards
def test_a_product_too_large_for_a_size_does_not_fit(make) -> None:
    vast = [TensorSpec(FLOAT, (S0, S1), (S0**6 * S1**6, 1))]
    guard = make(vast, [SizeSource("s0", 0, "shape", 0), SizeSource("s1", 0, "shape", 1)])
    assert guard(torch.zeros(2048, 2048)) is None


def test_sizes_that_are_no_monomial_get_the_python_guard() -> None:
    guard = make_guard([TensorSpec.contiguous(FLOAT, (S0, S0 + 4))], [CPU], [SizeSource("s0", 0, "shape", 0)])
    assert isinstance(guard, PythonGuard)
    assert guard(torch.zeros(3, 7)) == (3,)
    assert guard(torch.zeros(3, 8)) is None


def test_a_division_by_zero_does_not_fit() -> None:
    odd = symbols.floor_div(S0, S0 - 2)
    guard = make_guard([TensorSpec.contiguous(FLOAT, (S0, odd))], [CPU], [SizeSource("s0", 0, "shape", 0)])
    assert guard(torch.zeros(3, 3)) == (3,)
    assert guard(torch.zeros(2, 3)) is None


@pytest.mark.parametrize(
    ("sources", "devices"),
    [
        ([], [CPU]),
        ([SizeSource("s0", 1, "shape", 0)], [CPU]),
        ([SizeSource("s0", 0, "shape", 2)], [CPU]),
        ([SizeSource("s0", 0, "result", 0)], [CPU]),
        ([SizeSource("s0", 0, "shape", 0)] * 2, [CPU]),
        ([SizeSource("s0", 0, "shape", 0)], []),
    ],
)
def test_a_guard_without_a_meaning_is_an_error(sources: list[SizeSource], devices: list[torch.device]) -> None:
    with pytest.raises(GraphError):
        make_guard([TensorSpec.contiguous(FLOAT, (S0, 4))], devices, sources)


@pytest.mark.parametrize("spec", [b"", b"12345", bytes(8), (1).to_bytes(8, "little") * 2, b"\xff" * 64])
def test_bytes_that_are_no_spec_are_refused(spec: bytes) -> None:
    with pytest.raises(ValueError, match="no guard spec"):
        c_extension().Guard(spec, lambda *tensors: None)


SIZES = st.sampled_from([0, 1, 2, 3, 4])
DIMS = st.sampled_from([0, 1, 2, 3, S0, S1, 2 * S0, S0 * S1])


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[TensorSpec], list[SizeSource], list[torch.Tensor]]:
    """Specs over two symbols, and tensors that often fit them."""
    values = {"s0": draw(SIZES), "s1": draw(SIZES)}
    first = TensorSpec.contiguous(FLOAT, (S0, S1))
    specs = [first, *(_spec(draw) for _ in range(draw(st.integers(0, 2))))]
    tensors = []
    for spec in specs:
        shape = [symbols.evaluate(d, values) if draw(st.integers(0, 9)) else draw(SIZES) for d in spec.shape]
        strides = [symbols.evaluate(d, values) if draw(st.integers(0, 9)) else draw(SIZES) for d in spec.strides]
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size)
        tensors.append(torch.zeros(reach).as_strided(shape, strides))
    kind = draw(st.sampled_from(["shape", "stride"]))
    return specs, [SizeSource("s0", 0, "shape", 0), SizeSource("s1", 0, kind, 1 if kind == "shape" else 0)], tensors


def _spec(draw: st.DrawFn) -> TensorSpec:
    shape = tuple(draw(st.lists(DIMS, max_size=3)))
    if draw(st.booleans()):
        return TensorSpec.contiguous(FLOAT, shape)
    return TensorSpec(FLOAT, shape, tuple(draw(st.lists(DIMS, min_size=len(shape), max_size=len(shape)))))


@settings(max_examples=400, deadline=None)
@given(calls())
def test_the_c_guard_means_what_the_python_guard_means(call) -> None:
    specs, sources, tensors = call
    assert native_guard(specs, sources)(*tensors) == python_guard(specs, sources)(*tensors)


def test_guards_leave_reference_counts_as_they_were() -> None:
    tensor = torch.zeros(3, 4)
    guard = native_guard([TensorSpec.contiguous(FLOAT, (S0, 4))], [SizeSource("s0", 0, "shape", 0)])
    before = [sys.getrefcount(x) for x in (tensor, None)]
    for _ in range(1000):
        guard(tensor)
        guard(None)
    after = [sys.getrefcount(x) for x in (tensor, None)]
    assert after[0] == before[0]
    assert abs(after[1] - before[1]) < 100


def test_the_extension_is_kept_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c_extension()
    monkeypatch.setattr(native, "_loaded", None)
    store = Store(tmp_path / "cache")
    assert native.load_native(store) is not None
    assert store.statistics()["entries"] == 1
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(native, "compile_c_extension", lambda *paths: pytest.fail("compiled twice"))
    assert native.load_native(store) is not None
    assert store.hits == 1


def test_what_a_thread_prepares_the_caller_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that exits ends its background threads; inside torch's C++ that aborts the process."""
    c_extension()
    imported, in_threads = native._imported, []

    def importing(path: Path) -> object:
        in_threads.append((threading.current_thread(), path.exists()))
        return imported(path)

    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(native, "_imported", importing)
    store = Store(tmp_path / "cache")
    before = set(threading.enumerate())
    native.prepare_native(store)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    built = native._built
    assert built is not None and not built.stored and not in_threads
    monkeypatch.setattr(native, "_build", lambda *key: pytest.fail("compiled twice"))
    assert native.load_native(store) is not None
    assert in_threads == [(threading.main_thread(), True)]
    assert not built.path.exists() and store.statistics()["entries"] == 1


def test_a_report_waits_for_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    c_extension()
    assert native.native_state() == "in use"
    monkeypatch.setattr(native, "_loaded", None)
    compiling, done = threading.Event(), threading.Event()
    build = native._find_or_build

    def slow(store: Store | None) -> object:
        compiling.set()
        done.wait()
        return build(store)

    monkeypatch.setattr(native, "_find_or_build", slow)
    thread = threading.Thread(target=native.load_native)
    thread.start()
    compiling.wait()
    try:
        assert native.native_state() == "being compiled"
    finally:
        done.set()
        thread.join()
    assert native.native_state() == "in use"


def test_lazy_bits_are_found_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    c_extension()
    specs = [TensorSpec.contiguous(FLOAT, (3,)), TensorSpec.contiguous(torch.complex64, (3,))]
    real, complex_ = torch.zeros(3), torch.zeros(3, dtype=torch.complex64)
    lazy = [(torch._neg_view(real), complex_), (real, complex_.conj()), (real, torch._neg_view(complex_))]
    for bits in (native._lazy_bits(), (0, 0, 0)):
        monkeypatch.setattr(native, "_lazy_bits", lambda bits=bits: bits)
        monkeypatch.setattr(native, "_loaded", None)
        guard = native_guard(specs, [])
        assert guard(real, complex_) == ()
        assert [guard(*pair) for pair in lazy] == [None] * 3
    monkeypatch.undo()
    native.load_native().initialize(*native._initialization())


def test_without_a_compiler_python_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(native, "find_toolchain", lambda: None)
    monkeypatch.setattr(native, "why_missing", lambda: "No compiler here.")
    assert native.load_native() is None
    assert "No compiler here." in str(native.native_available())
    assert isinstance(make_guard([TensorSpec.contiguous(FLOAT, (2,))], [CPU], []), PythonGuard)
    assert isinstance(make_snapshot([]), PythonSnapshot)
