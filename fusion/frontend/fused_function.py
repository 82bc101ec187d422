"""Functions under fusion, and what a function depends on beside its arguments."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

from fusion.capture.python.free_variables import Outside, of_function
from fusion.config import FusionConfig
from fusion.jit.scope import Scope
from fusion.jit.stages import Stages
from fusion.patterns.errors import FusionError
from fusion.reporting.collect import report_of
from fusion.reporting.model import FusionReport


class FusedFunction:
    """A function under fusion; called like the function. The caller's grad mode stays: under autograd it runs eagerly.

    Args:
        function: what to run.
        config: a FusionConfig, a mapping of its fields, a JSON or TOML file, or None.

    Raises:
        ConfigError: the config is not valid.
        FusionError: `function` cannot be called, or its signature cannot be read.
    """

    def __init__(self, function: Callable[..., Any], config: FusionConfig | Mapping[str, Any] | str | None) -> None:
        if not callable(function):
            raise FusionError(f"fuse() takes a function, not a {type(function).__name__}.", remedy="Pass a callable.")
        functools.update_wrapper(self, function)
        self.function = function
        self.stages = Stages(config)
        outside = Outside()
        name = getattr(function, "__qualname__", type(function).__name__)
        try:
            self.scope = Scope(
                name,
                function,
                self.stages,
                enabled=lambda: self.stages.config.enable_fusion,
                surroundings=lambda: of_function(function, outside),
            )
        except (TypeError, ValueError) as error:
            raise FusionError(f"The signature of {name} cannot be read: {error}", remedy="Wrap it in a def.") from None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.scope.entry(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method it is given its instance as an argument, and runs eagerly; `fuse(instance.method)` does not."""
        return self if instance is None else types.MethodType(self, instance)

    def report(self) -> FusionReport:
        """What was fused and why."""
        return report_of([self.scope], self.stages)
