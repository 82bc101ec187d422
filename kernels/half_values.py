"""Which expressions are values of a half-precision type already, so that rounding would change nothing."""

from __future__ import annotations

import torch

from fusion.patterns.scalar import Apply, Constant, Load, Scalar, Select

# Primitives whose result is one of their operands, or its negation: of half-precision operands no rounding is due.
_CHOOSING = ("neg", "abs", "max", "min")


class HalfValues:
    """Remembers the answers by identity, as expressions share nodes."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, torch.dtype], tuple[Scalar, bool]] = {}  # holding a node keeps its id unique

    def holds(self, x: Scalar, dtype: torch.dtype) -> bool:
        """Whether `x` is a value of the half-precision `dtype`."""
        key = (id(x), dtype)
        if key not in self._known:
            self._known[key] = x, self._is_exact(x, dtype)
        return self._known[key][1]

    def _is_exact(self, x: Scalar, dtype: torch.dtype) -> bool:
        match x:
            case Load(storage=storage):
                return storage == dtype
            case Constant(value=value):
                return torch.tensor(value, dtype=dtype).item() == value
            case Select(cases=cases):
                return all(self.holds(c, dtype) for c in cases)
            case Apply(fn="where", args=(_, a, b)):
                return self.holds(a, dtype) and self.holds(b, dtype)
            case Apply(fn=fn, args=args) if fn in _CHOOSING:
                return all(self.holds(a, dtype) for a in args)
            case Apply(fn=fn):
                return fn == f"round_{str(dtype).removeprefix('torch.')}"
            case _:
                return False
