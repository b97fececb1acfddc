"""Round to nearest, each group's scale searched for the least squared error of its weights. Needs no data.

The baseline that a second-order method has to beat: clipping is searched, not fixed, and every candidate
scale is judged as it will be stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress.core.numerics.affine import require_codes
from compress.core.numerics.grid import Search, minmax_grid, round_to_nearest, search_grid
from compress.core.types import LayerMethod, LayerStats, QTensor, Scheme


@dataclass(frozen=True)
class Options:
    """clip False is plain min-max. steps, shrink: how many factors are tried, from 1 down to what."""

    clip: bool = True
    steps: int = 40
    shrink: float = 0.4

    def __post_init__(self) -> None:
        Search(self.steps, self.shrink)  # refuses what it cannot hold


def quantize(weight: Tensor, stats: LayerStats | None, scheme: Scheme, options: Options) -> tuple[QTensor, str | None]:
    """Codes nearest to `weight` (O, I) float32, which is not modified; `stats` are not read.

    Returns the quantized weight and None: there is nothing to fall back from.
    Raises ModelError for a weight that is not finite, RecipeError for a scheme that holds no codes.
    """
    del stats
    require_codes(weight, scheme)
    if options.clip:
        grid = search_grid(weight, None, scheme, Search(options.steps, options.shrink))
    else:
        grid = minmax_grid(weight, scheme)
    return round_to_nearest(weight, grid, scheme), None


METHOD = LayerMethod(
    quantize=quantize,
    options=Options,
    needs=lambda _: (),
    paper="",
    summary="round to nearest, scales searched for least squared error",
)
