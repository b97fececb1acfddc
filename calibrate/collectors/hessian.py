"""The second moment of a layer's input: what GPTQ minimises against (Frantar et al. 2022, section 3.1).

Differs from the reference code: the sum is kept raw and scaled once at the end, so the order and the size of
the batches change nothing but the last bits, and the unit is per token, so layers and runs compare. Tokens may be
given weights: the sum is then over weights, not over tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.core.errors import CompressError
from compress.core.types import LayerStats

STRIP = 256  # columns of the lower triangle added at a time: two thirds of the time of the whole square
ROWS = 4096  # rows converted to float32 at a time: bounds the temporary for half-precision inputs


class HessianCollector:
    """Accumulates sum x xT over tokens for one distinct layer input.

    Holds (I, I) float32 and nothing that grows with the number of tokens. Only the lower triangle is
    summed; `stats` mirrors it, so the hessian is symmetric to the last bit.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self._n_tokens = 0
        self._weight = 0.0
        self._stats: LayerStats | None = None

    @property
    def n_tokens(self) -> int:
        """Rows seen so far."""
        return self._n_tokens

    @property
    def finite(self) -> bool:
        """False as soon as one input was NaN or Inf, or its square left the range of float32."""
        return bool(torch.isfinite(self._sum.diagonal()).all())

    def add(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Add every token of `x`: (..., I), any float dtype, not modified. No rows is no change.

        weight: (...,) float32 >= 0, what each token counts; None counts each as 1.
        Raises CompressError after `stats` was taken: the sum has been scaled in place by then.
        """
        if self._stats is not None:
            raise CompressError("this hessian was already taken; make a new collector for more tokens")
        rows = x.detach().reshape(-1, x.shape[-1])
        for start in range(0, rows.shape[0], ROWS):
            part = rows[start : start + ROWS].to(device=self._sum.device, dtype=torch.float32)
            if weight is not None:
                counts = weight.reshape(-1)[start : start + ROWS].to(part)
                self._weight += float(counts.sum(dtype=torch.float64))
                part = part * counts.sqrt().unsqueeze(1)
            for left in range(0, self._sum.shape[0], STRIP):
                strip = part[:, left : left + STRIP]
                self._sum[left:, left : left + STRIP].addmm_(part[:, left:].T, strip)
        self._weight += 0.0 if weight is not None else rows.shape[0]
        self._n_tokens += rows.shape[0]

    def stats(self) -> LayerStats:
        """The statistics of all tokens added; the same object when asked again.

        hessian (I, I) float32 = (2 / sum u) sum u x xT, u the weights; all zero when no token was added. The sum is
        scaled in place and handed over, so no second (I, I) exists.
        """
        if self._stats is None:
            n = self._weight or 1.0
            self._mirror()
            self._stats = LayerStats(self._n_tokens, self._sum.mul_(2.0 / n))
        return self._stats

    def _mirror(self) -> None:
        """The upper triangle from the lower, strip by strip, with no second (I, I)."""
        for left in range(0, self._sum.shape[0], STRIP):
            right = left + STRIP
            block = self._sum[left:right, left:right]
            block.copy_(block.tril() + block.tril(-1).T)
            self._sum[left:right, right:].copy_(self._sum[right:, left:right].T)


COLLECTOR = HessianCollector
