"""Guards on tensors, in C where a compiler is at hand and in Python with the same meaning where not.

A guard checks tensors against their recorded specs and reads the size symbols. The C extension (`native/native.c`) has
snapshots of Python objects, too (`snapshots`). It is compiled at first use and kept in the store.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.machinery
import importlib.util
import json
import shutil
import struct
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import sympy
import torch

from fusion.kernels.backends.cpp.libraries import is_whole
from fusion.kernels.backends.cpp.toolchain import compile_c_extension, find_toolchain, why_missing
from fusion.kernels.plain_memory import DLPACK_TYPES, TENSOR_TYPES, in_plain_memory
from fusion.kernels.scratch import scratch_folder
from fusion.kernels.store import Store
from fusion.patterns import symbols
from fusion.patterns.errors import BackendUnavailable, CompileError, FusionError, GraphError
from fusion.patterns.forks import Lock
from fusion.patterns.source import define
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim

_SOURCE = Path(__file__).parent / "native" / "native.c"
_HEADER = Path(torch.__file__).parent / "include" / "ATen" / "dlpack.h"
_NAME = "fusion_native"
_IMPLEMENTATION_WORDS = 22  # of c10::TensorImpl that are searched; it has been larger in every torch since 1.8

_DEVICE_TYPES = {"cpu": 1, "cuda": 10 if torch.version.hip else 2}

Guard = Callable[..., "tuple[int, ...] | None"]


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()  # as a snapshot entry's expected value: the key or attribute must not be there


class SizeSource(NamedTuple):
    """Where a guard reads a size symbol: `kind` is "shape" or "stride", of tensor number `tensor` at `dim`."""

    symbol: str
    tensor: int
    kind: str
    dim: int


class _Loaded(NamedTuple):
    module: ModuleType | None
    reason: str | None


class _Built(NamedTuple):
    """A compiled extension: its file, its key in a store, and whether the file is the store's own."""

    path: Path
    key: str
    stored: bool


_UNUSABLE = (OSError, ImportError, RuntimeError, TypeError, ValueError, AttributeError)  # what a wrong file may raise
_loading = Lock()
_loaded: _Loaded | None = None  # the answer is kept, also when it is no
_built: _Built | None = None  # by `prepare_native`, for `load_native`


def load_native(store: Store | None = None) -> ModuleType | None:
    """The C extension, compiled if this process and `store` do not have it; None if that cannot be done.

    The first answer is kept for the process; `native_available` has the reason for a None.
    """
    global _loaded
    with _loading:
        if _loaded is None:
            try:
                _loaded = _Loaded(_load(store), None)
            except (FusionError, *_UNUSABLE) as error:
                _loaded = _Loaded(None, f"The C runtime cannot be used, Python does its work instead: {error}")
        return _loaded.module


def prepare_native(store: Store | None = None) -> None:
    """Begins to compile what `load_native(store)` loads: the C compiler works while the first scope is recorded.

    The thread runs nothing of torch's. When the interpreter exits, it ends such threads wherever they are, and one that
    is inside torch's C++ then aborts the process.
    """
    if _loaded is None:
        threading.Thread(target=_prepare, args=(store,), name="fusion-native", daemon=True).start()


def _prepare(store: Store | None) -> None:
    global _built
    with _loading, contextlib.suppress(FusionError, *_UNUSABLE):  # `load_native` meets it again, and keeps the reason
        if _loaded is None and _built is None:
            _built = _find_or_build(store)


def native_state() -> str:
    """A word for a report: "in use", why not, or that the extension is being compiled. Waits for no compiler."""
    if _loaded is None:
        if not _loading.acquire(blocking=False):
            return "being compiled"
        _loading.release()
    return native_available() or "in use"


def native_available() -> str | None:
    """None where the C extension is in use, else a sentence that says why not. Loads it if nothing has yet."""
    load_native()
    return _loaded.reason if _loaded else None


def _load(store: Store | None) -> ModuleType:
    global _built
    built, _built = _built or _find_or_build(store), None
    if built.stored:
        try:
            return _imported(built.path)
        except _UNUSABLE:
            if store:
                store.drop(built.key)
            built = _build(built.key)
    try:
        made = _imported(built.path)
        if store:
            store.put_file(built.key, built.path)
    finally:
        shutil.rmtree(built.path.parent, ignore_errors=True)  # once loaded, the file is not needed
    return made


def _find_or_build(store: Store | None) -> _Built:
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        raise BackendUnavailable(
            f"torch {torch.__version__} has no DLPack exchange in C.", remedy="Install torch 2.11 or newer."
        )
    toolchain = find_toolchain()
    if toolchain is None:
        raise CompileError(why_missing())
    abi = [str(sysconfig.get_config_var("SOABI")), str(torch.__version__), toolchain.identity]
    key = hashlib.sha256(json.dumps([_SOURCE.read_text(), _HEADER.read_text(), *abi]).encode()).hexdigest()
    kept = store.get_file(key) if store else None
    return _Built(kept, key, True) if kept else _build(key)


