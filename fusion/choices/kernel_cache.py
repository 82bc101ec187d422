"""From regions to launchers: which backend, compiled how, remembered where."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fusion import faults
from fusion.choices import stored_decisions
from fusion.choices.decision import Decision
from fusion.choices.trial import Trials
from fusion.config import FusionConfig
from fusion.kernels import kernel_sources
from fusion.kernels.backends.cpp import toolchain as cpp_toolchain
from fusion.kernels.backends.cpp.compile import compile_cpp, needs_compiler
from fusion.kernels.backends.triton import script as triton_script
from fusion.kernels.backends.triton import toolchain as triton_toolchain
from fusion.kernels.backends.triton.emit import emit, emit_all, schedule_for
from fusion.kernels.bundle import Nest
from fusion.kernels.lower import given_symbols, lower_kernel
from fusion.kernels.store import Store, default_directory
from fusion.patterns.errors import BackendUnavailable, CompileError, LoweringError
from fusion.patterns.forks import Lock
from fusion.patterns.graph import SubGraph
from fusion.runtime.launch import make_launcher
from fusion.runtime.native import prepare_native

_EARLIER = "; measured by an earlier process"


@dataclass(frozen=True)
class Kernel:
    """A compiled region.

    Attributes:
        launch: takes the inputs in order, then the given sizes; returns a tensor or a tuple.
        nest: its loops.
        compiled: the backend's kernel with its source, or None for Triton, which compiles at the first launch.
        backend: "cpp" or "triton".
    """

    launch: Callable[..., Any]
    nest: Nest
    compiled: Any
    backend: str

    def __str__(self) -> str:
        return str(self.nest)

    def sources(self) -> dict[str, str]:
        """The kernel's text for each backend that can express it: "loops", "cpp", "triton"."""
        return kernel_sources(self.nest)

    def to_script(self) -> str:
        """A program that runs this kernel alone, on random inputs; it needs torch and the backend's compiler."""
        if self.compiled is not None:
            return str(self.compiled.to_script())
        return triton_script.standalone(self.nest, schedule_for(self.nest), emit(self.nest))


@dataclass
class Costs:
    """What compiling has cost so far; seconds and counts."""

    compile_seconds: float = 0.0
    profile_seconds: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0


