"""LoopNests to callable kernels: emitted together, compiled to one library, kept in a store."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.kernels.backends.cpp import native_call, script
from fusion.kernels.backends.cpp.libraries import why_unusable
from fusion.kernels.backends.cpp.prelude import prelude
from fusion.kernels.backends.cpp.templates import Templates, declarations, needed
from fusion.kernels.backends.cpp.toolchain import Toolchain, find_toolchain, why_missing
from fusion.kernels.bundle import Nest
from fusion.kernels.loops import Argument
from fusion.kernels.scratch import scratch_folder
from fusion.kernels.store import Store
from fusion.patterns import symbols
from fusion.patterns.errors import BackendUnavailable, CompileError, StructureMismatch

_numbers = itertools.count()  # of the libraries that this process made
_ahead: dict[tuple[str, str], _Made] = {}  # what `prepare_cpp` made, by store and digest, until it is loaded
_MOST_UNITS = 8  # of one library: each costs a start of the compiler, which takes as long as a small kernel


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel that can be called.

    Attributes:
        name: its nest's name.
        digest: SHA-256 over its source, the flags and the toolchain.
        target: "cpp".
        nest: what it computes.
        source: a translation unit that holds this kernel alone.
        library: path of the shared library it is in.
        symbol: its C name; the library has `<symbol>_prepare` and `<symbol>_run`.
        compile_seconds: time the compiler took for the library it is in; 0 if it came from the store.
        from_cache: whether it came from the store.
    """

    name: str
    digest: str
    target: str
    nest: Nest
    source: str
    library: str
    symbol: str
    compile_seconds: float
    from_cache: bool

    def to_script(self) -> str:
        """A Python program that compiles this kernel, runs it on random inputs, and prints checksums and the time.

        It needs torch and a C++ compiler, nothing of this package.
        """
        return script.standalone(self.nest, self.symbol, self.source)


def compile_cpp(nests: Sequence[Nest], store: Store | None, toolchain: Toolchain | None = None) -> list[CompiledKernel]:
    """Compiles `nests`, in order; those that the store does not have, together, to one library.

    Args:
        nests: what to compile; equal ones are compiled once.
        store: where libraries are kept; None keeps them in a folder that is removed when the process ends.
        toolchain: the compiler; None finds one.

    Raises:
        BackendUnavailable: there is no compiler.
        CompileError: a kernel did not compile.
        LoweringError: a kernel has no C++ form.
    """
    toolchain = toolchain or find_toolchain()
    if toolchain is None:
        raise BackendUnavailable(why_missing())
    digests = [_digest(nest, toolchain) for nest in nests]
    libraries = {d: _kept(d, nest, store) for d, nest in zip(digests, nests, strict=True)}
    missing = {d: nest for d, nest in zip(digests, nests, strict=True) if libraries[d] is None}
    began = time.perf_counter()
    if missing:
        libraries |= _taken(missing, store)
        unmade = {d: nest for d, nest in missing.items() if libraries[d] is None}
        libraries |= _make(unmade, store, toolchain).published(store) if unmade else {}
    seconds = time.perf_counter() - began
    return [
        CompiledKernel(
            name=nest.name,
            digest=digest,
            target="cpp",
            nest=nest,
            source=cpp_emit.translation_unit([nest]),
            library=str(libraries[digest]),
            symbol=cpp_emit.symbol(nest),
            compile_seconds=seconds if digest in missing else 0.0,
            from_cache=digest not in missing,
        )
        for digest, nest in zip(digests, nests, strict=True)
    ]


def needs_compiler(nests: Sequence[Nest], store: Store | None) -> bool:
    """Whether `compile_cpp` is going to call the compiler: some nest is not in the store, as far as a look at it tells.

    Raises:
        LoweringError: a kernel has no C++ form.
    """
    toolchain = find_toolchain()
    return toolchain is not None and bool(_unmade(nests, store, toolchain))


