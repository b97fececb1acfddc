"""How much of an input's range a static int8 grid covers: four ways to choose the ends from counted values.

Values come as a table (value, how often), see `ValueCounts` of compress.core.types; every function is pure.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.core.numerics.activation import fake_quantize, static_grid
from compress.core.types import ActScheme, ValueCounts

Ends = tuple[float, float]
PERCENTILE = 0.9999  # of values inside; what calibrators of servers use
SHRINK = torch.linspace(1.0, 0.1, 91)  # shares of the range that `mse` tries
BINS, LEVELS = 2048, 128  # of the histogram of |x|, and of a grid's half


def minmax(found: ValueCounts, scheme: ActScheme) -> Ends:
    """The smallest and the largest value."""
    del scheme
    return found.low, found.high


def percentile(found: ValueCounts, scheme: ActScheme) -> Ends:
    """Ends that PERCENTILE of the values lie within: of |x| for symmetric schemes, else with equal tails."""
    values, counts = found.table()
    if scheme.symmetric:
        end = min(_quantile(values.abs(), counts, PERCENTILE), max(-found.low, found.high))
        return -end, end
    tail = (1 - PERCENTILE) / 2
    return (
        max(_quantile(values, counts, tail), found.low),
        min(_quantile(values, counts, 1 - tail), found.high),
    )


def _quantile(values: Tensor, counts: Tensor, share: float) -> float:
    order = values.argsort()
    reached = counts[order].cumsum(0)
    at = int(torch.searchsorted(reached, share * reached[-1]))
    return float(values[order][min(at, len(order) - 1)])


def mse(found: ValueCounts, scheme: ActScheme) -> Ends:
    """Ends of least squared error: both shrunk together, then the lower and the upper one on its own."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    both = _least(found, scheme, [(low * s, high * s) for s in SHRINK.tolist()])
    if scheme.symmetric:
        return both
    upper = _least(found, scheme, [(both[0], high * s) for s in SHRINK.tolist()] + [both])
    return _least(found, scheme, [(low * s, upper[1]) for s in SHRINK.tolist()] + [upper])


def _least(found: ValueCounts, scheme: ActScheme, candidates: list[Ends]) -> Ends:
    values, counts = found.table()

    def error(ends: Ends) -> float:
        off = fake_quantize(values, scheme, static_grid(*ends, scheme)) - values
        return float((off.double().square() * counts).sum())

    return min(candidates, key=error)


def entropy(found: ValueCounts, scheme: ActScheme) -> Ends:
    """The threshold on |x| whose clipped distribution loses least (KL) when its histogram is cut to LEVELS steps.

    Source: Migacz 2017, "8-bit inference with TensorRT". Asymmetric schemes take the threshold on both sides, as far
    as there are values.
    """
    del scheme
    values, counts = found.table()
    top = max(-found.low, found.high)
    if top == 0:
        return 0.0, 0.0
    at = (values.abs() / top * BINS).long().clamp(max=BINS - 1)
    histogram = torch.zeros(BINS, dtype=torch.float64).index_add_(0, at, counts.double())
    kept = min(range(LEVELS, BINS + 1, 8), key=lambda n: _divergence(histogram, n))
    end = top * kept / BINS
    return max(found.low, -end), min(found.high, end)


def _divergence(histogram: Tensor, kept: int) -> float:
    """KL of the first `kept` bins, the rest added to the last, from the same averaged over LEVELS steps."""
    inside = histogram[:kept]
    p = inside.clone()
    p[-1] += histogram[kept:].sum()
    step = torch.div(torch.arange(kept) * LEVELS, kept, rounding_mode="floor")
    there = (inside > 0).double()
    sums = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, step, inside)
    cells = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, step, there)
    q = (sums / cells.clamp(min=1))[step] * there
    if float(q.sum()) == 0:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    # mass clipped into a bin that held none has no finite KL: the smallest share stands in for it
    q = torch.where((p > 0) & (q == 0), torch.finfo(torch.float32).tiny, q)
    at = p > 0
    return float((p[at] * (p[at] / q[at]).log()).sum())


OBSERVERS: dict[str, Callable[[ValueCounts, ActScheme], Ends]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
