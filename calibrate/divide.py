"""Labelled rows into train, validation and test: by document, by seed, every class in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.core.errors import DataError

VALIDATION, TEST = 0.1, 0.2  # shares of the rows
LEAST = 10  # rows in all


@dataclass(frozen=True)
class Division:
    """Row numbers of each part, ascending; no two rows of one text are in different parts.

    copies: rows left out because an earlier row has the same text. conflicts: those of them with another label.
    cut: validation rows are from a part that the data calls train, which a model may have been trained on.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    copies: int = 0
    conflicts: int = 0
    cut: bool = False


def divide(
    texts: Sequence[str], strata: Sequence[str], given: Sequence[str], seed: int, documents: Sequence[str] | None = None
) -> Division:
    """Divide rows by their `texts`; the rows of each of `strata` (label, or all alike) in the same shares.

    documents: what each row is about, where several may be about one; those stay together, if there are LEAST of them.
    given: a split per row where the data has its own, "" elsewhere. Parts that the data names are taken as they are;
    missing ones are cut from `train`. Raises DataError for too few rows.
    """
    first: dict[str, int] = {}
    conflicts = 0
    for number, text in enumerate(texts):
        seen = first.setdefault(" ".join(text.split()), number)
        conflicts += strata[seen] != strata[number]
    kept = sorted(first.values())
    if len(kept) < LEAST:
        raise DataError(f"the data has {len(kept)} different rows; give {LEAST} or more, some of them are held out")
    about = texts if documents is None or few_documents(documents) else documents
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for number in kept:
        parts[given[number] or "train"].append(number)
    for name, share in (("test", TEST), ("validation", VALIDATION)):
        if not parts[name]:
            taken = _cut(parts["train"], (strata, about), share, seed + (name == "test"))
            parts[name] = taken
            parts["train"] = sorted(set(parts["train"]) - set(taken))
    for name, rows in parts.items():
        if not rows:
            raise DataError(f"no row is left for {name}; give more rows")
    train, validation, test = (tuple(sorted(parts[name])) for name in ("train", "validation", "test"))
    cut = any(given) and "validation" not in given
    return Division(train, validation, test, len(texts) - len(kept), conflicts, cut)


def few_documents(documents: Sequence[str]) -> bool:
    """Whether there are too few to hold some out."""
    return len(set(documents)) < LEAST


def _cut(rows: Sequence[int], keys: tuple[Sequence[str], Sequence[str]], share: float, seed: int) -> list[int]:
    """About `share` of the documents of each stratum, all rows of each; a stratum of one gives none.

    keys: stratum and document of each row; a document belongs to the stratum of its first row.
    """
    draw = np.random.default_rng(seed)
    strata, about = keys
    groups: dict[str, list[int]] = {}
    of: dict[str, list[int]] = {}
    for number in rows:
        if about[number] not in of:
            groups.setdefault(strata[number], []).append(number)
        of.setdefault(about[number], []).append(number)
    taken: list[int] = []
    for name in sorted(groups):
        members = draw.permutation(groups[name]).tolist()
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        taken += [row for number in members[:count] for row in of[about[number]]]
    return taken
