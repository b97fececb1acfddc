"""Rare classes shown more often, or frequent ones less: training rows drawn by imbalanced-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.core.errors import MissingExtraError


def resampled(labels: Sequence[str], how: str, seed: int) -> list[int]:
    """Numbers of rows such that every class has as many: `over` repeats rows of rare ones until they have as many as
    the most frequent, `under` leaves out rows of frequent ones until they have as few as the rarest.

    labels: the class of each row. Ascending, so that the order says nothing. Raises MissingExtraError.
    """
    try:
        from imblearn.over_sampling import RandomOverSampler
        from imblearn.under_sampling import RandomUnderSampler
    except ImportError:
        raise MissingExtraError("imbalanced-learn", "train") from None
    sampler = (RandomOverSampler if how == "over" else RandomUnderSampler)(random_state=seed)
    numbers, _ = sampler.fit_resample(np.arange(len(labels))[:, None], list(labels))
    return sorted(int(n) for n in numbers[:, 0])
