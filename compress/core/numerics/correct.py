"""The weight that makes good what earlier layers lost: the target that a layer which writes to the stream is rounded to.

Rounding alone keeps a layer's own output and leaves in the residual stream whatever the layers before it have put there.
With H and the drift D of `LayerStats` (both of the inputs that the compressed model makes), W + D H^-1 is the
least-squares weight for the stream of the original model; it is as free to store as W. SmolLM2-135M, 4 bit g64, 32 k
tokens, held-out KL: .203 without, .127 with (single runs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.core.numerics.curvature import damped, shrunk
from compress.core.types import LayerStats

DAMP = 0.01
SHRINKAGE = 1.0


def corrected(weight: Tensor, stats: LayerStats) -> Tensor:
    """`weight` (O, I) float32 moved by drift H^-1, a new tensor; `weight` itself without drift or tokens.

    H is shrunk and damped as GPTQ's is, so that directions which the calibration text hardly shows stay as they are.
    Raises HessianError as `damped` does. Cost: I^3 / 3 + 2 * O * I^2 float operations.
    """
    if stats.drift is None or stats.n_tokens == 0:
        return weight
    scaled, mean = shrunk(stats, SHRINKAGE)
    if mean == 0.0:
        return weight
    lower, _ = damped(scaled, DAMP, _lower_factor)
    return weight + torch.cholesky_solve((stats.drift / mean).T, lower).T


def _lower_factor(hessian: Tensor) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(hessian)
    return None if int(failed) or not bool(torch.isfinite(lower.diagonal().sum())) else lower