def prepare_cpp(nests: Sequence[Nest], store: Store | None) -> None:
    """Calls the compiler for what `compile_cpp` is going to be asked for; that loads and keeps what was made here.

    Raises:
        BackendUnavailable: there is no compiler.
        CompileError: a kernel did not compile.
        LoweringError: a kernel has no C++ form.
    """
    toolchain = find_toolchain()
    if toolchain is None:
        raise BackendUnavailable(why_missing())
    unmade = _unmade(nests, store, toolchain)
    if unmade:
        made = _make(unmade, store, toolchain)
        if made.shared is not None:
            made.shared.keep(made.library.with_suffix(".o"), None)  # for what is prepared next
        _ahead.update(dict.fromkeys([(_place(store), digest) for digest in unmade], made))


def _unmade(nests: Sequence[Nest], store: Store | None, toolchain: Toolchain) -> dict[str, Nest]:
    """Nests, by digest, that are neither in the store nor prepared, as far as a look tells."""
    found = {_digest(nest, toolchain): nest for nest in nests}
    return {
        digest: nest
        for digest, nest in found.items()
        if (_place(store), digest) not in _ahead and (store is None or not store.has(digest, "file"))
    }


def _place(store: Store | None) -> str:
    return "" if store is None else str(store.directory)


def run_ctypes(
    kernel: CompiledKernel, inputs: Sequence[torch.Tensor], given: Sequence[int] = ()
) -> tuple[torch.Tensor, ...]:
    """Runs a kernel through ctypes; some 10 us a call.

    Args:
        kernel: a kernel with target "cpp".
        inputs: its tensors, in the order of `kernel.nest.inputs`.
        given: the integers its sizes of source "given" come from.

    Raises:
        StructureMismatch: an input does not fit; the message names it.
    """
    nest = kernel.nest
    if len(inputs) != len(nest.inputs):
        raise StructureMismatch(
            f"The kernel {kernel.name} takes {len(nest.inputs)} tensors, not {len(inputs)}.",
            remedy="Pass one tensor for each of its inputs, in order.",
        )
    wanted = max((s.argument + 1 for s in nest.sizes if s.source == "given"), default=0)
    if len(given) < wanted:
        raise StructureMismatch(
            f"The kernel {kernel.name} takes {wanted} sizes, not {len(given)}.", remedy="Pass them as `given`."
        )
    for argument, tensor in zip(nest.inputs, inputs, strict=True):
        if tensor.layout is not torch.strided or tensor.is_neg() or tensor.is_conj():
            raise _mismatch(kernel, argument, tensor)
    wrong, outputs = _native(kernel)(list(inputs), list(given))
    if wrong:
        raise _mismatch(kernel, nest.inputs[wrong - 1], inputs[wrong - 1])
    return outputs


def _mismatch(kernel: CompiledKernel, argument: Argument, tensor: torch.Tensor) -> StructureMismatch:
    shape, strides = ([symbols.render(d) for d in dims] for dims in (argument.shape, argument.strides))
    found = f"{tensor.dtype} on {tensor.device} of shape {list(tensor.shape)}"
    if tensor.layout is torch.strided:
        found += f" and strides {list(tensor.stride())}"
    return StructureMismatch(
        f"The input {argument.name} of the kernel {kernel.name} must be {argument.dtype} on cpu of shape "
        f"[{', '.join(shape)}] and strides [{', '.join(strides)}]; found {found}.",
        remedy="Record the operators again with inputs of this structure.",
    )


def _native(kernel: CompiledKernel) -> native_call.NativeKernel:
    outputs = tuple((o.dtype, o.order, tuple(dim for dim, _ in o.loose)) for o in kernel.nest.outputs)
    return _loaded(kernel.library, kernel.symbol, len(kernel.nest.sizes), outputs)


@functools.lru_cache(maxsize=4096)
def _loaded(library: str, symbol: str, sizes: int, outputs: tuple[native_call.Form, ...]) -> native_call.NativeKernel:
    return native_call.NativeKernel(library, symbol, sizes, list(outputs))


