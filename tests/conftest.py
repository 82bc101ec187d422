"""Settings of every test process, and the order of the tests."""

import os

import pytest

# Before torch is imported, as OpenMP reads it once: several processes share the cores, so waiting threads sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow modules come first: `make test` hands whole files to its workers, and one at the end would run alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
