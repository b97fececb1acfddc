"""Where the scales and zeros of a group go: from its minimum and maximum, or searched for least error.

A searched grid is the min-max grid shrunk by the factor that leaves the least error: a few clipped weights
for finer steps everywhere else. Every candidate is judged on the scale as it will be stored.
O = out features, I = in features, g = group size, G = groups a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.errors import RecipeError
from compress.core.numerics.affine import per_column, quantize_codes, round_to_storage, symmetric_zero, to_groups
from compress.core.numerics.codebook import snapped
from compress.core.types import QTensor, Scheme

# big enough to hide the cost of a call, small enough for a few temporaries to stay in a shared cache
_CHUNK = 1 << 18
_AROUND = (0.95, 1.0, 1.05)
_REFITS = 3
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Grid:
    """scale: (O, G) float32 on the grid of the storage dtype. zero: (O, G) uint8, None when symmetric.

    minimum: (O, G) float32, for schemes that have one instead of a zero: the value of code 0, float16 numbers.
    """

    scale: Tensor
    zero: Tensor | None
    minimum: Tensor | None = None


@dataclass(frozen=True)
class Search:
    """What is tried in each group: `steps` shrink factors, evenly from 1 to `shrink`; then, when there are
    zeros to move, the zero one code down and up with three factors around the best. steps 1 is min-max."""

    steps: int = 40
    shrink: float = 0.4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"steps {self.steps} tries no scale; use 1 (min-max) or more, 40 is the default")
        if not 0 < self.shrink <= 1:
            raise RecipeError(f"shrink {self.shrink} is out of range; use a factor above 0 and up to 1")


def minmax_grid(weight: Tensor, scheme: Scheme) -> Grid:
    """The narrowest grid that covers each group's values and 0. weight: (O, I) float32, finite.

    An all-zero group gets scale 1: its codes mean 0 whatever it is.
    """
    if has_minimum(scheme):
        return search_minima(weight, None, scheme, 1, 1.0)
    scale, zero = _cover(to_groups(weight, scheme), scheme)
    return Grid(
        round_to_storage(scale, scheme.scale_dtype, scheme.scale_bits),
        None if zero is None else zero.to(torch.uint8),
    )


def search_grid(weight: Tensor, importance: Tensor | None, scheme: Scheme, search: Search) -> Grid:
    """The grid of least sum of importance * (w - q)^2 in each group, q rounded to nearest.

    weight: (O, I) float32, finite. importance: (I,) float32 >= 0, such as diag(H); None weighs all alike.
    Never worse than `minmax_grid` in that measure: factor 1 is a candidate.
    Cost: about 8 * O * I * (steps + 6) float operations; a few temporaries of 256 Ki values.
    """
    if has_minimum(scheme):
        return search_minima(weight, importance, scheme, search.steps, search.shrink)
    groups = to_groups(weight, scheme)
    share = None if importance is None else _shares(importance, scheme)
    rows = max(1, _CHUNK // (groups.shape[1] * groups.shape[2]))
    found = [_search_rows(chunk, share, scheme, search) for chunk in torch.split(groups, rows)]
    scale = torch.cat([f[0] for f in found])
    return Grid(scale, None if scheme.symmetric else torch.cat([f[1] for f in found]).to(torch.uint8))


def round_to_nearest(weight: Tensor, grid: Grid, scheme: Scheme) -> QTensor:
    """`weight` (O, I) rounded to nearest on `grid`."""
    if grid.minimum is not None:
        shifted, none = above_minimum(weight, grid, scheme), torch.zeros_like(grid.scale, dtype=torch.uint8)
        return QTensor(quantize_codes(shifted, grid.scale, none, scheme), grid.scale, None, scheme, grid.minimum)
    return QTensor(quantize_codes(weight, grid.scale, grid.zero, scheme), grid.scale, grid.zero, scheme)


def _cover(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """Unrounded scale (O, G) and float zero of the narrowest grid over `groups` (O, G, g) and 0."""
    low = groups.amin(2).clamp_(max=0)
    high = groups.amax(2).clamp_(min=0)
    steps = 2**scheme.bits - 1
    if scheme.kind == "codebook":  # its ends are -1 and 1
        scale = torch.maximum(-low, high)
        return torch.where(scale > 0, scale, 1.0), None
    if scheme.symmetric:
        below = symmetric_zero(scheme)
        scale = torch.maximum(low / -below, high / (steps - below))
        if turns(scheme):  # a scale below 0 puts the level that has no opposite on the other side
            other = torch.maximum(high / below, low / -(steps - below))
            scale = torch.where(other < scale, -other, scale)
        return torch.where(scale != 0, scale, 1.0), None
    # divided apart: high - low may overflow where high / steps does not
    scale = high / steps - low / steps
    scale = torch.where(scale > 0, scale, 1.0)
    stored = round_to_storage(scale, scheme.scale_dtype, scheme.scale_bits)
    return scale, (-low / stored).round_().clamp_(0, steps)


def turns(scheme: Scheme) -> bool:
    """Whether scales of the scheme may be below 0: of few symmetric levels, one more on the right side is a lot."""
    return scheme.kind == "int" and scheme.symmetric and scheme.bits < 8


def _shares(importance: Tensor, scheme: Scheme) -> Tensor:
    """`importance` (I,) as (G, g), each group's largest 1, so that no extreme value vanishes or overflows."""
    groups = to_groups(importance.reshape(1, -1), scheme)[0]
    peak = groups.amax(1, keepdim=True)
    return torch.where(peak > 0, groups / peak, 1.0)


