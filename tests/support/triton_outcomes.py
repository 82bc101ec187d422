"""What the cases of `triton_worker` are, and what comes of one."""

from __future__ import annotations

from collections.abc import Callable

import torch

Outcome = dict[str, object]  # "ok", "why" not, and what else a case has to tell
Case = Callable[[], Outcome]


def same(found: torch.Tensor, want: torch.Tensor) -> Outcome:
    """Whether two tensors are equal, NaN where NaN is, in dtype and shape too."""
    equal = found.dtype == want.dtype and found.shape == want.shape
    floating = want.is_floating_point()
    equal = equal and bool(((found == want) | ((found != found) & (want != want) if floating else False)).all())
    return {"ok": equal, "why": "" if equal else f"{found}, not {want}"}


def short(dtype: torch.dtype) -> str:
    """A dtype as names of cases have it."""
    return str(dtype).removeprefix("torch.")
