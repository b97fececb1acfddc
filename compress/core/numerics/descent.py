"""Coordinate descent: scales and codes improved in turn, each step to its exact optimum.

GPTQ decides a column before it has seen the columns after it. Here every column, and every group's scale, is
decided again with all others as they stand; tr(E H E^T) never rises (beyond float32 rounding), E = W - Q.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.core.numerics.affine import (
    dequantize,
    group_size_of,
    per_column,
    round_to_storage,
    symmetric_zero,
)
from compress.core.numerics.codebook import nearest, snapped, values_of
from compress.core.types import QTensor, Scheme

_COLUMNS = 256


def descend(weight: Tensor, start: QTensor, hessian: Tensor, rounds: int) -> QTensor:
    """`start` after `rounds` rounds: each group's scale is refitted, then its codes, column by column.

    weight: (O, I) float32; hessian: (I, I) float32, symmetric, its diagonal positive. Nothing is modified;
    zeros stay as they are; rows are independent. A refitted scale is rounded to its storage dtype first and kept
    only if it lowers the error. Cost: 2 * O * I^2 float operations a round; 2 temporaries of (O, I).
    """
    if rounds < 1:
        return start
    cols, scheme = weight.shape[1], start.scheme
    zero = _float_zero(start)
    state = _State(
        error=(weight - dequantize(start)).t().contiguous(),
        steps=_steps(start, zero).t().contiguous(),
        scale=start.scale.t().contiguous(),
        low=-zero.t(),
        high=2**scheme.bits - 1 - zero.t(),
        hessian=hessian,
        scheme=scheme,
    )
    size = group_size_of(scheme, cols)
    for _ in range(rounds):
        for group, first in enumerate(range(0, cols, size)):
            last = min(first + size, cols)
            pull = state.hessian[first:last] @ state.error
            _refit(state, group, first, pull)
            for at in range(first, last, _COLUMNS):
                end = min(at + _COLUMNS, last)
                # the first columns of a group know what pulls at them already, later ones saw others move
                seen = pull[: end - at] if at == first else state.hessian[at:end] @ state.error
                _recode(state, group, at, seen)
    if scheme.kind == "codebook":
        codes = nearest(state.steps.t().contiguous(), scheme)
    else:
        codes = (state.steps.t() + per_column(zero, cols, scheme)).to(torch.uint8).contiguous()
    return replace(start, codes=codes, scale=state.scale.t().contiguous())


def _steps(q: QTensor, zero: Tensor) -> Tensor:
    """What scales are multiplied with: codes less zero, or the levels of a codebook."""
    if q.scheme.kind == "codebook":
        return values_of(q.codes, q.scheme)
    return q.codes.to(torch.float32) - per_column(zero, q.codes.shape[1], q.scheme)


@dataclass(frozen=True)
class _State:
    """Transposed: error and steps (codes - zero) are (I, O); scale, low and high (G, O); all float32."""

    error: Tensor
    steps: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    hessian: Tensor
    scheme: Scheme


def _float_zero(q: QTensor) -> Tensor:
    if q.minimum is not None:
        return torch.zeros_like(q.scale)
    if q.zero is None:
        return torch.full_like(q.scale, symmetric_zero(q.scheme))
    return q.zero.to(torch.float32)


def _refit(state: _State, group: int, first: int, pull: Tensor) -> None:
    """Move the group's scale to the least-squares optimum of its codes; pull (g, O) = H[group] E follows."""
    last = first + pull.shape[0]
    steps, scale = state.steps[first:last], state.scale[group]
    curved = state.hessian[first:last, first:last] @ steps
    slope = (pull * steps).sum(0)
    curve = (curved * steps).sum(0)
    best = scale + slope / curve
    wanted = torch.where(best * scale > 0, best, scale)
    stored = round_to_storage(wanted, state.scheme.scale_dtype, state.scheme.scale_bits)
    move = stored - scale
    # nan (a group whose codes are all 0 has no curve) compares false: the scale stays
    better = move * (move * curve - 2 * slope) < 0
    move = torch.where(better, move, 0.0)
    state.scale[group] = torch.where(better, stored, scale)
    state.error[first:last].addcmul_(steps, move, value=-1)
    pull.addcmul_(curved, move, value=-1)


def _recode(state: _State, group: int, first: int, pull: Tensor) -> None:
    """Decide the columns from `first` again, one after the other; pull (c, O) = H[columns] E is used up."""
    last = first + pull.shape[0]
    part = state.hessian[first:last, first:last]
    diagonal = part.diagonal().clone()
    part = part / diagonal
    pull /= diagonal.unsqueeze(1)
    scale, low, high = state.scale[group], state.low[group], state.high[group]
    table = state.scheme.kind == "codebook"
    for j in range(last - first):
        steps = state.steps[first + j]
        wanted = torch.addcdiv(steps, pull[j], scale)
        decided = snapped(wanted, state.scheme) if table else wanted.round_().clamp_(low, high)
        change = steps.sub_(decided).mul_(scale)
        state.error[first + j].add_(change)
        pull[j + 1 :].addr_(part[j, j + 1 :], change)
        steps.copy_(decided)
