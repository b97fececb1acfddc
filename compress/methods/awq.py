"""AWQ: rounding to nearest with loud inputs' columns made larger first (Lin et al. 2023, arXiv:2306.00978).

The scales are chosen and folded away block by block, before this is called (compress.pipeline.awq). What is left is the
paper's clipping. Differs from it: each group's scale is searched for the least error with a column counted by diag(H),
without the products of inputs that the paper takes within a group; a row keeps min-max where all products together say
that its output is nearer so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.numerics.affine import dequantize, require_codes
from compress.core.numerics.curvature import require_hessian
from compress.core.numerics.grid import Grid, Search, minmax_grid, round_to_nearest, search_grid
from compress.core.types import LayerMethod, LayerStats, QTensor, Scheme


@dataclass(frozen=True)
class Options:
    """steps, shrink: how many factors are tried for each scale, from 1 down to what."""

    steps: int = 40
    shrink: float = 0.4

    def __post_init__(self) -> None:
        Search(self.steps, self.shrink)  # refuses what it cannot hold


def quantize(weight: Tensor, stats: LayerStats | None, scheme: Scheme, options: Options) -> tuple[QTensor, str | None]:
    """Codes nearest to `weight` (O, I) float32, on grids of least sum of diag(H) (w - q)^2; no row's e H e^T is
    above that of min-max.

    stats.hessian: (I, I) float32. Neither is modified. Returns the quantized weight, and a sentence when there were no
    tokens, else None.
    Raises HessianError if H is not finite, ModelError for a weight that is not finite, RecipeError for a scheme that
    holds no codes.
    """
    require_codes(weight, scheme)
    search = Search(options.steps, options.shrink)
    if stats is None or stats.n_tokens == 0:
        note = "no calibration token reached this layer: rounded to nearest"
        return round_to_nearest(weight, search_grid(weight, None, scheme, search), scheme), note
    require_hessian(stats.hessian, weight.shape[1])
    grids = (
        search_grid(weight, stats.hessian.diagonal().contiguous(), scheme, search),
        minmax_grid(weight, scheme),
    )
    found, plain = (round_to_nearest(weight, grid, scheme) for grid in grids)
    wins = _row_errors(weight, found, stats.hessian) <= _row_errors(weight, plain, stats.hessian)
    return round_to_nearest(weight, _by_row(wins, *grids), scheme), None


def _row_errors(weight: Tensor, q: QTensor, hessian: Tensor) -> Tensor:
    """e H e^T of each row, (O,), in a unit of the row's own that no value overflows."""
    unit = hessian.diagonal().max().clamp_min(torch.finfo(torch.float32).tiny)
    peak = weight.abs().amax(1, keepdim=True)
    error = (weight - dequantize(q)) / torch.where(peak > 0, peak, 1.0)
    return ((error @ (hessian / unit)) * error).sum(1)


def _by_row(first: Tensor, one: Grid, other: Grid) -> Grid:
    """Rows of `one` where `first` (O,), else of `other`."""

    def chosen(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.where(first.unsqueeze(1), a, b)

    return Grid(
        torch.where(first.unsqueeze(1), one.scale, other.scale),
        chosen(one.zero, other.zero),
        chosen(one.minimum, other.minimum),
    )


METHOD = LayerMethod(
    quantize=quantize,
    options=Options,
    needs=lambda _: ("hessian",),
    paper="arXiv:2306.00978",
    summary="round to nearest, loud inputs' columns made larger first, scales searched by what outputs lose",
)
