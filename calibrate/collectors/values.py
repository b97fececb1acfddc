"""How often each value of a layer's input occurs: what a static int8 grid is chosen from.

Values are counted by the upper 16 bits of their float32 (a bfloat16, cut off), so the table has one size, batches can
come in any order and nothing is rescaled on the way: ranges of histograms depend on what came first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.core.types import ValueCounts

CELLS = 1 << 16


class ValueCollector:
    """Counts the values of one input. Holds CELLS int64 (512 KB) and the exact ends."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(CELLS, dtype=torch.int64, device=device)
        self._low, self._high = 0.0, 0.0
        self._seen = False

    def add(self, x: Tensor) -> None:
        """Count every value of `x`, any shape and float dtype, not modified."""
        if x.numel() == 0:
            return
        flat = x.detach().to(device=self._counts.device, dtype=torch.float32).contiguous().view(-1)
        low, high = (float(end) for end in torch.aminmax(flat))
        self._low = min(self._low, low) if self._seen else low
        self._high = max(self._high, high) if self._seen else high
        self._seen = True
        cells = flat.view(torch.int32).bitwise_right_shift(16).bitwise_and_(CELLS - 1)
        self._counts += torch.bincount(cells, minlength=CELLS)

    def counts(self) -> ValueCounts:
        """What was counted."""
        return ValueCounts(self._counts.cpu(), self._low, self._high)


COLLECTOR = ValueCollector
