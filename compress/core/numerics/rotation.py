"""Random rotations: a direction that holds much of a vector is spread over all of them, and outliers are no more.

Randomised Hadamard matrices (QuIP#, Tseng et al. 2024, arXiv:2402.04396, section 3; QuaRot, Ashkboos et al. 2024,
arXiv:2404.00456): H diag(signs) / sqrt(d), every entry of the same size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_rotation(width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal (width, width) float64: randomised Hadamard where width is a power of two, else one drawn evenly
    from all (Q of a normal matrix, signs of R's diagonal taken out)."""
    if width & (width - 1) == 0:
        signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
        return torch.mul(hadamard(width), signs).div_(math.sqrt(width))
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return torch.mul(q, r.diagonal().sign())


def hadamard(width: int) -> Tensor:
    """Sylvester's matrix (width, width) float64 of 1 and -1; width is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
