"""SmoothQuant's scales (Xiao et al. 2022, section 4): outlying input channels made smaller, their columns larger.

Differs from the paper: scales are powers of two. Dividing a norm's gain and multiplying a column by one changes no bit
of the result, in any float format, so the model is the same function to the last bit; what is lost is a factor of 1.41
of the balance at most.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smoothing_scale(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """What each input channel is divided by, (I,) float32, powers of two.

    inputs: (I,) largest |x| of each channel. weights: (I,) largest |w| of each column, over all layers that read it.
    alpha: 0 leaves everything to the inputs, 1 moves all of their range into the weights. Channels that are never read,
    or never there, keep 1.
    """
    there = (inputs > 0) & (weights > 0)
    x, w = inputs.clamp_min(1e-20).log2(), weights.clamp_min(1e-20).log2()
    exponent = (alpha * x - (1 - alpha) * w).round()
    # only ratios between channels matter: centred, so that nothing leaves the range of 16-bit floats
    centre = exponent[there].median() if bool(there.any()) else torch.zeros(())
    exponent = torch.where(there, exponent - centre, torch.zeros(())).clamp(-8, 8)
    return torch.exp2(exponent)
