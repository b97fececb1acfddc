"""GPTQ: second-order rounding, one column at a time (Frantar et al. 2022, arXiv:2210.17323, algorithm 1).

Differs from the paper, in result: group scales are fixed before the columns are solved ("static groups"), so
the column order by descending diag(H) does not scatter a group's members; and they are searched for the least
diag(H)-weighted squared error, on the scales as stored. `act_order=False, scales="minmax"` is the paper's.

Differs from the paper, in form only: with H = R R^T, R upper triangular, the loss of E = W - Q is |E R|^2. Its
column j depends on E[:, :j] and E[:, j] alone, so the best value of column j given the columns before it is
w_j + E[:, :j] R[:j, j] / R[j, j]. That is the paper's update without its inverse and second Cholesky: one
factorisation, in a form that stays accurate when H is nearly singular.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.core.errors import HessianError, RecipeError
from compress.core.numerics.affine import group_size_of, require_codes, symmetric_zero
from compress.core.numerics.grid import Grid, Search, minmax_grid, round_to_nearest, search_grid
from compress.core.types import LayerMethod, LayerStats, QTensor, Scheme

_MOST_DAMP = 10.0


@dataclass(frozen=True)
class Options:
    """Settings of GPTQ.

    damp: fraction of mean(diag H) added to the diagonal. act_order: solve columns by descending diag(H).
    scales: what a group's scale minimises: `hessian` the diag(H)-weighted squared error, `mse` the plain one,
    `minmax` nothing. column_block: columns updated together; changes speed, not the method.
    steps, shrink: how many scale factors are tried, from 1 down to what.
    """

    damp: float = 0.01
    act_order: bool = True
    scales: Literal["hessian", "mse", "minmax"] = "hessian"
    column_block: int = 128
    steps: int = 40
    shrink: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.damp <= _MOST_DAMP:
            raise RecipeError(
                f"damp {self.damp} is out of range; use 0 to {_MOST_DAMP:g}, 0.01 is the default"
            )
        if self.scales not in ("hessian", "mse", "minmax"):
            raise RecipeError(f"scales {self.scales!r} is unknown; use hessian, mse or minmax")
        if self.column_block < 1:
            raise RecipeError(
                f"column_block {self.column_block} is impossible; use 1 or more, 128 is the default"
            )
        if self.steps < 1:
            raise RecipeError(
                f"steps {self.steps} tries no scale; use 1 (min-max) or more, 40 is the default"
            )
        if not 0 < self.shrink <= 1:
            raise RecipeError(f"shrink {self.shrink} is out of range; use a factor above 0 and up to 1")


def quantize(
    weight: Tensor, stats: LayerStats | None, scheme: Scheme, options: Options
) -> tuple[QTensor, str | None]:
    """Codes that minimise tr((W - Q) H (W - Q)^T) greedily, column by column.

    weight: (O, I) float32, not modified. stats.hessian: (I, I) float32, not modified. Rows are independent.
    Returns the quantized weight, and a sentence when it could not be solved as planned (no tokens: rounded to
    nearest; few tokens; more damping than asked), else None.
    Raises HessianError if H is not finite or stays indefinite after damping ten times its mean diagonal,
    ModelError for a weight that is not finite, RecipeError for a scheme that holds no codes.
    """
    require_codes(weight, scheme)
    if stats is None or stats.n_tokens == 0:
        quantized = round_to_nearest(weight, _grid(weight, None, scheme, options), scheme)
        return quantized, "no calibration token reached this layer: rounded to nearest"
    hessian = stats.hessian
    _require_hessian(hessian, weight.shape[1])
    diagonal = hessian.diagonal()
    order = torch.arange(weight.shape[1], device=weight.device)
    if options.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    factor, note = _factor(hessian, order, options.damp)
    grid = _grid(weight, diagonal, scheme, options)
    codes = _solve(weight, grid, factor, order, scheme, options.column_block)
    return QTensor(codes, grid.scale, grid.zero, scheme), note


def _require_hessian(hessian: Tensor, in_features: int) -> None:
    if hessian.shape != (in_features, in_features):
        raise HessianError(
            f"a hessian of shape {tuple(hessian.shape)} does not fit {in_features} inputs; "
            "collect it from this layer's own input"
        )
    if not bool(torch.isfinite(hessian).all()):
        bad = int((~torch.isfinite(hessian)).sum())
        raise HessianError(
            f"the hessian holds {bad} values that are not finite; calibrate in float32, or look for inf in the activations"
        )


def _grid(weight: Tensor, importance: Tensor | None, scheme: Scheme, options: Options) -> Grid:
    if options.scales == "minmax":
        return minmax_grid(weight, scheme)
    if options.scales == "mse":
        importance = None
    return search_grid(weight, importance, scheme, Search(options.steps, options.shrink))


def _factor(hessian: Tensor, order: Tensor, damp: float) -> tuple[Tensor, str | None]:
    """R / diag(R) (I, I), unit upper triangular, of H in `order`, damped; and a sentence if it took more damping."""
    # the lower factor of the reversed matrix, reversed again, is the upper factor
    backward = order.flip(0)
    base = hessian[backward][:, backward]
    mean = float(base.diagonal().mean())
    base /= mean if mean > 0 else 1.0
    dead = base.diagonal() == 0
    used = damp
    while True:
        damped = base.clone()
        damped.diagonal().add_(used + dead.to(base.dtype))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            break
        if used >= _MOST_DAMP:
            raise HessianError(
                f"the hessian is indefinite even with {used:g} times its mean diagonal added; "
                "collect it from more tokens, in float32"
            )
        used = min(used * 10 if used > 0 else 0.01, _MOST_DAMP)
    note = None if used == damp else f"the hessian needed damping {used:g} instead of {damp:g}"
    upper = lower.flip(0, 1)
    return upper / upper.diagonal(), note


def _solve(weight: Tensor, grid: Grid, factor: Tensor, order: Tensor, scheme: Scheme, block: int) -> Tensor:
    """Codes (O, I) uint8 of `weight` on `grid`; factor (I, I) unit upper triangular, in `order`.

    Works on the transpose, where a column of the weight is contiguous.
    """
    rows, cols = weight.shape
    group = (order // group_size_of(scheme, cols)).tolist()
    scale = grid.scale.t().contiguous()
    zero = (
        torch.full_like(scale, symmetric_zero(scheme)) if grid.zero is None else grid.zero.t().to(scale.dtype)
    )
    low, high = -zero, (2**scheme.bits - 1) - zero
    error = weight.t()[order]  # rows [0, start) hold W - Q, the rest still W
    codes = torch.empty(rows, cols, dtype=torch.uint8, device=weight.device)
    for start in range(0, cols, block):
        end = min(start + block, cols)
        target = torch.addmm(error[start:end], factor[:start, start:end].t(), error[:start])
        steps = torch.empty_like(target)
        for j in range(end - start):
            at = group[start + j]
            step = torch.div(target[j], scale[at], out=steps[j]).round_().clamp_(low[at], high[at])
            error[start + j].addcmul_(step, scale[at], value=-1)
            target[j + 1 :].addr_(factor[start + j, start + j + 1 : end], error[start + j])
        steps += zero[group[start:end]]
        codes[:, order[start:end]] = steps.t().to(torch.uint8)
    return codes


METHOD = LayerMethod(
    quantize=quantize,
    options=Options,
    needs=("hessian",),
    paper="arXiv:2210.17323",
    summary="second-order rounding by descending activation, scales weighted by the hessian's diagonal",
)