def _build(key: str) -> _Built:
    """Compiles the extension, into a new folder."""
    folder = Path(tempfile.mkdtemp(dir=scratch_folder("native")))
    try:
        for file in (_SOURCE, _HEADER):
            shutil.copy(file, folder)
        built = folder / f"{_NAME}.so"
        compile_c_extension(folder / _SOURCE.name, built)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _Built(built, key, False)


def _imported(path: Path) -> ModuleType:
    if not is_whole(path):
        raise ImportError(f"{path.name} is cut off")
    spec = importlib.util.spec_from_loader(_NAME, importlib.machinery.ExtensionFileLoader(_NAME, str(path)))
    if spec is None:
        raise ImportError(f"{path.name} is no extension module")
    module = importlib.util.module_from_spec(spec)
    module.initialize(*_initialization())
    return module


def _initialization() -> tuple[Any, ...]:
    """What the extension's `initialize` takes."""
    exchange = torch.Tensor.__dlpack_c_exchange_api__
    return exchange, TENSOR_TYPES, torch.Tensor.is_neg, torch.Tensor.is_conj, ABSENT, *_lazy_bits()


def _lazy_bits() -> tuple[int, int, int]:
    """Where C finds out that a tensor is a lazy negation or conjugate, some 60 ns sooner than by asking its methods.

    The places are looked for in tensors that differ in what is looked for, and taken only if each is the only one.

    Returns:
        offset of the implementation's address in the Python object, offset of the dispatch keys in the implementation,
        mask of the two keys; all 0 if they were not found, and C asks the methods.
    """
    with torch.inference_mode(False):
        real, complex_ = torch.zeros(3), torch.zeros(2, 2, dtype=torch.complex64)
        pairs = ((torch._neg_view(real), real), (complex_.conj(), complex_))
    try:
        samples = [(t, t._cdata, torch._C._dispatch_keys(t).raw_repr()) for pair in pairs for t in pair]
    except (AttributeError, TypeError):
        return 0, 0, 0
    pointers = [_where(id(t), type(t).__basicsize__ // 8, cdata) for t, cdata, _ in samples]
    keys = [_where(cdata, _IMPLEMENTATION_WORDS, raw) for _, cdata, raw in samples]
    masks = [lazy[2] ^ plain[2] for lazy, plain in (samples[:2], samples[2:])]
    unique = all(len(found) == 1 and found == group[0] for group in (pointers, keys) for found in group)
    if not unique or any(mask.bit_count() != 1 for mask in masks):
        return 0, 0, 0
    return pointers[0][0], keys[0][0], masks[0] | masks[1]


def _where(address: int, words: int, value: int) -> list[int]:
    """Byte offsets at which 64-bit words from `address` on hold `value`."""
    return [8 * i for i, word in enumerate((ctypes.c_uint64 * words).from_address(address)) if word == value]


def make_guard(
    specs: Sequence[TensorSpec], devices: Sequence[torch.device], sources: Sequence[tuple[str, int, str, int]]
) -> Guard:
    """A function of tensors that returns its symbols' values, in order, or None if a tensor does not fit.

    A tensor fits when it is a plain tensor or parameter in strided memory, without a lazy negation or conjugation,
    and has the dtype, device, sizes and strides of its spec. The stride of a size of 1 counts, for layouts of results
    follow it; none counts where there are no elements. A symbol is at least 2: sizes and strides of 0 and 1 are
    recorded as numbers.

    Args:
        specs: one per tensor; Dims over the symbols of `sources`.
        devices: of each tensor, with its index.
        sources: (symbol, number of the tensor, "shape" or "stride", dimension), as `SizeSource`.

    Raises:
        GraphError: a spec uses a symbol that no source gives, or a source that is not there.
    """
    slow = PythonGuard(specs, devices, sources)
    module = load_native()
    encoded = _encode(specs, devices, sources) if module else None
    return module.Guard(encoded, slow) if module and encoded is not None else slow


class PythonGuard:
    """`make_guard` without the C extension, and for sizes that are no monomial."""

    def __init__(
        self, specs: Sequence[TensorSpec], devices: Sequence[torch.device], sources: Sequence[tuple[str, int, str, int]]
    ) -> None:
        _check(specs, devices, sources)
        self._kinds = [(s.dtype, len(s.shape), *_device(d)) for s, d in zip(specs, devices, strict=True)]
        self._sources = [(tensor, kind == "stride", dim) for _, tensor, kind, dim in sources]
        names = {source[0]: number for number, source in enumerate(sources)}
        self._dims = _compiled([d for s in specs for d in (*s.shape, *s.strides)], names)

    def __call__(self, *tensors: Any) -> tuple[int, ...] | None:
        if len(tensors) != len(self._kinds):
            return None
        if not all(_fits(tensor, *kind) for tensor, kind in zip(tensors, self._kinds, strict=True)):
            return None
        values = tuple((tensors[t].stride() if stride else tensors[t].shape)[dim] for t, stride, dim in self._sources)
        if any(value < 2 for value in values):
            return None
        try:
            wanted = self._dims(values)
        except ZeroDivisionError:  # a size divided by a difference of sizes: none of the recorded structure
            return None
        at = 0
        for tensor in tensors:
            shape, strides, n = tuple(tensor.shape), tensor.stride(), tensor.dim()
            if shape != wanted[at : at + n]:
                return None
            compared = zip(strides, wanted[at + n : at + 2 * n], strict=True)
            if 0 not in shape and any(have != want for have, want in compared):
                return None
            at += 2 * n
        return values


def _fits(tensor: Any, dtype: torch.dtype, dims: int, device: str, index: int) -> bool:
    return (
        type(tensor) in TENSOR_TYPES
        and tensor.dtype == dtype
        and tensor.dim() == dims
        and _device(tensor.device) == (device, index)
        and in_plain_memory(tensor)
    )


def _device(device: torch.device) -> tuple[str, int]:
    """Type and index; a device without an index is the first of its type, as every CPU tensor's is."""
    return device.type, device.index or 0


def _check(
    specs: Sequence[TensorSpec], devices: Sequence[torch.device], sources: Sequence[tuple[str, int, str, int]]
) -> None:
    if len(specs) != len(devices):
        raise GraphError(f"A guard needs one device per tensor; got {len(devices)} for {len(specs)}.")
    names = [source[0] for source in sources]
    if len(set(names)) != len(names):
        raise GraphError(f"A guard reads each symbol once; got {names}.")
    for name, tensor, kind, dim in sources:
        inside = 0 <= tensor < len(specs) and 0 <= dim < len(specs[tensor].shape)
        if not inside or kind not in ("shape", "stride"):
            raise GraphError(f"The symbol {name} is read from {kind}[{dim}] of tensor {tensor}, which is not there.")
    used = {s.name for s in symbols.free_symbols(d for spec in specs for d in (*spec.shape, *spec.strides))}
    if missing := used - set(names):
        raise GraphError(f"No tensor gives the size symbols {sorted(missing)}.", remedy="Pass a source for each.")


def _compiled(dims: Sequence[Dim], names: dict[str, int]) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """A function from symbol values to the values of `dims`; its text holds numbers and operators only."""
    terms = "".join(f"{symbols.print_python(d, lambda name: f'v[{names[name]}]')}, " for d in dims)
    return define(f"def sizes(v):\n    return ({terms})", "sizes", {}, "<fusion sizes>")


def _encode(
    specs: Sequence[TensorSpec], devices: Sequence[torch.device], sources: Sequence[tuple[str, int, str, int]]
) -> bytes | None:
    """The spec the C guard reads, as little-endian int64s; None for what it has no words for.

    Number of tensors, number of symbols; per symbol: tensor, 1 for a stride, dimension; per tensor: DLPack device
    type, device index, type code, bits, number of dimensions, a monomial per size, then one per stride. A monomial is
    its coefficient, its number of factors, and the number of each factor's symbol.
    """
    names = {source[0]: number for number, source in enumerate(sources)}
    words = [len(specs), len(sources)]
    for _, tensor, kind, dim in sources:
        words += [tensor, kind == "stride", dim]
    for spec, device in zip(specs, devices, strict=True):
        if spec.dtype not in DLPACK_TYPES or device.type not in _DEVICE_TYPES:
            return None
        words += [_DEVICE_TYPES[device.type], device.index or 0, *DLPACK_TYPES[spec.dtype], len(spec.shape)]
        for dim in (*spec.shape, *spec.strides):
            monomial = _monomial(dim, names)
            if monomial is None:
                return None
            words += [monomial[0], len(monomial) - 1, *monomial[1:]]
    return struct.pack(f"<{len(words)}q", *words)


def _monomial(dim: Dim, names: dict[str, int]) -> list[int] | None:
    """The coefficient of `dim`, then its factors' symbols; None if it is not of that form."""
    if isinstance(dim, int):
        return [dim]
    coefficient, rest = dim.as_coeff_Mul()
    if not coefficient.is_Integer:
        return None
    factors = [int(coefficient)]
    for base, power in rest.as_powers_dict().items():
        if not isinstance(base, sympy.Symbol) or not power.is_Integer or power < 1:
            return None
        factors += [names[base.name]] * int(power)
    return factors
