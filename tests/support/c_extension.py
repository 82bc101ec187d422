"""The C extension of the runtime, for tests that compare it with what is written in Python."""

from __future__ import annotations

from typing import Any

import pytest

from fusion.runtime import native


def c_extension() -> Any:
    """The extension's module; a test is skipped where there is no compiler for it."""
    module = native.load_native()
    if module is None:
        pytest.skip(str(native.native_available()))
    return module
