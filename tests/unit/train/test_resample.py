"""Rows of rare classes repeated, or rows of frequent ones left out."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from compress.core.errors import MissingExtraError
from compress.train.resample import resampled

LABELS = ["a"] * 30 + ["b"] * 5 + ["c"] * 12


def test_over_keeps_every_row_and_evens_the_classes() -> None:
    found = resampled(LABELS, "over", 0)
    assert set(found) == set(range(len(LABELS)))
    assert Counter(LABELS[n] for n in found) == {"a": 30, "b": 30, "c": 30}
    assert found == resampled(LABELS, "over", 0) != resampled(LABELS, "over", 1)


def test_under_takes_no_row_twice() -> None:
    found = resampled(LABELS, "under", 0)
    assert len(found) == len(set(found)) == 15
    assert Counter(LABELS[n] for n in found) == {"a": 5, "b": 5, "c": 5}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(MissingExtraError, match=r"imbalanced-learn; install it with: pip install 'compress-models\[tr"):
        resampled(LABELS, "over", 0)
