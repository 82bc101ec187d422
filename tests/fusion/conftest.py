"""Configs for the tests of the main path: fused by rule, so that no timing decides what a test exercises."""

from __future__ import annotations

import pytest
from pair import Pair

import fusion


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> fusion.FusionConfig:
    """Fuses whatever is proved; kernels are compiled once per test session."""
    return fusion.FusionConfig(profile=False, cache_dir=tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def pair(quick: fusion.FusionConfig) -> Pair:
    """A block under fusion, its plans made, beside an eager one."""
    made = Pair(quick)
    made.warm()
    return made
