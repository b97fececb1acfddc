"""What is left of layers' costs in a built model: of a trial build, each role's part in its loss, and each layer's.

Costs are asked of one layer at a time, whose codes are solved as if nothing else were off. In a built model the layers
that write to the residual stream make good what others lost, and some loses can be made good better than others: of
what value projections lose, which attention's output reads as it is, a tenth was left at 4 bits of SmolLM2-135M, of the
others' four fifths. What early layers lose is made good by more layers after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from compress.core.types import Sensitivity

SPREAD = 0.5
"""How far roles are from all of them, of what is left of these: 95 % of roles are within twice as much."""
LEAST = 0.05
"""Of what is left of all roles: less is not believed."""
FURTHEST = 4.0
"""A layer has so many times the share of its role at most, or that part of it."""


@dataclass(frozen=True)
class Shares:
    """What counts of a cost. by_role: of layers in blocks; rest: of others; own: layer -> its share over its role's."""

    by_role: Mapping[str, float]
    rest: float
    own: Mapping[str, float] = field(default_factory=dict)

    def of(self, found: Sequence[Sensitivity], roles: Mapping[str, str]) -> list[Sensitivity]:
        """Costs as they are in a built model. roles: layer -> role, of layers in blocks."""
        return [
            replace(one, value=one.value * share, low=one.low * share, high=one.high * share)
            for one, share in zip(found, self.factors(found, roles), strict=True)
        ]

    def factors(self, found: Sequence[Sensitivity], roles: Mapping[str, str]) -> list[float]:
        """What counts of each of the costs."""
        return [self.by_role.get(roles.get(one.layer, ""), self.rest) * self.own.get(one.layer, 1.0) for one in found]


def shares(
    parts: Mapping[str, Sequence[float]], costs: Mapping[str, float], roles: Mapping[str, str],
    counts: Sequence[int], loss: float,
) -> Shares:  # fmt: skip
    """Shares that make the costs of the trial add up to its loss.

    parts: layer -> its part in the loss of each text (T,), all answers together; costs: of the same layers, at the
    schemes of the trial, an answer; counts: answers of each text (T,); loss: of the trial, an answer.
    Each role's quotient is drawn towards that of all layers by how uncertain it is over the texts, and each layer's
    towards that of its role, by that and by how far those of a role are apart beyond it.
    """
    named = sorted({roles[name] for name in parts})
    total, cost = np.zeros((len(named), len(counts))), np.zeros(len(named))
    for name, values in parts.items():
        total[named.index(roles[name])] += values
        cost[named.index(roles[name])] += costs[name]
    answers = np.array(counts, np.float64)
    known = cost > 0
    overall = float(total[known].sum() / answers.sum() / max(cost[known].sum(), 1e-300))
    if not loss > 0 or not overall > 0:  # nothing to be told from it
        return Shares({}, 1.0)
    found = {}
    for row in np.flatnonzero(known):
        quotient = total[row].sum() / answers.sum() / cost[row]
        noise = _noise(total[row], answers) / cost[row]
        trust = (SPREAD * overall) ** 2 / ((SPREAD * overall) ** 2 + noise**2)
        found[named[row]] = max(overall + trust * (quotient - overall), LEAST * overall)
    own: dict[str, float] = {}
    for role, share in found.items():
        own |= _own([name for name in parts if roles[name] == role], parts, costs, answers, share)
    expected = sum(found[roles[name]] * own[name] * costs[name] for name in own)
    scale = loss / expected
    return Shares({name: float(share * scale) for name, share in found.items()}, float(overall * scale), own)


def _own(
    names: Sequence[str], parts: Mapping[str, Sequence[float]], costs: Mapping[str, float], answers: np.ndarray,
    share: float,
) -> dict[str, float]:  # fmt: skip
    """Layer -> its quotient over its role's share, drawn to 1; layers that cost nothing have 1."""
    asked = [name for name in names if costs[name] > 0]
    quotients = np.array([np.sum(parts[name]) / answers.sum() / costs[name] / share for name in asked])
    noises = np.array([_noise(np.asarray(parts[name]), answers) / costs[name] / share for name in asked])
    found = dict.fromkeys(names, 1.0)
    if len(asked) < 2 or not np.isfinite(noises).all():
        return found
    weights = 1 / np.maximum(noises**2, np.median(noises**2) + 1e-300)  # no layer decides alone how far they are apart
    apart = max(float((weights * ((quotients - 1) ** 2 - noises**2)).sum() / weights.sum()), 0.0)
    trust = apart / np.maximum(apart + noises**2, 1e-300)
    drawn = np.clip(1 + trust * (quotients - 1), 1 / FURTHEST, FURTHEST)
    return found | dict(zip(asked, drawn.tolist(), strict=True))


def _noise(values: np.ndarray, answers: np.ndarray) -> float:
    """The standard error of sum(values) / sum(answers) over texts, by the delta method; both (T,)."""
    count = len(values)
    if count < 2:
        return float("inf")
    mean = values.sum() / answers.sum()
    spread = ((values - mean * answers) ** 2).sum() * count / (count - 1)
    return float(np.sqrt(spread) / answers.sum())
