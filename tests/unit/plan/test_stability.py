"""Whether more texts would change a plan, against plans of more texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr

from compress.core.numerics.bootstrap import Array
from compress.core.types import Sensitivity
from compress.plan import stability as steady
from compress.plan.knapsack import Choice, solve

LAYERS, BITS = 40, (2, 3, 4, 8)
ROWS = [Sensitivity(f"layer{n}", f"int{bits}", 0, 0, 0, bits, 0) for n in range(LAYERS) for bits in BITS]
COUNTS = 10.0


def planner(costs: Sequence[Sensitivity]) -> dict[str, str]:
    """The least loss at 3.5 bits a layer."""
    value = {(row.layer, row.scheme): row.value for row in costs}
    names = [f"layer{n}" for n in range(LAYERS)]
    items = [[Choice(f"int{b}", value[name, f"int{b}"], {"bits": b}) for b in BITS] for name in names]
    numbers = solve(items, {"bits": 3.5 * LAYERS})
    assert numbers is not None
    return {name: f"int{BITS[number]}" for name, number in zip(names, numbers, strict=True)}


def texts(count: int, noise: float, seed: int) -> tuple[Array, Array]:
    """Divergences (D, rows) of texts whose layers differ in what they are used for, and answers of each."""
    true = np.exp(np.random.default_rng(0).normal(0, 0.7, (LAYERS, 1))) * 4.0 ** -np.array(BITS)
    draw = np.random.default_rng(seed)
    size = np.exp(noise * draw.normal(0, 1, (count, LAYERS, 1)) - noise**2 / 2)
    return (COUNTS * size * true).reshape(count, -1), np.full(count, COUNTS)


def loss(plan: dict[str, str], sums: Array) -> float:
    """What a plan loses by some texts."""
    cost = dict(zip([(row.layer, row.scheme) for row in ROWS], sums.mean(0), strict=True))
    return sum(cost[layer, scheme] for layer, scheme in plan.items())


def of(sums: Array) -> list[Sensitivity]:
    return [
        Sensitivity(r.layer, r.scheme, v, v, v, r.bits, 0) for r, v in zip(ROWS, sums.mean(0).tolist(), strict=True)
    ]


def test_the_regret_of_halves_is_that_of_all_texts_against_the_truth() -> None:
    truth, _ = texts(20000, 1.0, 99)
    best = loss(planner(of(truth)), truth)
    said, real, again = [], [], []
    for seed in range(8):
        sums, counts = texts(32, 1.0, seed)
        found = steady.stability(ROWS, sums, counts, [planner], seed)
        assert found is not None
        said.append(found.regret)
        real.append(loss(planner(of(sums)), truth) / best - 1)
        more, _ = texts(32, 1.0, seed + 100)
        again.append(loss(planner(of(np.concatenate([sums, more]))), truth) / best - 1)
    assert 0.01 < np.mean(real) < 0.2
    assert np.mean(said) == pytest.approx(np.mean(real), rel=0.35)
    saved = np.mean(real) - np.mean(again)
    assert steady.Stability(1, 0, LAYERS, float(np.mean(said))).saved(32, 32) == pytest.approx(saved, rel=0.5)


def test_texts_that_agree_need_no_more() -> None:
    sums, counts = texts(16, 0.0, 1)
    found = steady.stability(ROWS, sums, counts, [planner], 0)
    assert found == steady.Stability(1.0, 0.0, LAYERS, 0.0)
    assert found.saved(16, 128) == 0.0
    assert found.enough(16, 128) == 16


def test_by_hand() -> None:
    found = steady.Stability(0.9, 12.0, 210, 0.3)
    assert found.saved(16, 48) == pytest.approx(0.3 * 48 / 64)
    assert found.moved(16, 48) == pytest.approx(12 * 0.75**0.5)
    needed = found.enough(16, 128)
    at_least = steady.Stability(0.9, 12.0, 210, 0.3 * 16 / needed)  # what halves of that many will say
    assert at_least.saved(needed, 128) <= steady.CHANGES
    assert steady.Stability(0.9, 12.0, 210, 0.3 * 16 / (needed - 1)).saved(needed - 1, 128) > steady.CHANGES


def test_ranks_are_scipys_scheme_by_scheme() -> None:
    sums, counts = texts(10, 1.0, 4)
    pairs = steady._halved(sums, counts, 0, steady.means)
    found = steady.stability(ROWS, sums, counts, [], 0)
    assert found is not None
    wanted = [
        np.mean([spearmanr(a.reshape(LAYERS, -1)[:, n], b.reshape(LAYERS, -1)[:, n])[0] for n in range(len(BITS))])
        for a, b in pairs
    ]
    assert found.spearman == pytest.approx(np.mean(wanted))
    assert found.spearman < 0.95
    for one, other in pairs:
        assert (one + other) / 2 == pytest.approx(sums.mean(0) / COUNTS)


def test_the_same_seed_says_the_same_and_too_few_say_nothing() -> None:
    sums, counts = texts(9, 1.0, 2)
    assert steady.stability(ROWS, sums, counts, [planner], 3) == steady.stability(ROWS, sums, counts, [planner], 3)
    assert steady.stability(ROWS, sums[:3], counts[:3], [planner], 3) is None
