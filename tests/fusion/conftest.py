"""Configs for the tests of the main path: fused by rule, so that no timing decides what a test exercises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compiled_once import without_optimisation
from pair import Pair

import fusion
from fusion.capture import retrace


@pytest.fixture(scope="module", autouse=True)
def products_left_to_the_library() -> Iterator[None]:
    """A kernel of a matrix product sums in another order than eager, and most tests here compare bit for bit.

    Those about products say so in their config. Tests of other folders, random programs among them, take the default.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FUSION_MATRIX_PRODUCTS", "library")
        yield


@pytest.fixture(scope="module", autouse=True)
def kernels_compiled_without_optimisation() -> Iterator[None]:
    """Tests of other folders, those of kernels, architectures and random programs among them, compile as users do."""
    with without_optimisation():
        yield


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> fusion.FusionConfig:
    """Fuses whatever is proved; kernels are compiled once per test session, whichever worker asks first."""
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return fusion.FusionConfig(profile=False, cache_dir=session / "kernels")


@pytest.fixture
def pair(quick: fusion.FusionConfig) -> Pair:
    """A block under fusion, its plans made, beside an eager one."""
    made = Pair(quick)
    made.warm()
    return made


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each time a scope follows an equal one's recording from here on: whether it came to the end."""
    outcomes: list[bool] = []

    def noted(*arguments: Any) -> Any:
        outcome = retrace.follow(*arguments)
        outcomes.append(outcome[1] is not None)
        return outcome

    monkeypatch.setattr("fusion.jit.twins.follow", noted)
    return outcomes


@pytest.fixture
def without_gradients() -> Iterator[None]:
    """The test calls as users of inference do: fused functions leave the grad mode to their callers."""
    with torch.no_grad():
        yield