@dataclass
class Backends:
    """The compilers of this machine behind one door, with a memory of kernels and decisions.

    Raises:
        BackendUnavailable: the config names a backend that this machine cannot provide.
    """

    config: FusionConfig
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        self.store: Store | None = None
        if self.config.enable_cache:
            self.store = Store(self.config.cache_dir or default_directory())
        self.trials = Trials(self.store)
        self.nests: dict[tuple[str, str], Nest | LoweringError] = {}
        self.kernels: dict[str, Kernel | Decision] = {}
        self.decisions: dict[str, Decision] = {}
        self.proved: set[str] = set()  # decisions whose kernel was proved in this process
        self._lock = Lock()
        self._check_explicit()
        prepare_native(self.store)  # before the first guard is made, so that it comes from the store

    def _check_explicit(self) -> None:
        """An explicit request that cannot be met is an error, not a fallback."""
        if self.config.backend == "triton":
            reason = triton_toolchain.available()
            if reason:
                raise BackendUnavailable(f"backend='triton' was asked for: {reason}")
        if self.config.backend == "cpp" and cpp_toolchain.find_toolchain() is None:
            raise BackendUnavailable(f"backend='cpp' was asked for: {cpp_toolchain.why_missing()}")

    def lower(self, graph: SubGraph) -> Nest:
        """The loops of a region, remembered by digest.

        Raises:
            LoweringError: it cannot be one kernel.
        """
        key = (graph.digest, self.config.numerics)
        known = self.nests.get(key)
        if known is None:
            try:
                # Named after its operators, whether or not a pattern was looked for before: a digest has one nest.
                known = lower_kernel(graph.with_pattern(None), numerics=self.config.numerics)
            except LoweringError as error:
                known = error
            except Exception as error:
                known = LoweringError(faults.CODE, faults.noted(error, "+".join(graph.ops)))
            self.nests[key] = known
        if isinstance(known, LoweringError):
            raise known
        return known

    def backend_for(self, graph: SubGraph) -> str | Decision:
        """ "cpp" or "triton", or the decision that there is none."""
        device = graph.spec[graph.outputs[0]].device
        wanted = {"cpu": "cpp", "cuda": "triton"}.get(device)
        if wanted is None:
            return Decision(False, "device", f"no kernels for the device {device!r}")
        if self.config.backend not in ("auto", wanted):
            return Decision(False, "no_backend", f"backend={self.config.backend!r} makes no kernels for {device}")
        missing = (
            triton_toolchain.available()
            if wanted == "triton"
            else (None if cpp_toolchain.find_toolchain() else cpp_toolchain.why_missing())
        )
        return Decision(False, "no_backend", missing) if missing else wanted

    def compile(self, graphs: Sequence[SubGraph]) -> list[Kernel | Decision]:
        """Kernels for regions, in order; those that are new are compiled together. A failure is remembered too."""
        with self._lock:
            fresh = {g.digest: g for g in graphs if g.digest not in self.kernels}
            if fresh:
                self._compile(fresh)
            return [self.kernels[g.digest] for g in graphs]

    def _compile(self, fresh: dict[str, SubGraph]) -> None:
        native: dict[str, Nest] = {}
        for digest, graph in fresh.items():
            backend = self.backend_for(graph)
            if isinstance(backend, Decision):
                self.kernels[digest] = backend
                continue
            try:
                nest = self.lower(graph)
            except LoweringError as error:
                self.kernels[digest] = Decision(False, error.code, error.message)
                continue
            if backend == "cpp":
                native[digest] = nest
                continue
            self.kernels[digest] = _launched(nest, nest, None)
        if native:
            try:
                self._compile_cpp(native)
                self._try({digest: fresh[digest] for digest in native})
            finally:
                self.trials.close()

    def _compile_cpp(self, nests: dict[str, Nest]) -> None:
        start = time.perf_counter()
        try:
            if self.config.verify and needs_compiler(list(nests.values()), self.store):
                self.trials.prepare()
            compiled = compile_cpp(list(nests.values()), self.store)
        except Exception as error:
            if len(nests) > 1:  # one bad kernel must not take the others with it
                for digest, nest in nests.items():
                    self._compile_cpp({digest: nest})
                return
            ((digest, nest),) = nests.items()
            if isinstance(error, (CompileError, BackendUnavailable, LoweringError)):
                self.kernels[digest] = Decision(False, "compile_error", str(error).splitlines()[0])
            else:
                self.kernels[digest] = Decision(False, faults.CODE, faults.noted(error, nest.name))
            return
        finally:
            self.costs.compile_seconds += time.perf_counter() - start
        for digest, kernel in zip(nests, compiled, strict=True):
            self.costs.cache_hits += kernel.from_cache
            self.costs.cache_misses += not kernel.from_cache
            self.kernels[digest] = _launched(kernel, kernel.nest, kernel)

    def _try(self, graphs: dict[str, SubGraph]) -> None:
        """Tries new kernels on made data; those that fail are refused."""
        made = {d: k for d in graphs if isinstance(k := self.kernels[d], Kernel)}
        if not self.config.verify or not made:
            return
        start = time.perf_counter()
        try:
            verdicts = self.trials.verdicts([(graphs[d], k.compiled, k.launch) for d, k in made.items()])
        except BaseException:
            for digest in made:  # none is used untried
                del self.kernels[digest]
            raise
        self.costs.profile_seconds += time.perf_counter() - start
        for digest, verdict in zip(made, verdicts, strict=True):
            if verdict.code:
                self.kernels[digest] = Decision(False, verdict.code, verdict.reason)

    def launcher(self, graph: SubGraph) -> Callable[..., Any] | Decision:
        """The launcher of one region, or the decision that there is none."""
        kernel = self.compile([graph])[0]
        if isinstance(kernel, Kernel) and given_symbols(kernel.nest):
            return Decision(False, "guard", "its sizes cannot be read off its inputs")
        return kernel.launch if isinstance(kernel, Kernel) else kernel

    # ---- decisions

    def decision_key(self, graph: SubGraph, kernel: Kernel, bucket: object) -> str:
        """What a measured decision depends on: the kernel's very text, the sizes, the machine, the settings."""
        device = graph.spec[graph.outputs[0]].device
        machine = torch.cuda.get_device_name() if device == "cuda" else _cpp_identity()
        parts = [graph.digest, self.config.numerics, self.config.fusion_ratio, str(bucket), machine, torch.__version__]
        text = kernel.compiled.digest if kernel.compiled is not None else emit_all(kernel.nest)
        parts += [text, triton_toolchain.version(), torch.get_num_threads(), self.config.verify, self.config.profile]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def remembered(self, key: str) -> Decision | None:
        """A decision of this or an earlier process."""
        if key not in self.decisions and self.store is not None:
            known = stored_decisions.read(self.store.get_json(key))
            if known is not None:
                reason = known.reason.removesuffix(_EARLIER) + _EARLIER
                self.decisions[key] = replace(known, reason=reason)
        return self.decisions.get(key)

    def remember(self, key: str, decision: Decision) -> None:
        """Keeps a decision for this process, and what is a fact about the kernel for the next ones."""
        known = self.decisions.get(key) is decision
        self.decisions[key] = decision
        if self.store is not None and not known and stored_decisions.lasts(decision):
            self.store.put_json(key, asdict(decision))


def _launched(kernel: Any, nest: Nest, compiled: Any) -> Kernel | Decision:
    """A kernel with its launcher; what fails, such as a primitive that Triton lacks, refuses its region alone."""
    try:
        return Kernel(make_launcher(kernel), nest, compiled, "triton" if compiled is None else "cpp")
    except LoweringError as error:
        return Decision(False, error.code, error.message)
    except Exception as error:
        return Decision(False, faults.CODE, faults.noted(error, nest.name))


def _cpp_identity() -> str:
    toolchain = cpp_toolchain.find_toolchain()
    return toolchain.identity if toolchain else ""
