"""Python's own classes that forwards make."""

from __future__ import annotations

import collections

from fusion.capture.python.registry import register_made


def register() -> None:
    """Registers what a forward makes for its layers to share states in."""
    register_made(collections.UserDict)
