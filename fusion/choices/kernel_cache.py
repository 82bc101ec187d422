"""From regions to kernels: every candidate of every backend that fits, compiled, tried, remembered."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fusion import faults
from fusion.choices import background, stored_decisions
from fusion.choices.decision import Decision
from fusion.choices.trial import Trials
from fusion.config import FusionConfig
from fusion.kernels import kernel_sources
from fusion.kernels.backend import RESERVED, Artifact, Backend, Schedule, backend_named, backends_of
from fusion.kernels.bundle import Nest
from fusion.kernels.lower import given_symbols, lower_kernel
from fusion.kernels.store import Store, default_directory
from fusion.patterns.errors import BackendUnavailable, CompileError, LoweringError
from fusion.patterns.extents import agreeing, generalized
from fusion.patterns.forks import Lock
from fusion.patterns.graph import SubGraph
from fusion.runtime.launch import make_launcher
from fusion.runtime.native import prepare_native

_EARLIER = "; measured by an earlier process"
_FORMAT = 2  # of stored decisions and of what they depend on: one more where either changes


@dataclass(frozen=True)
class Kernel:
    """A compiled region.

    Attributes:
        launch: takes the inputs in order, then the given sizes; returns a tensor or a tuple.
        nest: its loops.
        compiled: what the backend made, with its source.
        backend: the backend's name.
        schedule: how the backend runs the nest; None where it has one way only.
    """

    launch: Callable[..., Any]
    nest: Nest
    compiled: Artifact
    backend: str
    schedule: Schedule = None

    def __str__(self) -> str:
        return str(self.nest)

    def sources(self) -> dict[str, str]:
        """The kernel's text: "loops", and by name for each backend, such as "cpp" and "triton"."""
        return kernel_sources(self.nest)

    def to_script(self) -> str:
        """A program that runs this kernel alone, on random inputs; it needs torch and the backend's compiler."""
        return self.compiled.to_script()


@dataclass(frozen=True)
class KernelChoice:
    """The candidates for a region, of which one at most is going to be used.

    Attributes:
        candidates: by label, in order of preference, each a kernel or the decision why there is none. A label is the
            backend's name, with the schedule's text where the backend has several schedules for the nest. It is "" for
            the decision that no backend can be asked.
    """

    candidates: Mapping[str, Kernel | Decision]

    @property
    def kernels(self) -> dict[str, Kernel]:
        """Those that were made."""
        return {label: one for label, one in self.candidates.items() if isinstance(one, Kernel)}

    @property
    def refusals(self) -> dict[str, Decision]:
        """Why the others were not."""
        return {label: one for label, one in self.candidates.items() if isinstance(one, Decision)}


