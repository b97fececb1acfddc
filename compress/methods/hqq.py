"""HQQ: half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/). Needs no data.

A group's grid is chosen for the least sum of |w - q|^p, p below 1, which lets a few weights be far off so that the
many are near. Splitting the error into a part E that is given up and one that is fitted makes two steps in turn:
E is |w - q| shrunk, E = sign(x) max(0, |x| - |x|^(p - 1) / beta), and the grid is the least-squares fit of w - E
to the codes at hand; beta grows by kappa a step.

Differs from the paper:
- the paper moves a float zero and leaves the scale. Our zeros are stored as codes: scale and offset are fitted
  together, the offset is rounded to a code, and the scale is fitted again to that zero. Symmetric schemes and
  codebooks have a scale to fit only; ggml's blocks with a minimum keep both as fitted.
- errors are counted in steps of the group's grid, so that beta means the same in every model: at the paper's 10,
  in the weight's own unit, nothing is ever given up (|x| must pass .17).
- it starts from the grid of least squared error as well as from min-max; every step is judged as it will be stored,
  and the best is kept. No group's squared error ends above min-max's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.errors import RecipeError
from compress.core.numerics.affine import require_codes, round_to_storage, symmetric_zero, to_groups
from compress.core.numerics.codebook import snapped
from compress.core.numerics.grid import Grid, Search, has_minimum, minmax_grid, round_to_nearest, search_grid
from compress.core.types import LayerMethod, LayerStats, QTensor, Scheme

_CHUNK = 1 << 18  # weights at a time: a few temporaries of that size
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Options:
    """p: exponent of the error. beta, kappa: the first penalty, in steps of the grid, and its growth a step.

    iterations: alternations from each start. steps, shrink: of the search that one of the starts comes from.
    """

    p: float = 0.7
    beta: float = 5.0
    kappa: float = 1.05
    iterations: int = 20
    steps: int = 40
    shrink: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise RecipeError(f"p {self.p} is out of range; use above 0 up to 1, 0.7 is the default")
        if not self.beta > 0:
            raise RecipeError(f"beta {self.beta} is out of range; use more than 0, 5 is the default")
        if not self.kappa >= 1:
            raise RecipeError(f"kappa {self.kappa} is out of range; use 1 or more, 1.05 is the default")
        if self.iterations < 0:
            raise RecipeError(f"iterations {self.iterations} is impossible; use 0 or more, 20 is the default")
        Search(self.steps, self.shrink)  # refuses what it cannot hold


def quantize(weight: Tensor, stats: LayerStats | None, scheme: Scheme, options: Options) -> tuple[QTensor, str | None]:
    """Codes of `weight` (O, I) float32, which is not modified, on grids of small |w - q|^p; `stats` are not read.

    Returns the quantized weight and None: there is nothing to fall back from.
    Raises ModelError for a weight that is not finite, RecipeError for a scheme that holds no codes.
    Cost: about 60 * O * I float operations an iteration, twice (two starts); temporaries of 256 Ki values.
    """
    del stats
    require_codes(weight, scheme)
    covered = minmax_grid(weight, scheme)
    searched = search_grid(weight, None, scheme, Search(options.steps, options.shrink))
    groups, there = to_groups(weight, scheme), to_groups(torch.ones(1, weight.shape[1]), scheme)
    rows = max(1, _CHUNK // (groups.shape[1] * groups.shape[2]))
    scales, offsets = [], []
    for start in range(0, len(groups), rows):
        part = slice(start, start + rows)
        fitting = _Fitting(groups[part], there, covered.scale[part], scheme, options)
        scale, offset = fitting.best(_pair(covered, scheme, part), _pair(searched, scheme, part))
        scales.append(scale)
        offsets.append(offset)
    return round_to_nearest(weight, _grid(torch.cat(scales), torch.cat(offsets), scheme), scheme), None


_Pair = tuple[Tensor, Tensor]  # scale and offset, both (R, G): the offset is the zero, or the minimum


def _pair(grid: Grid, scheme: Scheme, rows: slice) -> _Pair:
    if grid.minimum is not None:
        return grid.scale[rows], grid.minimum[rows]
    zero = torch.full_like(grid.scale, symmetric_zero(scheme)) if grid.zero is None else grid.zero.float()
    return grid.scale[rows], zero[rows]


def _grid(scale: Tensor, offset: Tensor, scheme: Scheme) -> Grid:
    if has_minimum(scheme):
        return Grid(scale, None, offset)
    return Grid(scale, None if scheme.symmetric else offset.to(torch.uint8))


@dataclass(frozen=True)
class _Kept:
    """The best grids so far, group by group (R, G). error: sum of |w - q|^p in units of the group."""

    error: Tensor
    scale: Tensor
    offset: Tensor


class _Fitting:
    """One chunk of groups (R, G, g), in units of each group's min-max scale. there: (1, G, g), 0 where padded."""

    def __init__(self, groups: Tensor, there: Tensor, unit: Tensor, scheme: Scheme, options: Options) -> None:
        self.unit, self.there, self.scheme, self.options = unit, there, scheme, options
        self.ratio = groups / unit.unsqueeze(2)
        self.count = there.sum(2)
        self.top = 2**scheme.bits - 1

    def best(self, covered: _Pair, searched: _Pair) -> _Pair:
        """The pair, as stored, of least |w - q|^p that was met on the way from both starts."""
        error, _ = self._off(*covered)
        limit = error.square().sum(2)
        kept = _Kept(error.abs().pow(self.options.p).sum(2), *covered)
        for start in (covered, searched):
            kept = self._alternate(start, kept, limit)
        return kept.scale, kept.offset

    def _alternate(self, start: _Pair, kept: _Kept, limit: Tensor) -> _Kept:
        pair, beta, p = start, self.options.beta, self.options.p
        for left in range(self.options.iterations, -1, -1):
            error, codes = self._off(*pair)
            size = error.abs()
            cost = size.pow(p).sum(2)
            wins = (cost < kept.error) & (size.square().sum(2) <= limit)
            kept = _Kept(
                torch.where(wins, cost, kept.error),
                torch.where(wins, pair[0], kept.scale),
                torch.where(wins, pair[1], kept.offset),
            )
            if left:
                step = (pair[0] / self.unit).unsqueeze(2)
                pair = self._fitted(codes, self.ratio - shrunk(error / step, beta, p) * step, pair)
                beta *= self.options.kappa
        return kept

    def _off(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """(w - q, codes or levels), both (R, G, g), of weights rounded to nearest on a stored grid."""
        step = (scale / self.unit).unsqueeze(2)
        if self.scheme.kind == "codebook":
            levels = snapped(self.ratio / step, self.scheme)
            return self.ratio - levels * step, levels
        if has_minimum(self.scheme):
            low = (offset / self.unit).unsqueeze(2)
            codes = ((self.ratio - low) / step).round_().clamp_(0, self.top)
            return self.ratio - (codes * step + low), codes
        zero = offset.unsqueeze(2)
        codes = ((self.ratio / step).round_() + zero).clamp_(0, self.top)
        return self.ratio - (codes - zero) * step, codes

    def _fitted(self, codes: Tensor, target: Tensor, pair: _Pair) -> _Pair:
        """The stored pair nearest to the least-squares fit of `target` to `codes`; the old one where there is none."""
        scheme = self.scheme
        if scheme.kind == "codebook":
            return self._rescaled(codes, target, pair)
        if not has_minimum(scheme) and scheme.symmetric:
            return self._rescaled((codes - symmetric_zero(scheme)) * self.there, target, pair)
        mean_code, mean = (codes * self.there).sum(2) / self.count, (target * self.there).sum(2) / self.count
        off = (codes - mean_code.unsqueeze(2)) * self.there
        curve, slope = off.square().sum(2), (off * target).sum(2)
        found = (curve > 0) & (slope > 0)
        step = torch.where(found, slope / curve, pair[0] / self.unit)
        low = mean - step * mean_code
        if has_minimum(scheme):
            minimum = (low * self.unit).clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()
            return self._stored(step), torch.where(found, minimum, pair[1])
        zero = torch.where(found, (-low / step).round_().clamp_(0, self.top), pair[1])
        return self._rescaled((codes - zero.unsqueeze(2)) * self.there, target, (pair[0], zero))

    def _rescaled(self, steps: Tensor, target: Tensor, pair: _Pair) -> _Pair:
        curve, slope = steps.square().sum(2), (steps * target).sum(2)
        best = torch.where((curve > 0) & (slope > 0), slope / curve, pair[0] / self.unit)
        return self._stored(best), pair[1]

    def _stored(self, step: Tensor) -> Tensor:
        return round_to_storage(step * self.unit, self.scheme.scale_dtype, self.scheme.scale_bits)


def shrunk(x: Tensor, beta: float, p: float) -> Tensor:
    """sign(x) max(0, |x| - |x|^(p - 1) / beta): what is given up of errors `x` (any shape)."""
    size = x.abs()
    return torch.where(size > 0, size - size.pow(p - 1) / beta, 0.0).clamp_(min=0).copysign_(x)


METHOD = LayerMethod(
    quantize=quantize,
    options=Options,
    needs=lambda _: (),
    paper="https://mobiusml.github.io/hqq_blog/",
    summary="grids of least |w - q|^p by half-quadratic splitting",
)
