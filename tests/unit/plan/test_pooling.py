"""Scores of few texts, pooled: nearer to the truth, right in size, and the same where there is nothing to pool."""

from __future__ import annotations

import numpy as np
import pytest

from compress.core.numerics.bootstrap import Array
from compress.core.types import Sensitivity
from compress.plan.pooling import pooled, scores

LAYERS, TEXTS = 60, 24
SCHEMES = {"int2": 0.13, "int3": 0.033, "int4": 0.008, "int8": 0.00005}
ROLES = {f"layer{n}": ("up", "down")[n % 2] for n in range(LAYERS)}


def drawn(seed: int, own: float = 0.15) -> tuple[list[Sensitivity], Array, Array]:
    """Rows with raw scores, their texts' losses (D, rows), and the truth: squares of normal draws around it."""
    draw = np.random.default_rng(seed)
    names = [(layer, scheme) for layer in ROLES for scheme in SCHEMES]
    layer = dict(zip(ROLES, np.exp(draw.normal(0, 0.8, LAYERS)), strict=True))
    error = np.array([SCHEMES[s] * np.exp(draw.normal(0, 0.3)) for _, s in names])
    kind = np.array([1.5 if (ROLES[la], s) == ("down", "int2") else 1.0 for la, s in names])
    truth = error * kind * [layer[la] for la, _ in names] * np.exp(draw.normal(0, own, len(names)))
    sums = truth * draw.normal(0, 1, (TEXTS, len(names))) ** 2
    values = sums.mean(0)
    rows = [Sensitivity(la, s, v, v / 2, v * 2, 0, e) for (la, s), v, e in zip(names, values, error, strict=True)]
    return rows, sums, truth


def off(rows: list[Sensitivity], truth: Array) -> float:
    return float(np.std(np.log([row.value for row in rows]) - np.log(truth)))


@pytest.mark.parametrize("seed", range(4))
def test_pooled_scores_are_nearer_to_the_truth_and_as_large(seed: int) -> None:
    rows, sums, truth = drawn(seed)
    found = pooled(rows, ROLES, sums, np.ones(TEXTS))
    assert off(found, truth) < 0.75 * off(rows, truth)
    assert sum(row.value for row in found) == pytest.approx(truth.sum(), rel=0.15)
    for scheme in SCHEMES:
        mine = [n for n, row in enumerate(rows) if row.scheme == scheme]
        assert sum(found[n].value for n in mine) == pytest.approx(truth[mine].sum(), rel=0.2)


def test_layers_that_are_really_different_keep_most_of_what_their_texts_say() -> None:
    rows, sums, truth = drawn(1, own=1.0)
    found = pooled(rows, ROLES, sums, np.ones(TEXTS))
    assert off(found, truth) < off(rows, truth)
    moved = np.log([row.value for row in found]) - np.log([row.value for row in rows])
    assert np.std(moved) < 0.25


def test_intervals_keep_their_value_inside_and_grow_no_wider() -> None:
    rows, sums, _ = drawn(2)
    for before, after in zip(rows, pooled(rows, ROLES, sums, np.ones(TEXTS)), strict=True):
        assert after.low < after.value < after.high
        assert after.high / after.low < before.high / before.low


def test_what_loses_nothing_and_what_is_alone_stays() -> None:
    rows, sums, _ = drawn(3)
    rows[0] = Sensitivity("layer0", "int2", 0.0, 0.0, 0.0, 0, 0.1)
    sums[:, 0] = 0
    assert pooled(rows, ROLES, sums, np.ones(TEXTS))[0] == rows[0]
    one = [row for row in rows if row.scheme == "int3"]
    mine = [n for n, row in enumerate(rows) if row.scheme == "int3"]
    assert pooled(one, ROLES, sums[:, mine], np.ones(TEXTS)) == one  # a scheme each: layers cannot be told from noise
    assert pooled(rows, ROLES, sums[:3], np.ones(3)) == rows


def test_scores_of_other_texts_are_those_of_rows_made_of_them() -> None:
    rows, sums, _ = drawn(4)
    counts = np.full(TEXTS, 7.0)
    direct = pooled([Sensitivity(r.layer, r.scheme, v, v, v, 0, r.error) for r, v in
                     zip(rows, (sums.sum(0) / counts.sum()).tolist(), strict=True)], ROLES, sums, counts)  # fmt: skip
    assert scores(rows, ROLES, sums, counts).tolist() == [one.value for one in direct]