def _search_rows(groups: Tensor, share: Tensor | None, scheme: Scheme, search: Search) -> tuple[Tensor, Tensor]:
    """Best (scale, zero), each (R, G) float32, for `groups` (R, G, g); zero is constant when symmetric."""
    unit, zero = _cover(groups, scheme)
    if zero is None:
        zero = torch.full_like(unit, symmetric_zero(scheme))
    trial = _Trial(groups / unit.unsqueeze(2), unit, share, scheme)
    best = trial.judge(unit, zero)
    for factor in torch.linspace(1.0, search.shrink, search.steps).tolist()[1:]:
        best = _better(best, trial.judge(unit * factor, zero))
    if search.steps == 1:
        return best[1], best[2]
    if turns(scheme):  # which side is longer was told by the extremes, which may matter little
        turned = -best[1]
        for factor in _AROUND:
            best = _better(best, trial.judge(turned * factor, zero))
    if scheme.symmetric:
        return best[1], best[2]
    around, top = best[1], 2**scheme.bits - 1
    for shift in (-1, 1):
        for factor in _AROUND:
            best = _better(best, trial.judge(around * factor, (zero + shift).clamp_(0, top)))
    return best[1], best[2]


def _better(best: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Group by group the candidate (error, scale, zero) with the smaller error; ties keep `best`."""
    wins = other[0] < best[0]
    return (
        torch.where(wins, other[0], best[0]),
        torch.where(wins, other[1], best[1]),
        torch.where(wins, other[2], best[2]),
    )


class _Trial:
    """Judges candidate grids over one chunk, in units of each group's own min-max scale."""

    def __init__(self, ratio: Tensor, unit: Tensor, share: Tensor | None, scheme: Scheme) -> None:
        self.ratio, self.unit, self.share, self.scheme = ratio, unit, share, scheme
        self.work = torch.empty_like(ratio)

    def judge(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(error, scale as stored, zero), each (R, G), of a candidate; error = sum of share * (w - q)^2."""
        stored = round_to_storage(scale, self.scheme.scale_dtype, self.scheme.scale_bits)
        step = (stored / self.unit).unsqueeze(2)
        work = self._rounded(step, zero)
        work.mul_(step).sub_(self.ratio).square_()
        if self.share is not None:
            work.mul_(self.share)
        return work.sum(2), stored, zero

    def _rounded(self, step: Tensor, zero: Tensor) -> Tensor:
        """The chunk in steps of (R, G, 1), rounded: codes less zero, or levels."""
        work, top = torch.div(self.ratio, step, out=self.work), 2**self.scheme.bits - 1
        if self.scheme.kind == "codebook":
            return snapped(work, self.scheme)
        work.round_()
        if self.scheme.symmetric:
            return work.clamp_(-symmetric_zero(self.scheme), top - symmetric_zero(self.scheme))
        # two passes beat one clamp_, which does not vectorise a bound for each group
        torch.maximum(work, -zero.unsqueeze(2), out=work)
        return torch.minimum(work, (top - zero).unsqueeze(2), out=work)


def has_minimum(scheme: Scheme) -> bool:
    """Whether groups of the scheme have a float minimum, the value of code 0, and no integer zero."""
    return scheme.kind == "ggml" and not scheme.symmetric


def above_minimum(weight: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """`weight` (O, I) less the minimum of each group: what codes times scales have to be, zero being code 0."""
    assert grid.minimum is not None
    return weight - per_column(grid.minimum, weight.shape[1], scheme)


def search_minima(weight: Tensor, importance: Tensor | None, scheme: Scheme, steps: int, shrink: float) -> Grid:
    """Scale and minimum of each group for the least sum of importance * (w - q)^2, both float16 numbers.

    The group's range is shrunk about its middle by `steps` factors from 1 to `shrink`; then, with the codes of the
    best, scale and minimum are fitted together by least squares, coded again, and kept where that is better. steps 1:
    the range as it is.
    """
    groups = to_groups(weight, scheme)
    share = None if importance is None else _shares(importance, scheme)
    rows = max(1, _CHUNK // (groups.shape[1] * groups.shape[2]))
    found = [
        _minima_rows(chunk, share, scheme, torch.linspace(1.0, shrink, steps)) for chunk in torch.split(groups, rows)
    ]
    return Grid(torch.cat([f[0] for f in found]), None, torch.cat([f[1] for f in found]))


def _minima_rows(groups: Tensor, share: Tensor | None, scheme: Scheme, factors: Tensor) -> tuple[Tensor, Tensor]:
    top = 2**scheme.bits - 1
    middle, half = (groups.amax(2) + groups.amin(2)) / 2, (groups.amax(2) - groups.amin(2)) / 2
    best = None
    for factor in factors.tolist():
        candidate = _fit_error(groups, share, scheme, 2 * half * factor / top, middle - half * factor)
        best = candidate if best is None else _better(best, candidate)
    assert best is not None
    for _ in range(_REFITS if len(factors) > 1 else 0):
        best = _better(best, _fit_error(groups, share, scheme, *_least_squares(groups, share, scheme, best)))
    return best[1], best[2]


def _fit_error(
    groups: Tensor, share: Tensor | None, scheme: Scheme, scale: Tensor, minimum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(error, scale, minimum) of a candidate, as stored."""
    scale = round_to_storage(scale, scheme.scale_dtype, scheme.scale_bits)
    minimum = minimum.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()
    error = (_codes_above(groups, scale, minimum, scheme) * scale.unsqueeze(2) + minimum.unsqueeze(2) - groups).square()
    return (error if share is None else error * share).sum(2), scale, minimum


def _codes_above(groups: Tensor, scale: Tensor, minimum: Tensor, scheme: Scheme) -> Tensor:
    return ((groups - minimum.unsqueeze(2)) / scale.unsqueeze(2)).round_().clamp_(0, 2**scheme.bits - 1)


def _least_squares(
    groups: Tensor, share: Tensor | None, scheme: Scheme, best: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Scale and minimum that fit the codes of `best` best; its own where the codes are all one."""
    codes = _codes_above(groups, best[1], best[2], scheme)
    weights = torch.ones_like(groups[:1]) if share is None else share
    total = weights.sum(-1)
    mean_code, mean = (weights * codes).sum(2) / total, (weights * groups).sum(2) / total
    offset = codes - mean_code.unsqueeze(2)
    curve = (weights * offset.square()).sum(2)
    slope = (weights * offset * (groups - mean.unsqueeze(2))).sum(2)
    scale = torch.where((curve > 0) & (slope > 0), slope / curve, best[1])
    return scale, torch.where((curve > 0) & (slope > 0), mean - scale * mean_code, best[2])
