"""The corrected weight against least squares in float64, and where there is nothing to correct."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.core.errors import HessianError
from compress.core.numerics.correct import DAMP, corrected
from compress.core.types import LayerStats


def problem(tokens: int, noise: float) -> tuple[Tensor, LayerStats, Tensor, Tensor, Tensor]:
    """Weight, statistics, inputs, what the stream lacks, and the change of weight that explains it but for noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    change = torch.randn(10, 24, generator=generator) * 0.1
    missing = x @ change.T + noise * torch.randn(tokens, 10, generator=generator)
    weight = torch.randn(10, 24, generator=generator)
    stats = LayerStats(tokens, 2 / tokens * x.T @ x, drift=2 / tokens * missing.T @ x)
    return weight, stats, x, missing, change


def test_is_the_damped_least_squares_weight() -> None:
    weight, stats, x, missing, _ = problem(500, 0.5)
    hessian = 2 / 500 * x.double().T @ x.double()
    mean, trust = hessian.diagonal().mean(), 500 / 524
    damped = hessian * trust
    damped.diagonal().copy_(hessian.diagonal() + DAMP * mean)
    wanted = weight.double() + torch.linalg.solve(damped, (trust * 2 / 500 * missing.double().T @ x.double()).T).T
    torch.testing.assert_close(corrected(weight, stats).double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_stream_comes_closer_on_text_that_was_not_seen() -> None:
    weight, stats, _, _, change = problem(4000, 0.2)
    fresh = torch.randn(1000, 24, generator=torch.Generator().manual_seed(9)) @ torch.linalg.cholesky(stats.hessian).T
    moved = corrected(weight, stats) - weight
    before, after = (fresh @ change.T).square().sum(), (fresh @ (change - moved).T).square().sum()
    assert after <= 0.05 * before


def test_few_tokens_move_it_less() -> None:
    """12 tokens of 24 inputs, no signal: the move is smaller than unshrunk least squares'."""
    weight, stats, _, _, _ = problem(12, 1.0)
    plain = torch.linalg.solve(stats.hessian + DAMP * stats.hessian.diagonal().mean() * torch.eye(24), stats.drift.T).T
    assert (corrected(weight, stats) - weight).norm() < 0.5 * plain.norm()


def test_nothing_to_correct() -> None:
    weight, stats, _, _, _ = problem(50, 0.0)
    assert stats.drift is not None
    assert corrected(weight, LayerStats(50, stats.hessian)) is weight
    assert corrected(weight, LayerStats(0, stats.hessian, drift=stats.drift)) is weight
    assert corrected(weight, LayerStats(50, torch.zeros(24, 24), drift=torch.zeros(10, 24))) is weight
    kept = weight.clone()
    assert torch.equal(corrected(weight, LayerStats(50, stats.hessian, drift=torch.zeros(10, 24))), kept)


def test_an_indefinite_hessian_is_refused() -> None:
    weight, stats, _, _, _ = problem(50, 0.0)
    noise = torch.randn(24, 24, generator=torch.Generator().manual_seed(1)) * 50
    with pytest.raises(HessianError, match="indefinite even with 10 times"):
        corrected(weight, LayerStats(5000, (noise + noise.T).fill_diagonal_(1.0), drift=stats.drift))
