"""AWQ's scales (Lin et al. 2023, arXiv:2306.00978, section 3.2): columns that loud inputs read are made larger.

A group's step is set by its largest weights; a column multiplied by s, and its input divided by s, is rounded s times
finer as long as others set the step. s = (loudness of the input)^alpha, alpha chosen by what the layers' outputs lose.

Differs from the paper: loudness is the root of the mean square, not the mean of |x|, since second moments are what is
collected. Powers of two, which SmoothQuant has here, would give away half of the gain: two blocks of SmolLM2-135M at
3 bits, q, k and v, tr(E H E^T) over that without scales: .60 to .64 rounded to nearest, .63 to .69 by powers of two.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALPHAS = tuple(n / 8 for n in range(1, 9))
"""What is tried beside 0, which leaves everything as it is."""


def activation_scale(energy: Tensor, alpha: float) -> Tensor:
    """What each input channel is divided by, (I,) float32, 2^-8 to 2^8.

    energy: (I,) float32, mean square of each channel; those that are never there keep 1. alpha: 0 leaves everything.
    """
    there = energy > 0
    if not bool(there.any()):
        return torch.ones_like(energy)
    exponent = energy.clamp_min(1e-38).log2() * (alpha / 2)
    low, high = exponent[there].min(), exponent[there].max()
    # only ratios between channels matter: centred, so that nothing leaves the range of 16-bit floats
    exponent = torch.where(there, exponent - (low + high) / 2, 0.0).clamp_(-8, 8)
    return torch.exp2(exponent)
