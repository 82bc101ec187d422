"""What a backend is: a compiler of loop nests for some devices, behind one protocol; and the backends there are.

Code outside of `kernels/backends/` knows them by this protocol only. That folder registers those of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import torch

from fusion.kernels.bundle import Nest
from fusion.kernels.store import Store
from fusion.patterns.errors import ConfigError

Launcher = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
Schedule = Hashable  # a backend's own launch data; its text names a candidate where a kernel has several schedules
State = Literal["works", "missing", "fact"]

RESERVED = ("auto", "eager")  # what a config may name besides a backend


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what `fusion doctor` found.

    Attributes:
        name: what was looked at.
        state: "works", "missing", or "fact" where nothing can be wrong.
        found: version, path or reason.
        remedy: what to do where it is missing.
        kernels: whether it tells if kernels can be made for a kind of device.
    """

    name: str
    state: State
    found: str
    remedy: str = ""
    kernels: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a kernel must not be run; `lasting` where it is the kernel's own doing for certain."""

    reason: str
    lasting: bool


class Artifact(Protocol):
    """What a backend makes of a nest: everything that a launcher needs."""

    @property
    def name(self) -> str:
        """The nest's name."""

    @property
    def target(self) -> str:
        """The backend's name."""

    @property
    def nest(self) -> Nest:
        """What it computes."""

    @property
    def digest(self) -> str:
        """SHA-256 over its source, its schedule and whatever else changes what runs."""

    @property
    def from_cache(self) -> bool:
        """Whether it came from the store."""

    def to_script(self) -> str:
        """A program that runs this kernel alone, on random inputs."""


K = TypeVar("K", bound=Artifact)
K_contra = TypeVar("K_contra", bound=Artifact, contravariant=True)


class FirstRuns(Protocol[K_contra]):
    """A process that runs kernels for the first time."""

    def outcome(self, kernels: Sequence[tuple[K_contra, Sequence[Mapping[str, int]]]]) -> dict[int, Fault]:
        """Runs kernels, each at the given values of its nest's size symbols; the faults of some by their position."""

    def close(self) -> None:
        """Ends the process where it still waits."""


class Isolation(Protocol[K_contra]):
    """How a backend whose kernels could harm the process has each tried on made data before its first use."""

    def sizes(self, nest: Nest) -> Iterator[Sequence[Mapping[str, int]]]:
        """Values of a nest's size symbols that reach every branch of its kernel.

        A second set, and so on, is for graphs whose operators allow none of the sizes before it.
        """

    def start(self) -> FirstRuns[K_contra]:
        """Starts the process."""


class Backend(Protocol[K]):
    """A compiler of loop nests.

    What it cannot express it refuses by LoweringError: with the code "primitive" for a primitive that it lacks.
    """

    @property
    def name(self) -> str:
        """What configs, reports and kernels' sources call it."""

    @property
    def targets(self) -> frozenset[str]:
        """Types of the devices whose tensors its kernels take: "cpu", "cuda"."""

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Element types that its kernels load and store."""

    @property
    def isolation(self) -> Isolation[K] | None:
        """How its kernels are tried before use; None for kernels that can do no harm, or cannot be tried."""

    def why_unavailable(self) -> str | None:
        """None where its kernels can run here; else why they cannot, and what to do about it."""

    def identity(self) -> str:
        """The toolchain and the device, as far as they change how long a kernel takes."""

    def schedules(self, nest: Nest) -> tuple[Schedule, ...]:
        """The ways to run a nest that are worth a kernel each, the most promising first; at least one.

        Schedules come from here only. Where there are several, `emit` and `compile` have to use the one they are given,
        and a kernel's digest has to tell it.
        """

    def emit(self, nest: Nest, schedule: Schedule) -> str:
        """The text of all that a launcher may run for a nest; needs neither a compiler nor a device.

        Raises:
            LoweringError: it has no form for the nest.
        """

    def is_new(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> bool:
        """Whether `compile` would call a compiler for some of them: it takes a while then, and `prepare` saves that.

        Raises:
            LoweringError: a nest has no form here.
        """

    def prepare(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> None:
        """Calls the compiler for what `compile` is going to be asked for. It loads nothing, so any thread may do it.

        Raises:
            BackendUnavailable, CompileError, LoweringError: as `compile`.
        """

    def compile(self, jobs: Sequence[tuple[Nest, Schedule]], store: Store | None) -> list[K]:
        """Kernels for nests, in order, each with one of its schedules.

        Args:
            jobs: what to compile.
            store: where compiled kernels may be kept.

        Raises:
            BackendUnavailable: the toolchain is not there.
            CompileError: a kernel did not compile.
            LoweringError: a nest has no form here.
        """

    def launch(self, kernel: K, extension: ModuleType | None) -> Launcher:
        """A function of the input tensors in order, then of the integers of the sizes whose source is "given".

        It returns the one output, or a tuple of them, and raises StructureMismatch, naming the input, for tensors
        whose dtype, device, shape or strides are not those of the kernel's inputs.

        Args:
            kernel: of this backend.
            extension: the C extension of `fusion.runtime.native`, which calls C kernels; None where there is none.
        """

    def synchronize(self) -> None:
        """Waits until everything launched has run: measuring reads the clock after it."""

    def doctor(self) -> tuple[Finding, ...]:
        """What `fusion doctor` says of the toolchain, whether kernels can be made last."""


_registered: dict[str, Backend[Any]] = {}


def register(backend: Backend[Any]) -> None:
    """Makes a backend known: configs may name it, and "auto" lets it compete on its devices, after earlier ones.

    Raises:
        ConfigError: its name is taken.
    """
    if backend.name in _registered or backend.name in RESERVED:
        raise ConfigError(
            f"A backend called {backend.name!r} was registered, and the name is taken.", remedy="Give it another name."
        )
    _registered[backend.name] = backend


def unregister(name: str) -> None:
    """Takes back `register`; what its kernels run already keeps them."""
    del _registered[name]


def backends() -> tuple[Backend[Any], ...]:
    """Every backend, in the order in which they were registered."""
    return tuple(_registered.values())


def backend_named(name: str) -> Backend[Any]:
    """The backend that is registered under a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _registered:
        raise ConfigError(f"No backend is called {name!r}.", remedy=f"There are: {', '.join(_registered)}.")
    return _registered[name]


def backends_of(device: str) -> tuple[Backend[Any], ...]:
    """The backends for a type of device, "cpu" or "cuda"."""
    return tuple(backend for backend in backends() if device in backend.targets)


def waits_for(device: str) -> Callable[[], object]:
    """What waits until a device has run what was launched on it, as its first backend says.

    Raises:
        ConfigError: it has no backend.
    """
    known = backends_of(device)
    if not known:
        raise ConfigError(f"No backend is for {device!r}.", remedy="Register one, or move the tensors.")
    return known[0].synchronize
