"""How what the residual stream lacks goes with a layer's input: what the layer can make good, and how.

A layer that writes to the residual stream sees inputs x that the layers before it, compressed already, have changed,
and adds its output to a stream that they have changed too. With r and r' the stream after it in the original and in
the compressed model, least squares moves its weight by (sum (r - r') xT) (sum x xT)^-1: the residual-stream form of
GPTAQ's target (Li et al. 2025, arXiv:2504.02692) and Qronos' (Zhang et al. 2025, arXiv:2505.11695), which follow one
layer's own output instead and leave what has gone into the stream as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.core.types import HalfStats

ROWS = 4096  # rows converted to float32 at a time


class DriftCollector:
    """Accumulates sum u (r - r') xT over tokens for one layer, and of every other batch that and sum u x xT once more.

    Holds 2 (O, I) and one (I, I) float32 and nothing that grows.
    """

    def __init__(self, out_features: int, in_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(out_features, in_features, dtype=torch.float32, device=device)
        self._half = torch.zeros_like(self._sum)
        self._moments = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self._weight, self._half_weight = 0.0, 0.0
        self._batches, self._half_tokens = 0, 0

    def add(self, x: Tensor, missing: Tensor, weight: Tensor) -> None:
        """Add a batch of tokens. x: (..., I), any float dtype; missing: (..., O) = r - r'; weight: (...,) >= 0. Nothing
        is modified. The order and the size of batches change the last bits, and which of them are in `half`."""
        rows, lacks = x.detach().reshape(-1, x.shape[-1]), missing.detach().reshape(-1, missing.shape[-1])
        counts = weight.reshape(-1)
        other = self._batches % 2 == 1
        for start in range(0, rows.shape[0], ROWS):
            part = rows[start : start + ROWS].to(self._sum)
            share = counts[start : start + ROWS].to(self._sum).unsqueeze(1)
            heavy = lacks[start : start + ROWS].to(self._sum) * share
            if other:
                self._half.addmm_(heavy.T, part)
                self._moments.addmm_((part * share).T, part)
            else:
                self._sum.addmm_(heavy.T, part)
        total = float(counts.sum(dtype=torch.float64))
        self._weight += total
        self._half_weight += total if other else 0.0
        self._half_tokens += rows.shape[0] if other else 0
        self._batches += 1

    def drift(self) -> Tensor:
        """(O, I) float32 = (2 / sum u) sum u (r - r') xT of all tokens added; zero when there was none."""
        return (self._sum + self._half) * (2.0 / (self._weight or 1.0))

    def half(self) -> HalfStats | None:
        """The second, fourth, ... batch; None where there was none, or nothing in it or in the others counts."""
        if not 0.0 < self._half_weight < self._weight:
            return None
        scale = 2.0 / self._half_weight
        share = self._half_weight / self._weight
        return HalfStats(self._half_tokens, share, self._moments * scale, self._half * scale)


COLLECTOR = DriftCollector
