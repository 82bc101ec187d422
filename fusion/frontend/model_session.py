"""A model under fusion: its scopes, and their entries in the modules."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fusion.capture.python.free_variables import Outside, of_module
from fusion.capture.unsupported import holders
from fusion.frontend.module_entries import ModuleEntry, is_method, own_forward
from fusion.integrations import standard, transformers
from fusion.jit.blocks import find_blocks, parts
from fusion.jit.scope import Scope
from fusion.jit.signature import ClassForward
from fusion.jit.stages import Stages
from fusion.refusal import Refusal
from fusion.reporting.collect import report_of
from fusion.reporting.model import FusionReport

# Refusals that say something of the call, not of the module.
_PASSING = (
    "grad_enabled", "training", "active_mode", "autocast", "hook", "collecting", "disabled", "too_many_plans",
    "unsupported_layout", "step_error", "stack", "out_of_memory",
)  # fmt: skip
_MOST_DIVISIONS = 64  # a model whose modules fail one by one stays as it is after that many


class Session:
    """What `enable` puts into a model, and takes out again.

    Args:
        model: the model.
        stages: compiles for it.
    """

    def __init__(self, model: torch.nn.Module, stages: Stages) -> None:
        standard.register()
        transformers.register()
        self.model = model
        self.stages = stages
        self.scopes: list[tuple[torch.nn.Module, Scope]] = []
        self.eager: dict[str, Refusal] = {}  # modules that run eagerly as steps, by path, and why
        self._entries: list[ModuleEntry] = []
        config = getattr(model, "config", None)
        self._watch = [config] if hasattr(config, "__dict__") else []
        blocks = find_blocks(model)
        for path, module in blocks.items():
            self._add(path, module, {})
        if id(model) not in map(id, blocks.values()):
            self._add("", model, blocks)

    def _enabled(self) -> bool:
        switch = getattr(getattr(self.model, "config", None), "enable_fusion", True)
        return bool(switch) and self.stages.config.enable_fusion

    def _add(self, path: str, module: torch.nn.Module, inside: Mapping[str, torch.nn.Module]) -> None:
        """Makes a module a scope; of the modules `inside` it, by their paths in the model, those become its steps."""
        prefix = f"{path}." if path else ""
        own = own_forward(module)
        outside = Outside()
        scope = Scope(
            path or type(self.model).__name__,
            own or ClassForward(module),
            self.stages,
            {"": module},
            enabled=self._enabled,
            watch=self._watch,
            steps={at.removeprefix(prefix): step for at, step in inside.items() if at.startswith(prefix)},
            divide=functools.partial(self._divide, path),
            surroundings=lambda: of_module(module, scope.breaks.modules.values(), outside),
            in_place=False,
            bound=module if is_method(own, module) else None,
        )
        self.scopes.append((module, scope))
        with scope.placing():
            self._entries.append(ModuleEntry(module, scope.entry))

    def _divide(
        self, path: str, scope: Scope, key: Any, refusal: Refusal, culprit: torch.nn.Module | None, changing: bool
    ) -> bool:
        """A scope could not be recorded: the module where it failed becomes a step that runs eagerly.

        What is below that module, or below the scope itself where it failed in its own forward, become scopes.

        Returns:
            whether the scope may be recorded another time.
        """
        module = scope.watch.modules[""]
        failed = sum(known.code != "foreign_weight" for known in self.eager.values())
        if refusal.code in _PASSING or failed >= _MOST_DIVISIONS:
            return False
        if culprit is not None and culprit is not module:
            at = next((p for p, m in module.named_modules() if m is culprit), None)
            if at is None or any(m is culprit for m in scope.breaks.of(key).values()):
                return False
            self._make_step(path, scope, key, refusal, at, culprit, changing)
            if refusal.code == "foreign_weight":  # the other modules with such weights would be found one by one
                inside = {id(m) for step in scope.breaks.of(key).values() for m in step.modules()}
                for at, holder in holders(module):
                    if holder is not module and id(holder) not in inside:
                        why = replace(refusal, sentence=f"{type(holder).__name__} holds a weight of the same kind")
                        self._make_step(path, scope, key, why, at, holder, changing)
            return True
        worked = scope.known or scope.statistics.planned[0]
        if not scope.breaks.divided and (refusal.code == "fixed_size" or not worked):
            scope.breaks.divided = self._add_parts(module, path) or refusal.code != "fixed_size"
            if scope.breaks.divided:
                scope.watch.refresh()
                scope.forget()
        return False

    def _make_step(
        self, path: str, scope: Scope, key: Any, refusal: Refusal, at: str, module: torch.nn.Module, changing: bool
    ) -> None:
        """Makes a module inside a scope a step that runs eagerly, at a path from the scope's own."""
        name = f"{path}.{at}" if path else at
        if name not in self.eager:
            self.eager[name] = refusal
            self._add_parts(module, name)
        scope.make_step(at, module, key, changing=changing)

    def _add_parts(self, module: torch.nn.Module, path: str) -> bool:
        """Makes the largest modules below `module` scopes, next to those that are; whether there were any."""
        taken = {s.name: m for m, s in self.scopes}
        found = parts(module, taken, path)
        with contextlib.ExitStack() as stack:
            for _, scope in self.scopes:
                stack.enter_context(scope.preserve_entries())
            for at, part in found.items():
                self._add(at, part, taken)
        return bool(found)

    def remove(self) -> None:
        """Takes every entry out of the model."""
        for entry in self._entries:
            entry.remove()

    def report(self) -> FusionReport:
        """What was fused, what was not, and why."""
        return report_of([scope for _, scope in self.scopes], self.stages, self.eager)
