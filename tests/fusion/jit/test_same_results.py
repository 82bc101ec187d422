"""Whether two results agree, for what torch itself does not compare."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.jit.same_results import same_results

UNCOMPARED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("dtype", UNCOMPARED, ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_dtypes_without_a_comparison(dtype: torch.dtype, exact: bool) -> None:
    def made(last: int) -> torch.Tensor:
        return torch.tensor([[1, 2], [3, last]], dtype=torch.uint8).to(dtype)

    assert same_results([made(4)], [made(4)], exact=exact)
    assert same_results(made(4).t(), made(4).t(), exact=exact)
    assert same_results(made(4)[:, 1], made(4)[:, 1], exact=exact)
    assert same_results(made(4)[0, 0], made(4)[0, 0], exact=exact)
    assert same_results(made(4)[:0], made(4)[:0], exact=exact)
    assert not same_results(made(4), made(64), exact=True)
    assert not same_results(made(4), made(4).t(), exact=exact)


def test_quantised_tensors() -> None:
    x = torch.linspace(-1, 1, 8)
    first, again = (torch.quantize_per_tensor(x, 0.1, 3, torch.quint8) for _ in range(2))
    assert same_results(first, again)
    assert not same_results(first, torch.quantize_per_tensor(x, 0.2, 3, torch.quint8))
    assert not same_results(first, torch.quantize_per_tensor(-x, 0.1, 3, torch.quint8))


def test_nan_as_a_number() -> None:
    nan = float("nan")
    assert same_results([nan, complex(nan, 1)], [-nan, complex(float("nan"), 1)])
    assert not same_results(nan, 1.0)
    assert not same_results(complex(nan, 1), complex(nan, 2))


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor that was made has."""

    made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.made = max(self.made, result.numel())
        return result


@pytest.mark.parametrize("change", ["none", "rounding", "nan", "wrong"])
def test_large_results_are_compared_part_by_part(change: str) -> None:
    logits = torch.randn(1, 7, 1_000_003)
    other = logits.clone()
    if change == "nan":
        logits[0, 3, 77] = other[0, 3, 77] = math.nan
    elif change != "none":
        other[0, 6, -1] += 1e-3 if change == "rounding" else 1.0
    with Largest() as largest:
        assert same_results(logits, other, exact=True) == (change in ("none", "nan"))
        assert same_results(logits, other, exact=False) == (change != "wrong")
    assert largest.made <= 1 << 21
