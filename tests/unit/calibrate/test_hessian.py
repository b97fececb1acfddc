"""The hessian against the float64 sum, in any order and any dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calibrate.collectors.hessian import HessianCollector
from compress.core.errors import CompressError
from compress.core.registry import load
from compress.core.types import LayerStats

CPU = torch.device("cpu")
# float32 sums of n products have a relative error of about sqrt(n) * 6e-8; n is under 1,000 here
TOLERANCE = 5e-6


def tokens(n: int, features: int, seed: int = 0) -> Tensor:
    """Correlated inputs with channels of very different size, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 1, generator=generator) * torch.rand(features, generator=generator)
    scale = torch.logspace(-2, 1, features)
    return (torch.randn(n, features, generator=generator) + shared) * scale


def collect(parts: list[Tensor], features: int) -> LayerStats:
    collector = HessianCollector(features, CPU)
    for part in parts:
        collector.add(part)
    return collector.stats()


def assert_close(hessian: Tensor, x: Tensor) -> None:
    """Entry (i, j) is judged against sqrt(H_ii H_jj), so small channels count as much as large ones."""
    exact = 2.0 / x.shape[0] * (x.double().T @ x.double())
    size = exact.diagonal().sqrt()
    worst = ((hessian.double() - exact) / torch.outer(size, size)).abs().max()
    assert worst <= TOLERANCE


@pytest.mark.parametrize("features", [5, 256, 257, 600])
def test_matches_the_float64_oracle(features: int) -> None:
    x = tokens(900, features)
    stats = collect([x[:1], x[1:400], x[400:]], features)
    assert_close(stats.hessian, x)
    assert stats.n_tokens == 900


def test_symmetric_to_the_last_bit() -> None:
    hessian = collect([tokens(300, 600)], 600).hessian
    assert torch.equal(hessian, hessian.T)


def test_order_and_batching_change_only_the_last_bits() -> None:
    x = tokens(800, 300)
    order = torch.randperm(800, generator=torch.Generator().manual_seed(1))
    assert_close(collect(list(x.split(7)), 300).hessian, x)
    assert_close(collect(list(x[order].split(250)), 300).hessian, x)


def test_more_rows_than_one_conversion_takes() -> None:
    x = tokens(5000, 12)
    assert_close(collect([x], 12).hessian, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = tokens(900, 40).to(dtype)
    stats = collect([x], 40)
    assert stats.hessian.dtype == torch.float32
    assert_close(stats.hessian, x.float())


def test_leading_dimensions_are_tokens_and_input_is_untouched() -> None:
    x = tokens(24, 8)
    before = x.clone()
    stats = collect([x.reshape(2, 3, 4, 8)], 8)
    assert stats.n_tokens == 24
    assert_close(stats.hessian, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("parts", [[], [torch.zeros(0, 4)], [torch.zeros(2, 0, 4)]])
def test_no_token_gives_zeros(parts: list[Tensor]) -> None:
    stats = collect(parts, 4)
    assert stats.n_tokens == 0
    assert torch.equal(stats.hessian, torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("value", "finite"),
    [(1.0, True), (float("nan"), False), (float("inf"), False), (float("-inf"), False), (1e25, False)],
)
def test_finite_sees_nan_inf_and_overflowing_squares(value: float, finite: bool) -> None:
    x = tokens(50, 300)
    x[20, 290] = value
    collector = HessianCollector(300, CPU)
    collector.add(x)
    assert collector.finite is finite
    collector.stats()
    assert collector.finite is finite


def test_stats_are_taken_once() -> None:
    collector = HessianCollector(3, CPU)
    collector.add(torch.ones(2, 3))
    first = collector.stats()
    assert collector.stats() is first
    assert torch.equal(first.hessian, torch.full((3, 3), 2.0))
    with pytest.raises(CompressError, match="already taken"):
        collector.add(torch.ones(1, 3))


def test_registered_under_its_file_name() -> None:
    assert load("collector", "hessian") is HessianCollector
