"""The weight that makes good what earlier layers lost: what a layer that writes to the residual stream is rounded to.

Rounding alone keeps a layer's own output and leaves in the stream whatever the layers before it have put there.
With H and the drift D of `LayerStats` (both of the inputs that the compressed model makes), W + D H^-1 is the
least-squares weight for the stream of the original model; it is as free to store as W. How far it is followed is told
by halves of the text: fitted to few tokens, it explains their drift and no other's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compress.core.numerics.curvature import damped, shrunk, trust
from compress.core.types import HalfStats, LayerStats

DAMP = 0.01
SHRINKAGES = (1.0, 4.0, 16.0)
"""Penalties that are tried: inputs count as so many tokens of doubt each. 64 too gained nothing."""
UNTRIED = 4.0
"""The penalty of one batch, which has no other half."""
ROWS = 256
"""Outputs that say which penalty is best; of more, as many spread evenly."""


def corrected(weight: Tensor, stats: LayerStats) -> Tensor:
    """`weight` (O, I) float32 moved by drift H^-1, a new tensor; `weight` itself without drift or tokens.

    With t = n / (n + s I) for n tokens, the move is t * drift * (t H + (1 - t) diag(H) + damping)^-1: ridge regression
    with a penalty of s I / n on each input's own scale, so that few tokens move little, and directions which the
    calibration text hardly shows stay as they are. s: `shrinkage`.
    Raises HessianError as `damped` does. Cost: I^3 / 3 + 2 * O * I^2 float operations, and what `shrinkage` takes.
    """
    if stats.drift is None or stats.n_tokens == 0:
        return weight
    if stats.drift_hessian is not None:
        return corrected(weight, replace(stats, hessian=stats.drift_hessian, drift_hessian=None))
    moved = _move(stats, stats.drift, shrinkage(stats))
    return weight if moved is None else weight + moved


def shrinkage(stats: LayerStats) -> float:
    """Of SHRINKAGES, the one by which each half of the text explains the other's drift best; UNTRIED without halves.

    With M fitted to one half, what is left of the other's drift is smaller by 2 <M, drift> - <M H, M>, statistics of
    the other. One penalty for all layers is wrong either way: attention's output has few inputs and makes good what
    values lost, the last matrix of an FFN has many and little to make good. SmolLM2-135M, 4 bit g64, 16 k tokens,
    held-out KL: s = 1 .120, 4 .107, 16 .102, by halves .103; 3 bit .384 and .349 (single runs). MiniLM: no difference.
    Cost: every penalty for two halves, I^3 / 3 and 4 I^2 for each of ROWS outputs. Memory: 3 (I, I) float32.
    """
    half = stats.half
    if half is None or stats.drift is None or not 0 < half.n_tokens < stats.n_tokens:
        return UNTRIED
    rows = slice(None, None, -(-len(stats.drift) // ROWS))
    one, left = replace(half, drift=half.drift[rows]), 1 - half.share
    hessian = (stats.hessian - half.share * half.hessian) / left
    drift = (stats.drift[rows] - half.share * one.drift) / left
    other = HalfStats(stats.n_tokens - half.n_tokens, left, hessian, drift)

    def gain(penalty: float) -> float:
        return sum(_explains(a, b, penalty) for a, b in ((one, other), (other, one)))

    gains = {penalty: gain(penalty) for penalty in SHRINKAGES}
    return max(SHRINKAGES, key=lambda penalty: gains[penalty])


def _explains(fitted: HalfStats, judge: HalfStats, penalty: float) -> float:
    """How much less of the drift of `judge` is left by what `fitted` says, in parts of all text's."""
    moved = _move(LayerStats(fitted.n_tokens, fitted.hessian), fitted.drift, penalty)
    if moved is None:
        return 0.0
    return judge.share * float(2 * torch.sum(moved * judge.drift) - torch.sum((moved @ judge.hessian) * moved))


def _move(stats: LayerStats, drift: Tensor, penalty: float) -> Tensor | None:
    """The change of weight (O, I) for the outputs of `drift`; None where every input was 0."""
    scaled, mean = shrunk(stats, penalty)
    if mean == 0.0:
        return None
    lower, _ = damped(scaled, DAMP, _lower_factor)
    return torch.cholesky_solve((drift * (trust(stats, penalty) / mean)).T, lower).T


def _lower_factor(hessian: Tensor) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(hessian)
    return None if int(failed) or not bool(torch.isfinite(lower.diagonal().sum())) else lower
