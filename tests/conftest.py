"""Settings of every test process, and the order of the tests."""

import os
from collections.abc import Iterator

import pytest

# Before torch is imported, as OpenMP reads it once: several processes share the cores, so waiting threads sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def compiler_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sources that a test, of whichever worker, has compiled are not compiled again."""
    from compiled_once import compiled_once  # imports torch, for which the environment is set by now

    base = tmp_path_factory.getbasetemp()
    with compiled_once((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "libraries"):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow modules come first: whole files are handed to workers, and one at the end would run alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
