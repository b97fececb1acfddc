"""Coverage and distances, by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from calibrate import coverage

SIZE = 12


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def drawn(seed: int, texts: int, length: int, shift: int = 0, size: int = 400) -> list[Tensor]:
    """Texts of tokens with Zipf's frequencies, the ranks of the ids moved by `shift`."""
    draw = np.random.default_rng(seed)
    p = 1 / np.arange(1, size + 1)
    return [torch.tensor((draw.choice(size, length, p=p / p.sum()) + shift) % size) for _ in range(texts)]


def test_counts_and_what_they_cover() -> None:
    known = coverage.counts([ids(1, 2, 2), ids(3)], SIZE)
    used = coverage.counts([ids(2, 2, 5, 5, 5, 7)], SIZE)
    assert known.tolist() == [0, 1, 2, 1, *[0] * 8]
    assert coverage.covered(known, used) == pytest.approx(2 / 6)  # by use: of ids it would be one of three
    assert coverage.missing(known, used, 5) == [5, 7]
    assert coverage.missing(known, used, 1) == [5]
    assert math.isnan(coverage.covered(known, coverage.counts([], SIZE)))


def test_positions_that_are_reached() -> None:
    assert coverage.reached([4, 8], [2, 10, 20]) == pytest.approx((2 + 8 + 8) / 32)
    assert coverage.reached([8], [3, 8]) == 1.0
    assert math.isnan(coverage.reached([8], []))


def test_copies_and_texts_in_common() -> None:
    assert coverage.copies([ids(1, 2), ids(1, 2), ids(2, 1), ids(1, 2)]) == 2
    long = torch.arange(40)
    windows = [torch.cat([ids(99), long[:30]]), torch.cat([long[30:], ids(7, 8)])]
    assert coverage.shared(windows, [long]) == 1.0  # 15 of its 25 runs of 16 tokens are in the first window
    assert coverage.shared(windows[1:], [long]) == 0.0
    assert coverage.shared([ids(1, 2, 3)], [ids(1, 2, 3), ids(1, 2)]) == 0.5  # too short for a run: as a whole
    assert math.isnan(coverage.shared(windows, []))


def test_the_divergence_is_scipys() -> None:
    draw = np.random.default_rng(0)
    for size in (2, 50, 3000):
        one, other = draw.integers(0, 9, (2, size))
        one[0] = other[-1] = 3
        assert coverage.divergence(one, other) == pytest.approx(jensenshannon(one, other, base=2) ** 2, abs=1e-12)
    assert coverage.divergence(np.array([1, 0]), np.array([0, 5])) == pytest.approx(1.0)
    assert coverage.divergence(np.array([2, 4]), np.array([1, 2])) == 0.0


def test_two_samples_of_one_source_are_no_distance_apart() -> None:
    found = coverage.distance(drawn(0, 60, 40), drawn(1, 60, 40), 400, 0)
    assert found is not None
    assert found.tokens == 1200
    assert found.between == pytest.approx(found.own, rel=0.05)
    assert found.own > 0.2  # which a distance without what it is beside would call far
    assert found.excess < 0.05
    assert found.covers == pytest.approx(found.covers_own, abs=0.02)


@pytest.mark.parametrize("shift", [20, 100])
def test_the_excess_is_the_distance_of_the_sources(shift: int) -> None:
    p = 1 / np.arange(1, 401)
    wanted = jensenshannon(p, np.roll(p, shift), base=2)
    for texts in (30, 300):  # whatever the number of tokens
        found = coverage.distance(drawn(0, texts, 40), drawn(1, texts, 40, shift), 400, 0)
        assert found is not None
        assert found.excess == pytest.approx(wanted, rel=0.06)
        assert found.between > wanted


def test_windows_of_one_document_stay_together() -> None:
    documents = drawn(3, 8, 400, size=4000)  # each with its own rare words
    whole = coverage.distance(documents, documents, 4000, 0)
    windows = [document[start : start + 20] for document in documents for start in range(0, 400, 20)]
    cut = coverage.distance(windows, windows, 4000, 0)
    assert whole is not None
    assert cut is not None
    assert cut.own == pytest.approx(whole.own, rel=0.05)


def test_distances_are_those_of_the_seed_and_need_two_texts() -> None:
    one, other = drawn(0, 9, 30), drawn(1, 7, 50)
    assert coverage.distance(one, other, 400, 5) == coverage.distance(one, other, 400, 5)
    assert coverage.distance(one, other, 400, 5) != coverage.distance(one, other, 400, 6)
    assert coverage.distance(one[:1], other, 400, 0) is None
    assert coverage.distance([*one[:1], torch.zeros(0, dtype=torch.int64)], other, 400, 0) is None
