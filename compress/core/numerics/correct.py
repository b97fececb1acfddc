"""The weight that makes good what earlier layers lost: what a layer that writes to the residual stream is rounded to.

Rounding alone keeps a layer's own output and leaves in the stream whatever the layers before it have put there.
With H and the drift D of `LayerStats` (both of the inputs that the compressed model makes), W + D H^-1 is the
least-squares weight for the stream of the original model; it is as free to store as W. SmolLM2-135M, 4 bit g64, 32 k
tokens, held-out KL: .203 without, .105 with, a block solved step by step (single runs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.core.numerics.curvature import damped, shrunk, trust
from compress.core.types import LayerStats

DAMP = 0.01
SHRINKAGE = 1.0


def corrected(weight: Tensor, stats: LayerStats) -> Tensor:
    """`weight` (O, I) float32 moved by drift H^-1, a new tensor; `weight` itself without drift or tokens.

    With t = n / (n + I) for n tokens, the move is t * drift * (t H + (1 - t) diag(H) + damping)^-1: ridge regression
    with a penalty of I / n on each input's own scale, so that few tokens move little, and directions which the
    calibration text hardly shows stay as they are.
    Raises HessianError as `damped` does. Cost: I^3 / 3 + 2 * O * I^2 float operations.
    """
    if stats.drift is None or stats.n_tokens == 0:
        return weight
    scaled, mean = shrunk(stats, SHRINKAGE)
    if mean == 0.0:
        return weight
    lower, _ = damped(scaled, DAMP, _lower_factor)
    wanted = stats.drift * (trust(stats, SHRINKAGE) / mean)
    return weight + torch.cholesky_solve(wanted.T, lower).T


def _lower_factor(hessian: Tensor) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(hessian)
    return None if int(failed) or not bool(torch.isfinite(lower.diagonal().sum())) else lower
