"""Would more calibration text change the plan? Answered by plans that random halves of the texts would have led to.

Each text has its own figure for every layer and scheme, so that scores, and what is planned by them, can be made anew
from any part of the texts. Scores are the true ones plus noise of variance S / n, n texts, and the plan made by them
loses more than the best plan by a quadratic form of that noise: R(n) = c / n. Scores of half the texts are those of all
plus noise of the same variance S / n, so that what a half's plan loses more than the plan of all, both judged by all
texts, is R(n); m more texts would save R(n) - R(n + m) = R(n) m / (n + m). How many layers differ goes with the noise,
not with its square: with sqrt(m / (n + m)). The plan of n other texts loses 2 R(n) more, judged by these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from compress.core.numerics.bootstrap import Array
from compress.core.types import Sensitivity, Structure
from compress.plan.knapsack import Choice, solve
from compress.plan.mixed import groups_of

SPLITS = 4  # random ways to halve the texts, two plans each
LEAST = 4  # texts, below which halves say nothing
CHANGES = 0.02  # of the expected loss: what more text would have to save
MEAN_BITS = (3.0, 4.0)  # of plans that nobody asked for

Planner = Callable[[Sequence[Sensitivity]], Mapping[str, str]]
"""Costs -> the scheme of each layer that is chosen for."""

Scores = Callable[[Array, Array], Array]
"""Divergence of some texts (D, rows) and their answers (D,) -> the score of each row."""


def means(sums: Array, counts: Array) -> Array:
    """Divergence an answer."""
    found: Array = sums.sum(0) / counts.sum()
    return found


@dataclass(frozen=True)
class Stability:
    """spearman: of the scores of two halves, scheme by scheme. differ: how many of `layers` have another scheme by half
    the texts. regret: how much more the plan of half the texts loses, as a share, by all texts. Means over halves; of
    several plans the one of most regret.
    """

    spearman: float
    differ: float
    layers: int
    regret: float

    def saved(self, texts: int, more: int) -> float:
        """The share of the expected loss that `more` texts beside `texts` would save."""
        return self.regret * more / (texts + more)

    def moved(self, texts: int, more: int) -> float:
        """How many layers would have another scheme with `more` texts beside `texts`."""
        return self.differ * math.sqrt(more / (texts + more))

    def enough(self, texts: int, more: int) -> int:
        """How many texts it takes, instead of `texts`, until `more` beside them would save less than CHANGES."""
        needed = math.sqrt(more**2 + 4 * more * self.regret * texts / CHANGES) / 2 - more / 2
        return max(texts, math.ceil(needed))


def stability(
    found: Sequence[Sensitivity], sums: Array, counts: Array, planners: Sequence[Planner], seed: int,
    scores: Scores = means,
) -> Stability | None:  # fmt: skip
    """How far scores and plans hang on the texts. sums: (D, rows) divergence of each text in the rows of `found`;
    counts: (D,) answers; scores: how rows are scored by them. None for fewer than LEAST texts."""
    if len(counts) < LEAST:
        return None
    whole = scores(sums, counts)
    halves = _halved(sums, counts, seed, scores)
    agree = [_spearman(found, one, other) for one, other in halves]
    values = [value for pair in halves for value in pair]
    judged = [_regret(found, whole, values, planner) for planner in planners]
    differ, layers, regret = max(judged, key=lambda one: one[2], default=(0.0, 0, 0.0))
    return Stability(float(np.mean(agree)), differ, layers, regret)


def _halved(sums: Array, counts: Array, seed: int, scores: Scores) -> list[tuple[Array, Array]]:
    """Scores (rows,) of both halves of SPLITS random divisions."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(SPLITS):
        order = torch.randperm(len(counts), generator=draw).numpy()
        parts = np.array_split(order, 2)
        one, other = (scores(sums[part], counts[part]) for part in parts)
        found.append((one, other))
    return found


def _spearman(found: Sequence[Sensitivity], one: Array, other: Array) -> float:
    """The mean over schemes of the rank correlation of layers' scores; 1 where a scheme has no ranks."""
    from scipy.stats import spearmanr

    schemes = np.array([row.scheme for row in found])
    ranks = []
    for scheme in np.unique(schemes):
        a, b = one[schemes == scheme], other[schemes == scheme]
        if len(np.unique(a)) > 1 and len(np.unique(b)) > 1:
            ranks.append(float(spearmanr(a, b)[0]))
    return float(np.mean(ranks)) if ranks else 1.0


def _regret(
    found: Sequence[Sensitivity], whole: Array, halves: Sequence[Array], planner: Planner
) -> tuple[float, int, float]:
    """(layers that differ, of how many, share of the loss that is lost) of plans by `halves`, beside that by all."""

    def planned(values: Array) -> Mapping[str, str]:
        costs = [replace(s, value=float(v), low=float(v), high=float(v)) for s, v in zip(found, values, strict=True)]
        return planner(costs)

    cost = {(s.layer, s.scheme): float(v) for s, v in zip(found, whole, strict=True)}

    def loss(plan: Mapping[str, str]) -> float:
        return sum(cost.get((layer, scheme), 0.0) for layer, scheme in plan.items())  # kept: nothing

    best = planned(whole)
    others = [planned(values) for values in halves]
    least = loss(best)
    differ = [sum(plan[layer] != scheme for layer, scheme in best.items()) for plan in others]
    regret = [(loss(plan) - least) / least if least > 0 else 0.0 for plan in others]
    return float(np.mean(differ)), len(best), max(0.0, float(np.mean(regret)))


def at_mean_bits(bits: float, structure: Structure, found: Sequence[Sensitivity]) -> Planner | None:
    """A planner of least loss at `bits` a weight of the blocks; None where there is no choice to make at that size."""
    sizes = {layer.name: layer.shape[0] * layer.shape[1] for layer in structure.layers}
    room = bits * sum(sizes.values())
    taken = {(row.layer, row.scheme): row.bits * sizes[row.layer] for row in found if row.layer in sizes}
    groups = [[layer.name for layer in layers] for layers in groups_of(structure).values()]
    known: dict[str, list[str]] = {}
    for layer, scheme in taken:
        known.setdefault(layer, []).append(scheme)
    ways = [[s for s in known.get(names[0], []) if all((n, s) in taken for n in names)] for names in groups]
    if not all(ways):
        return None
    size = [[sum(taken[name, s] for name in names) for s in way] for names, way in zip(groups, ways, strict=True)]
    if not sum(map(min, size)) < room < sum(map(max, size)):
        return None

    def plan(costs: Sequence[Sensitivity]) -> Mapping[str, str]:
        value = {(row.layer, row.scheme): row.value for row in costs}
        items = [
            [
                Choice(s, sum(value[name, s] for name in names), {"bits": bits})
                for s, bits in zip(way, taking, strict=True)
            ]
            for names, way, taking in zip(groups, ways, size, strict=True)
        ]
        numbers = solve(items, {"bits": room}) or [0] * len(items)  # out of time: the smallest, for every half
        return {
            name: way[number] for names, way, number in zip(groups, ways, numbers, strict=True) for name in names
        }  # fmt: skip

    return plan
