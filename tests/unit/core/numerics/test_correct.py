"""The corrected weight against least squares in float64, and where there is nothing to correct."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.core.errors import HessianError
from compress.core.numerics.correct import DAMP, ROWS, SHRINKAGES, UNTRIED, corrected, shrinkage
from compress.core.types import HalfStats, LayerStats


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
    mean, trust = hessian.diagonal().mean(), 500 / (500 + UNTRIED * 24)
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


def halved(tokens: int, outputs: int, noise: float) -> tuple[LayerStats, Tensor, Tensor]:
    """Statistics of 24 inputs in two halves of unequal weight, and what they are of, in float64."""
    generator = torch.Generator().manual_seed(tokens)
    x = (
        torch.randn(tokens, 24, generator=generator, dtype=torch.float64)
        @ torch.randn(24, 24, generator=generator).double()
    )
    change = torch.randn(outputs, 24, generator=generator).double() * 0.1
    missing = x @ change.T + noise * torch.randn(tokens, outputs, generator=generator).double()
    cut = tokens // 3
    (h1, d1), (h, d) = (
        (2 / len(a) * a.T @ a, 2 / len(a) * b.T @ a) for a, b in ((x[:cut], missing[:cut]), (x, missing))
    )
    half = HalfStats(cut, cut / tokens, h1.float(), d1.float())
    return LayerStats(tokens, h.float(), drift=d.float(), half=half), x, missing


@pytest.mark.parametrize(("tokens", "noise"), [(3000, 0.05), (300, 2.0), (90, 4.0), (90, 40.0), (60, 1.0)])
def test_the_penalty_is_the_one_that_predicts_the_other_half_best(tokens: int, noise: float) -> None:
    """Each half fitted in float64 for every penalty, and judged by what is left of the other's tokens."""
    stats, x, missing = halved(tokens, 10, noise)
    cut = tokens // 3

    def fitted(part: slice, penalty: float) -> Tensor:
        n = len(x[part])
        hessian, trust = 2 / n * x[part].T @ x[part], n / (n + penalty * 24)
        damped = trust * hessian
        damped.diagonal().copy_(hessian.diagonal() + DAMP * hessian.diagonal().mean())
        return torch.linalg.solve(damped, trust * 2 / n * (missing[part].T @ x[part]).T).T

    left = {}
    for penalty in SHRINKAGES:
        pairs = ((slice(None, cut), slice(cut, None)), (slice(cut, None), slice(None, cut)))
        left[penalty] = sum(
            float((missing[judge] - x[judge] @ fitted(fit, penalty).T).square().sum()) for fit, judge in pairs
        )
    best = min(left, key=lambda penalty: left[penalty])
    assert shrinkage(stats) == best
    moved = corrected(torch.zeros(10, 24), stats).double()
    torch.testing.assert_close(moved, fitted(slice(None), best), rtol=1e-3, atol=1e-5)


def test_signal_is_followed_and_noise_is_not() -> None:
    assert shrinkage(halved(3000, 10, 0.05)[0]) == SHRINKAGES[0]
    assert shrinkage(halved(60, 10, 40.0)[0]) == SHRINKAGES[-1]


def test_many_outputs_are_judged_by_some_of_them() -> None:
    """Three times ROWS outputs, whose penalty is that of every third."""
    stats, _, _ = halved(90, 3 * ROWS, 4.0)
    assert stats.half is not None
    assert stats.drift is not None
    some = LayerStats(
        90, stats.hessian, stats.drift[::3], HalfStats(30, 1 / 3, stats.half.hessian, stats.half.drift[::3])
    )
    assert shrinkage(stats) == shrinkage(some)


def test_without_another_half_nothing_is_tried() -> None:
    stats, _, _ = halved(90, 10, 1.0)
    assert shrinkage(LayerStats(90, stats.hessian, stats.drift)) == UNTRIED
