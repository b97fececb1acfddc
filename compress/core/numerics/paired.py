"""How much worse a second model may be on rows that nobody has seen: a bound from rows that both have answered.

The bound is one-sided, by a bootstrap over rows in which one row more takes part, on which the first model is as good
as on average and the second is wrong. It is drawn as often as a Poisson variable of mean 1, so that without a single
difference on n rows the bound is that of the rule of three (at 95 %: 3 / n), and with k lost rows it is Poisson's of
k + 1: what Clopper and Pearson's exact bound is, within a row. Without that row a bootstrap of no difference is 0.
Source: Hanley and Lippman-Hand 1983, JAMA 249; Hesterberg 2015, The American Statistician 69(4), section 3.4 (tails of
few rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compress.core.numerics.bootstrap import RESAMPLE_BATCH, RESAMPLES, Array, t_quantile


@dataclass(frozen=True)
class Pair:
    """Sums of two models over the same rows. first, second: (D, k) by row. drop: (R, k), (R, k) totals of first and
    second -> (R,), how much worse the second is, above 0 when it is. wrong: totals (1, k) -> the same if every answer
    were wrong; None where there is no such thing, as of a loss that has no highest value."""

    first: Array
    second: Array
    drop: Callable[[Array, Array], Array]
    wrong: Callable[[Array], Array] | None = None

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.first)

    def value(self) -> float:
        """The drop on these rows."""
        return float(self.drop(self.first.sum(0, keepdims=True), self.second.sum(0, keepdims=True))[0])


def upper(pair: Pair, alpha: float, seed: int) -> float:
    """What the drop is below on unseen rows, at a confidence of 1 - alpha; inf for fewer than two rows."""
    if pair.rows < 2:
        return math.inf
    first, second = pair.first, pair.second
    if pair.wrong is not None:
        mean = first.mean(0, keepdims=True)
        first, second = np.concatenate([first, mean]), np.concatenate([second, pair.wrong(mean)])
    rows, width = first.shape
    sums = np.concatenate([first, second], 1)
    draw = np.random.default_rng(seed)
    weights = np.full(rows, 1 / rows)
    drawn = []
    for _ in range(RESAMPLES // RESAMPLE_BATCH):
        totals = draw.multinomial(rows, weights, size=RESAMPLE_BATCH).astype(np.float64) @ sums
        drawn.append(pair.drop(totals[:, :width], totals[:, width:]))
    # as wide as Student's t is for few rows
    wider = math.sqrt(rows / (rows - 1)) * t_quantile(rows - 1) / NormalDist().inv_cdf(0.975)
    tail = NormalDist().cdf(wider * NormalDist().inv_cdf(1 - alpha))
    return float(np.quantile(np.concatenate(drawn), tail))


def rows_needed(pair: Pair, bound: float, limit: float) -> int | None:
    """About how many rows would hold the drop below `limit`, if it is what it was on these; None: it is above."""
    value = pair.value()
    if value >= limit:
        return None
    return max(pair.rows + 1, math.ceil(pair.rows * ((bound - value) / (limit - value)) ** 2))


def fewest_rows(alpha: float, limit: float) -> int:
    """Rows below which not even equal answers show that a share drops by less than `limit`."""
    return math.ceil(-math.log(alpha) / limit)
