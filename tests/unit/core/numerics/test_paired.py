"""The bound of a drop against exact binomial bounds, and whether it holds as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from compress.core.numerics.paired import Pair, fewest_rows, rows_needed, upper


def accuracy(first: list[int], second: list[int]) -> Pair:
    """Two models' right answers."""
    a, b = (np.array([[float(right), 1.0] for right in side]) for side in (first, second))
    return Pair(a, b, lambda x, y: x[:, 0] / x[:, 1] - y[:, 0] / y[:, 1], lambda totals: totals * (0, 1))


@pytest.mark.parametrize("rows", [100, 444, 2000])
@pytest.mark.parametrize("lost", [0, 1, 3, 10])
def test_lost_rows_alone_give_the_exact_bound_of_a_share(rows: int, lost: int) -> None:
    pair = accuracy([1] * rows, [0] * lost + [1] * (rows - lost))
    exact = float(beta.ppf(0.95, lost + 1, rows - lost))
    assert pair.value() == pytest.approx(lost / rows)
    assert abs(upper(pair, 0.05, 0) - exact) < 1.3 / rows + 0.06 * exact


def test_the_bound_holds_as_often_as_it_says_and_is_not_idle() -> None:
    draw = np.random.default_rng(0)
    rows, kept, bounds = 300, 0, []
    for trial in range(200):
        # 1.5 % of answers lost, 1 % won: a drop of half a point
        kind = draw.choice(3, size=rows, p=[0.015, 0.010, 0.975])
        pair = accuracy([int(k != 1) for k in kind], [int(k != 0) for k in kind])
        bounds.append(upper(pair, 0.05, trial))
        kept += bounds[-1] >= 0.005
    assert kept >= 0.92 * 200
    assert np.median(bounds) < 0.03


def test_no_difference_on_text_is_no_drop_and_few_documents_widen() -> None:
    tokens = np.full((40, 1), 100.0)
    nats = np.random.default_rng(0).normal(300, 20, (40, 1))

    def pair(count: int, worse: float) -> Pair:
        step = np.random.default_rng(1).normal(worse, 0.5, (40, 1))
        first, second = np.concatenate([tokens, nats], 1)[:count], np.concatenate([tokens, nats + step], 1)[:count]
        return Pair(first, second, lambda a, b: np.exp((b[:, 1] - a[:, 1]) / a[:, 0]) - 1)

    found = pair(40, 1.0)
    assert found.value() == pytest.approx(math.exp(0.01) - 1, rel=0.3)
    assert found.value() < upper(found, 0.05, 0) < found.value() + 3 * 0.5 / 100 / math.sqrt(40)
    few = pair(4, 1.0)
    assert upper(few, 0.05, 0) - few.value() > 2 * (upper(found, 0.05, 0) - found.value())
    assert upper(pair(1, 1.0), 0.05, 0) == math.inf


def test_how_many_rows_are_needed() -> None:
    assert fewest_rows(0.05, 0.01) == 300
    pair = accuracy([1] * 200, [1] * 200)
    bound = upper(pair, 0.05, 0)
    needed = rows_needed(pair, bound, 0.01)
    assert needed is not None
    assert upper(accuracy([1] * needed, [1] * needed), 0.05, 0) <= 0.0101
    assert rows_needed(accuracy([1] * 100, [0] * 5 + [1] * 95), 0.1, 0.05) is None