@dataclass(frozen=True)
class _Job:
    """One candidate that is to be compiled."""

    digest: str
    label: str
    nest: Nest
    schedule: Schedule

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others."""
        return self.digest, self.label


@dataclass
class Costs:
    """What compiling has cost so far; seconds and counts."""

    compile_seconds: float = 0.0
    profile_seconds: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0


@dataclass
class Backends:
    """The backends that fit a region behind one door, with a memory of kernels and decisions.

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
        self.kernels: dict[str, KernelChoice] = {}
        self.decisions: dict[str, Decision] = {}
        self._general: dict[str, SubGraph] = {}
        self.proved: set[str] = set()  # decisions whose kernel was proved in this process
        self._builds: dict[tuple[str, str], background.Build] = {}  # candidates that were compiled on the side
        self._unbuilt: dict[tuple[str, str], Decision] = {}  # of them, why some did not compile
        self._lock = Lock()
        self._check_explicit()
        prepare_native(self.store)  # before the first guard is made, so that it comes from the store

    def _check_explicit(self) -> None:
        """An explicit request that cannot be met is an error, not a fallback."""
        name = self.config.backend
        if name not in RESERVED and (reason := backend_named(name).why_unavailable()):
            raise BackendUnavailable(f"backend={name!r} was asked for: {reason}")

    def lower(self, graph: SubGraph) -> Nest:
        """The loops of a region, remembered by digest.

        Raises:
            LoweringError: it cannot be one kernel.
        """
        graph = self.general(graph)
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

    def general(self, graph: SubGraph) -> SubGraph:
        """The graph that a region's kernel is made for: of matrix products, for all sizes.

        Sizes of weights are numbers in a region, and every layer has others; what a tile does is the same for all.
        """
        if graph.digest not in self._general:
            self._general[graph.digest] = generalized(agreeing(graph))
        return self._general[graph.digest]

    def backends_for(self, graph: SubGraph) -> tuple[Backend[Any], ...] | Decision:
        """The backends whose kernels compete for a region, or the decision that there is none."""
        device = graph.spec[graph.outputs[0]].device
        known = backends_of(device)
        if not known:
            return Decision(False, "device", f"no kernels for the device {device!r}")
        asked = [backend for backend in known if self.config.backend in ("auto", backend.name)]
        if not asked:
            return Decision(False, "no_backend", f"backend={self.config.backend!r} makes no kernels for {device}")
        missing = {backend.name: backend.why_unavailable() for backend in asked}
        there = [backend for backend in asked if not missing[backend.name]]
        if not there:
            return Decision(False, "no_backend", "; ".join(filter(None, missing.values())))
        used = {graph.spec[name].dtype for name in (*graph.inputs, *graph.outputs)}
        able = tuple(backend for backend in there if used <= backend.dtypes)
        lacking = sorted(map(str, used - there[0].dtypes))
        return able or Decision(False, "dtype", f"{there[0].name} has no {', '.join(lacking)}")

    def compile(self, graphs: Sequence[SubGraph]) -> list[KernelChoice]:
        """Candidates for regions, in order; those that are new are compiled together. A failure is remembered too."""
        with self._lock:
            general = [self.general(g) for g in graphs]
            fresh = {g.digest: g for g in general if g.digest not in self.kernels}
            if fresh:
                self.kernels |= self._compile(fresh)
            return [self.kernels[g.digest] for g in general]

    def compiling(self, graphs: Sequence[SubGraph]) -> tuple[background.Build, ...]:
        """Begins to do on the side what `compile(graphs)` would call a compiler for; what there is to wait for."""
        with self._lock:
            general = [self.general(g) for g in graphs]
            _, jobs = self._jobs({g.digest: g for g in general if g.digest not in self.kernels})
            for name, of_backend in jobs.items():
                backend = backend_named(name)
                new = [job for job in of_backend if self._may_begin(job) and _is_new(backend, job, self.store)]
                if new:
                    build = background.begin(functools.partial(self._prepare, backend, new))
                    self._builds |= {job.key: build for job in new}
            of = [self._builds.get(job.key) for of_backend in jobs.values() for job in of_backend]
            return tuple(build for build in dict.fromkeys(of) if build is not None and not build.done)

    def _may_begin(self, job: _Job) -> bool:
        """Whether nobody compiles a candidate now; one that a build was to make is made again if it is not there."""
        build = self._builds.get(job.key)
        return build is None or build.done

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the compilers that work on the side, for at most `timeout` seconds; whether they are done."""
        until = None if timeout is None else time.monotonic() + timeout
        for build in dict.fromkeys(list(self._builds.values())):
            if not build.wait(None if until is None else max(0.0, until - time.monotonic())):
                return False
        return True

    def _prepare(self, backend: Backend[Any], jobs: Sequence[_Job]) -> None:
        """Compiles candidates and loads nothing, in another thread. What passes, as want of memory, leaves no trace."""
        start = time.perf_counter()
        try:
            backend.prepare([(job.nest, job.schedule) for job in jobs], self.store)
        except Exception as error:
            if faults.is_passing(error):
                return
            if len(jobs) == 1:
                self._unbuilt[jobs[0].key] = _refused(error, jobs[0].nest)
                return
        else:
            return
        finally:
            self.costs.compile_seconds += time.perf_counter() - start
        for job in jobs:  # one bad kernel must not take the others with it
            self._prepare(backend, [job])

    def _jobs(
        self, fresh: Mapping[str, SubGraph]
    ) -> tuple[dict[str, dict[str, Kernel | Decision]], dict[str, list[_Job]]]:
        """By digest, decisions that there is no candidate, or none of a backend; by backend, what is to be compiled."""
        found: dict[str, dict[str, Kernel | Decision]] = {digest: {} for digest in fresh}
        jobs: dict[str, list[_Job]] = {}
        for digest, graph in fresh.items():
            competing = self.backends_for(graph)
            if isinstance(competing, Decision):
                found[digest][""] = competing
                continue
            try:
                nest = self.lower(graph)
            except LoweringError as error:
                found[digest][""] = Decision(False, error.code, error.message)
                continue
            for backend in competing:
                try:
                    schedules = backend.schedules(nest)
                except Exception as error:
                    found[digest][backend.name] = _refused(error, nest)
                    continue
                for schedule in schedules:
                    label = backend.name if len(schedules) == 1 else f"{backend.name} {schedule}"
                    job = _Job(digest, label, nest, schedule)
                    if job.key in self._unbuilt:
                        found[digest][label] = self._unbuilt[job.key]
                    else:
                        jobs.setdefault(backend.name, []).append(job)
        return found, jobs

    def _compile(self, fresh: Mapping[str, SubGraph]) -> dict[str, KernelChoice]:
        found, jobs = self._jobs(fresh)
        try:
            for name, of_backend in jobs.items():
                made = self._build(backend_named(name), of_backend, fresh)
                made = self._tried(backend_named(name), made, fresh)
                for job, kernel in made.items():
                    found[job.digest][job.label] = kernel
        finally:
            self.trials.close()
        return {digest: KernelChoice(candidates) for digest, candidates in found.items()}

    def _build(
        self, backend: Backend[Any], jobs: Sequence[_Job], graphs: Mapping[str, SubGraph]
    ) -> dict[_Job, Kernel | Decision]:
        pairs = [(job.nest, job.schedule) for job in jobs]
        start = time.perf_counter()
        try:
            new = any(job.key in self._builds for job in jobs) or backend.is_new(pairs, self.store)
            some = [job for job in jobs if new and (job.key in self._builds or _is_new(backend, job, self.store))]
            tried = [(graphs[job.digest], job.nest) for job in some] if self.config.verify else []
            with self.trials.ahead(backend.name, tried):
                compiled = backend.compile(pairs, self.store)
        except Exception as error:
            if len(jobs) > 1:  # one bad kernel must not take the others with it
                return {job: made for one in jobs for job, made in self._build(backend, [one], graphs).items()}
            return {jobs[0]: _refused(error, jobs[0].nest)}
        finally:
            self.costs.compile_seconds += time.perf_counter() - start
        self.costs.cache_hits += sum(artifact.from_cache for artifact in compiled)
        self.costs.cache_misses += sum(not artifact.from_cache for artifact in compiled)
        return {job: _launched(artifact, job.schedule) for job, artifact in zip(jobs, compiled, strict=True)}

    def _tried(
        self, backend: Backend[Any], made: dict[_Job, Kernel | Decision], graphs: Mapping[str, SubGraph]
    ) -> dict[_Job, Kernel | Decision]:
        """`made` with a refusal in the place of each new kernel that fails on made data."""
        kernels = {job: kernel for job, kernel in made.items() if isinstance(kernel, Kernel)}
        if not self.config.verify or backend.isolation is None or not kernels:
            return made
        start = time.perf_counter()
        verdicts = self.trials.verdicts([(graphs[j.digest], k.compiled, k.launch) for j, k in kernels.items()])
        self.costs.profile_seconds += time.perf_counter() - start
        pairs = zip(kernels, verdicts, strict=True)
        return made | {job: Decision(False, v.code, v.reason) for job, v in pairs if v.code}

    def launcher(self, graph: SubGraph) -> Callable[..., Any] | Decision:
        """The launcher of a region's first candidate that was made, or the decision that there is none."""
        choice = self.compile([graph])[0]
        kernel = next(iter(choice.kernels.values()), None)
        if kernel is None:
            return next(iter(choice.refusals.values()))
        if given_symbols(kernel.nest):
            return Decision(False, "guard", "its sizes cannot be read off its inputs")
        return kernel.launch

    def forget(self) -> None:
        """Forgets every kernel and decision, in memory and on disk."""
        with self._lock:
            for kept in (self.kernels, self.decisions, self.trials.known, self.nests, self._builds, self._unbuilt):
                kept.clear()
        if self.store is not None:
            self.store.clear()

    # ---- decisions

    def decision_key(self, graph: SubGraph, choice: KernelChoice, bucket: object) -> str:
        """What a measured decision depends on: the kernels' very texts, the sizes, the machine, the settings."""
        competing = [
            (label, backend_named(kernel.backend).identity(), kernel.compiled.digest)
            for label, kernel in choice.kernels.items()
        ]
        settings = [self.config.numerics, self.config.fusion_ratio, self.config.verify, self.config.profile]
        machine = [torch.__version__, torch.get_num_threads()]
        parts = [_FORMAT, graph.digest, str(bucket), competing, settings, machine]
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


def _is_new(backend: Backend[Any], job: _Job, store: Store | None) -> bool:
    """Whether a candidate has to be compiled. `compile` refuses what has no form in a backend, or fails there."""
    try:
        return backend.is_new([(job.nest, job.schedule)], store)
    except Exception as error:
        if faults.is_passing(error):
            raise
        return False


def _launched(compiled: Artifact, schedule: Schedule) -> Kernel | Decision:
    """A kernel with its launcher; what fails refuses this candidate alone."""
    try:
        return Kernel(make_launcher(compiled), compiled.nest, compiled, compiled.target, schedule)
    except Exception as error:
        return _refused(error, compiled.nest)


def _refused(error: Exception, nest: Nest) -> Decision:
    """Why a candidate did not become a kernel."""
    if isinstance(error, LoweringError):
        return Decision(False, error.code, error.message)
    if isinstance(error, (CompileError, BackendUnavailable)):
        return Decision(False, "compile_error", str(error).splitlines()[0])
    return Decision(False, faults.CODE, faults.noted(error, nest.name))
