"""AWQ's scales (Lin et al. 2023, arXiv:2306.00978, section 3.2): columns that loud inputs read are made larger, and
columns that stand out smaller.

A group's step is set by its largest weights; a column multiplied by s, and its input divided by s, is rounded s times
finer as long as others set the step. s = (loudness of the input)^alpha / (size of the column)^beta, alpha and beta
chosen by what the layers' outputs lose. In the authors' code beta is 1 - alpha, or 0, of largest weights. Norms before
q, k, v and the FFN leave columns of very different sizes to their readers, and there beta does most: at 4 bits, alpha 0
and beta 1 leave .37 to .54 of tr(E H E^T) of GPTQ's codes in two blocks of SmolLM2-135M, the best alpha alone .56 to
.83.

Differs from the paper: loudness and size are roots of mean squares, not means and maxima (.42 to .69 by maxima), since
second moments are what is collected. Powers of two, which SmoothQuant has here, would give away half of the gain: two
blocks of SmolLM2-135M at 3 bits, q, k and v, tr(E H E^T) over that without scales: .60 to .64 rounded to nearest, .63
to .69 by powers of two.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS = (0.5, 0.75, 1.0)
"""What is tried for beta, with alpha 0."""
ALPHAS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""What is then tried for alpha, with the best beta, which may be 0."""


def column_scale(energy: Tensor, size: Tensor, alpha: float, beta: float) -> Tensor:
    """What each input channel is divided by and its columns are multiplied by, (I,) float32, 2^-8 to 2^8.

    energy: (I,) float32, mean square of each channel. size: (I,) float32, mean square of each column. Channels that
    are never there, or that nothing reads, keep 1. alpha and beta 0 leave everything.
    """
    there = (energy > 0) & (size > 0)
    if not bool(there.any()):
        return torch.ones_like(energy)
    tiny = 1e-38
    exponent = energy.clamp_min(tiny).log2() * (alpha / 2) - size.clamp_min(tiny).log2() * (beta / 2)
    low, high = exponent[there].min(), exponent[there].max()
    # only ratios between channels matter: centred, so that nothing leaves the range of 16-bit floats
    exponent = torch.where(there, exponent - (low + high) / 2, 0.0).clamp_(-8, 8)
    return torch.exp2(exponent)
