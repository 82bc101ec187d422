"""Whether two results agree, for what torch itself does not compare."""

from __future__ import annotations

import pytest
import torch

from fusion.jit.cache_entry import same_results

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
