"""Numbers whose codes name the levels of a fixed table: `w = level[code] * scale`, a scale for each group of inputs.

NF4: the quantiles of a normal distribution between -1 and 1, 0 among them (Dettmers et al. 2023, arXiv:2305.14314,
appendix E); the values are those of bitsandbytes (functional.py, get_4bit_type), float32 as they stand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.core.schemes import Scheme

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
TABLES = {"nf4": torch.tensor(NF4)}
_BETWEEN = {name: (table[1:] + table[:-1]) / 2 for name, table in TABLES.items()}


def nearest(values: Tensor, scheme: Scheme) -> Tensor:
    """Codes, uint8, of the levels nearest to `values` (any shape, float32); a value in the middle takes the lower."""
    return torch.bucketize(values, _BETWEEN[scheme.name], out_int32=True).to(torch.uint8)


def values_of(codes: Tensor, scheme: Scheme) -> Tensor:
    """Levels, float32, of `codes` (any shape, uint8)."""
    return TABLES[scheme.name][codes.int()]


def snapped(values: Tensor, scheme: Scheme) -> Tensor:
    """`values` moved to their nearest levels."""
    return TABLES[scheme.name][torch.bucketize(values, _BETWEEN[scheme.name], out_int32=True)]