def _digest(nest: Nest, toolchain: Toolchain) -> str:
    code = cpp_emit.code(nest)
    return hashlib.sha256(json.dumps([prelude(code), code, toolchain.identity]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Made:
    """A library that the compiler has made, and that nothing has loaded yet.

    Attributes:
        nests: its kernels, by digest.
        library: its path.
        shared: the templates that were compiled beside it, or None.
        compiler: for a message.
    """

    nests: dict[str, Nest]
    library: Path
    shared: Templates | None
    compiler: str

    def published(self, store: Store | None) -> dict[str, Path | None]:
        """Loads the library, and keeps it under the digest of each kernel.

        Raises:
            CompileError: it cannot be used.
        """
        wrong = why_unusable(self.library, [name for nest in self.nests.values() for name in _entry_points(nest)])
        if wrong:
            raise CompileError(f"The library that {self.compiler} made cannot be used: {wrong}.")
        if self.shared is not None:
            self.shared.keep(self.library.with_suffix(".o"), store)
        kept = {digest: store.put_file(digest, self.library) if store else None for digest in self.nests}
        return {digest: path or self.library for digest, path in kept.items()}


def _make(unmade: dict[str, Nest], store: Store | None, toolchain: Toolchain) -> _Made:
    """Compiles kernels to one library."""
    unit = hashlib.sha256("".join(unmade).encode()).hexdigest()
    # A loaded file must not be written to again.
    library = scratch_folder("kernels") / f"{unit[:32]}-{next(_numbers)}.so"
    shared = _compile(list(unmade.values()), library, store, toolchain)
    return _Made(unmade, library, shared, toolchain.command[0])


def _taken(missing: dict[str, Nest], store: Store | None) -> dict[str, Path | None]:
    """Libraries that were prepared, by digest, published. A forked child may find that its parent has removed one."""
    place = _place(store)
    found = {id(made): made for digest in missing if (made := _ahead.get((place, digest))) is not None}
    taken: dict[str, Path | None] = {}
    for made in found.values():
        for digest in made.nests:
            _ahead.pop((place, digest), None)
        if made.library.exists():
            taken |= made.published(store)
    return taken


def _compile(nests: list[Nest], library: Path, store: Store | None, toolchain: Toolchain) -> Templates | None:
    """Compiles kernels beside the templates that they share, and gives those; or without them, and gives None."""
    templates = needed("\n".join(map(cpp_emit.code, nests)), store, toolchain)
    if templates.any:
        try:
            units = _units(nests, shared=True)
            toolchain.compile_library(units, library, templates.objects, templates.source)
            return templates
        except CompileError:
            pass  # the fault may be what they share
    toolchain.compile_library(_units(nests, shared=False), library)
    if templates.any:
        templates.give_up(store)
    return None


def _kept(digest: str, nest: Nest, store: Store | None) -> Path | None:
    """The library that the store has for a kernel; one that cannot be used is dropped, to be made again."""
    path = store.get_file(digest) if store else None
    if store is not None and path is not None and why_unusable(path, _entry_points(nest)):
        store.drop(digest)
        return None
    return path


def _entry_points(nest: Nest) -> list[str]:
    return [f"{cpp_emit.symbol(nest)}_{part}" for part in ("prepare", "run")]


def _units(nests: list[Nest], *, shared: bool) -> tuple[str, ...]:
    """Translation units of `nests` that take the compiler about equally long, one for each processor at most.

    `shared` leaves out the templates that kernels share.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    units: list[list[Nest]] = [[] for _ in range(min(len(nests), processors, _MOST_UNITS))]
    lengths = [0] * len(units)
    for nest in sorted(nests, key=lambda nest: -len(cpp_emit.code(nest))):
        shortest = lengths.index(min(lengths))
        units[shortest].append(nest)
        lengths[shortest] += len(cpp_emit.code(nest))
    return tuple(cpp_emit.translation_unit(unit, declarations if shared else None) for unit in units)
