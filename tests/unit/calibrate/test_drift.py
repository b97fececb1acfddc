"""The drift, and the hessian of weighted tokens, against float64 sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calibrate.collectors.drift import DriftCollector
from calibrate.collectors.hessian import HessianCollector
from compress.core.registry import load

CPU = torch.device("cpu")


def draw(n: int, features: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=generator) * torch.logspace(-1, 1, features)


@pytest.mark.parametrize("cuts", [[700], [1, 299, 400], [7] * 100])
def test_matches_the_float64_oracle_however_it_is_batched(cuts: list[int]) -> None:
    x, missing = draw(700, 40, 0), draw(700, 12, 1)
    weight = torch.rand(700, generator=torch.Generator().manual_seed(2))
    collector = DriftCollector(12, 40, CPU)
    for parts in zip(x.split(cuts), missing.split(cuts), weight.split(cuts), strict=True):
        collector.add(*parts)
    u = weight.double()
    exact = 2 / u.sum() * (missing.double() * u[:, None]).T @ x.double()
    size = torch.outer(missing.double().norm(dim=0), x.double().norm(dim=0)) * 2 / u.sum()
    assert float(((collector.drift().double() - exact) / size).abs().max()) <= 5e-6
    half = collector.half()
    if len(cuts) == 1:
        assert half is None
        return
    assert half is not None
    mine = torch.cat([torch.full((count,), number % 2 == 1) for number, count in enumerate(cuts)])
    x, missing, u = x[mine].double(), missing[mine].double(), weight[mine].double()
    assert (half.n_tokens, half.share) == (
        int(mine.sum()),
        pytest.approx(float(u.sum()) / float(weight.double().sum())),
    )
    for found, exact in ((half.drift, (missing * u[:, None]).T @ x), (half.hessian, (x * u[:, None]).T @ x)):
        torch.testing.assert_close(found.double(), exact * 2 / u.sum(), rtol=1e-4, atol=1e-4)


def test_leading_dimensions_are_tokens_and_nothing_is_modified() -> None:
    x, missing, weight = draw(24, 8, 0), draw(24, 3, 1), torch.ones(24)
    kept = [t.clone() for t in (x, missing, weight)]
    flat, shaped = DriftCollector(3, 8, CPU), DriftCollector(3, 8, CPU)
    flat.add(x, missing, weight)
    shaped.add(x.reshape(2, 12, 8), missing.reshape(2, 12, 3), weight.reshape(2, 12))
    assert torch.equal(flat.drift(), shaped.drift())
    assert all(torch.equal(a, b) for a, b in zip((x, missing, weight), kept, strict=True))


def test_no_token_gives_zeros() -> None:
    collector = DriftCollector(3, 4, CPU)
    collector.add(torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0))
    collector.add(torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(2))
    assert torch.equal(collector.drift(), torch.zeros(3, 4))
    assert collector.half() is None


def test_a_weight_counts_a_token_that_often() -> None:
    """Whole weights are the same as repeating tokens; all weights alike the same as none."""
    x = draw(300, 30, 3)
    times = torch.randint(1, 4, (300,), generator=torch.Generator().manual_seed(0))
    weighted, repeated, plain, alike = (HessianCollector(30, CPU) for _ in range(4))
    weighted.add(x, times.float())
    repeated.add(x.repeat_interleave(times, dim=0))
    plain.add(x)
    alike.add(x, torch.full((300,), 0.25))
    assert weighted.stats().n_tokens == 300
    torch.testing.assert_close(weighted.stats().hessian, repeated.stats().hessian, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alike.stats().hessian, plain.stats().hessian, rtol=1e-4, atol=1e-4)


def test_registered_under_its_file_name() -> None:
    assert load("collector", "drift") is DriftCollector
