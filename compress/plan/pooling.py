"""What few texts say of a layer, weighed against what the layer's error and its other schemes say.

A layer's expected loss at one scheme is a mean over texts of squares, and of 24 texts such a mean is off by a third. A
plan picks what looks cheap, and so the luckiest of these errors: on the demo model at 3 bits a plan expected to lose
.318 lost .484 by draws, one by pooled scores .461 (.366 expected). But the loss of a layer at one scheme is almost its
loss at another times the ratio of the layer's output errors, which are known well. So

    log loss(layer, scheme) = log error(layer, scheme) + a(layer) + c(role, scheme) + rest,

a and c by least squares. How much of the rest is noise is seen by halves of the texts; the remainder belongs to the
layer. Each score is then the mean of the two readings, weighed by their variances (empirical Bayes; Efron and Morris
1975, JASA 70, 311), of losses and not of their logarithms: means of logarithms are too low by half the variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from compress.core.numerics.bootstrap import Array
from compress.core.types import Sensitivity

SPLITS = 8
"""Random ways to halve the texts, by which noise is seen."""
LEAST = 4
"""Texts, below which halves say nothing."""
ROUNDS = 30
"""Of alternating means; the fit is one of two factors."""


def pooled(
    found: Sequence[Sensitivity], roles: Mapping[str, str], sums: Array, counts: Array, seed: int = 0
) -> list[Sensitivity]:
    """`found` with values, and the ends of their intervals, drawn toward what other schemes and errors say.

    roles: layer -> what it is; layers of one role err alike. sums: (D, rows) loss of each text in the rows of `found`.
    counts: (D,) answers of each text. Rows without a loss or an error stay as they are, and so do all where there are
    too few texts, or too few rows to tell layers from noise.
    """
    rows = [n for n, one in enumerate(found) if one.value > 0 and one.error > 0]
    if len(counts) < LEAST or not rows:
        return list(found)
    layers = _numbers([found[n].layer for n in rows])
    kinds = _numbers([f"{roles.get(found[n].layer, '')} {found[n].scheme}" for n in rows])
    free = len(rows) - len(set(layers)) - len(set(kinds))
    noise = _noise(sums[:, rows], counts, seed)
    if free <= 0 or noise <= 0:
        return list(found)
    own = np.log([found[n].value / found[n].error for n in rows])
    fitted = _fitted(own, layers, kinds)
    rest = float(np.square(own - fitted).sum()) / free
    real = max(0.0, rest - noise)
    share = real / (real + noise)
    left = share * noise  # variance of a loss that is known by both
    lift = math.exp((noise + left) / 2)
    narrow = math.sqrt(share + (1 - share) * (1 - free / len(rows)))
    made = list(found)
    for n, mine, shared in zip(rows, own, fitted, strict=True):
        one = found[n]
        value = one.error * math.exp(shared + share * (mine - shared)) * lift
        low, high = ((end / one.value) ** narrow for end in (one.low, one.high))
        made[n] = replace(one, value=value, low=value * low, high=value * high)
    return made


def scores(found: Sequence[Sensitivity], roles: Mapping[str, str], sums: Array, counts: Array) -> Array:
    """The pooled value of each row of `found` by other texts: sums (D, rows), counts (D,)."""
    values = sums.sum(0) / counts.sum()
    raw = [replace(one, value=float(v), low=float(v), high=float(v)) for one, v in zip(found, values, strict=True)]
    return np.array([one.value for one in pooled(raw, roles, sums, counts)])


def _numbers(names: Sequence[str]) -> Array:
    """Names as numbers from 0."""
    known = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names])


def _fitted(values: Array, one: Array, other: Array) -> Array:
    """The least squares fit of `values` by a number for each of `one` and for each of `other`.

    The latter are drawn to 0 as if one more row had said so: a kind that few layers have is no kind.
    """
    a, b = np.zeros(one.max() + 1), np.zeros(other.max() + 1)
    for _ in range(ROUNDS):
        a = _mean(values - b[other], one, 0)
        b = _mean(values - a[one], other, 1)
    found: Array = a[one] + b[other]
    return found


def _mean(values: Array, groups: Array, more: int) -> Array:
    """Mean of each group; more: rows of 0 that each has beside its own."""
    found: Array = np.bincount(groups, values) / (np.bincount(groups) + more)
    return found


def _noise(sums: Array, counts: Array, seed: int) -> float:
    """Variance of the logarithm of a mean over the texts, beside what all rows have in common (hard texts)."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(SPLITS):
        order = torch.randperm(len(counts), generator=draw).numpy()
        one, other = (sums[part].sum(0) / counts[part].sum() for part in np.array_split(order, 2))
        both = (one > 0) & (other > 0)
        if both.sum() > 1:
            found.append(float(np.var(np.log(one[both] / other[both]))))
    return float(np.mean(found)) / 4 if found else 0.0
