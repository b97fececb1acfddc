"""What calibration text covers of the text a model is used on: vocabulary, lengths, and how far the two are apart.

Everything is weighted by use: a token that is read often counts often. Distances are between distributions of single
tokens, so they see words, languages and formats, not the order of words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Counts = npt.NDArray[np.int64]

DRAWS = 16  # random halves that a distance is the mean of
RUN = 16  # tokens in a row that are not the same by chance


def counts(sequences: Iterable[Tensor], size: int) -> Counts:
    """How often each id below `size` occurs in sequences (L,) int64: (size,) int64."""
    flat = _flat(sequences)
    return np.bincount(flat, minlength=size).astype(np.int64)


def covered(known: Counts, used: Counts) -> float:
    """The share of the tokens counted in `used` whose id occurs in `known`; nan where there are none."""
    total = int(used.sum())
    return float(used[known > 0].sum() / total) if total else math.nan


def missing(known: Counts, used: Counts, most: int) -> list[int]:
    """Ids that occur in `used` and not in `known`, the most frequent first, the smaller first of equals."""
    left = np.where(known > 0, 0, used)
    order = np.argsort(-left, kind="stable")[:most]
    return [int(number) for number in order if left[number] > 0]


def reached(lengths: Sequence[int], used: Sequence[int]) -> float:
    """The share of the tokens of texts of lengths `used` at positions that the longest of `lengths` has too."""
    longest, total = max(lengths, default=0), sum(used)
    return sum(min(length, longest) for length in used) / total if total else math.nan


def copies(sequences: Iterable[Tensor]) -> int:
    """How many sequences are the same as an earlier one."""
    found = [ids.numpy().tobytes() for ids in sequences]
    return len(found) - len(set(found))


def shared(known: Sequence[Tensor], used: Sequence[Tensor]) -> float:
    """The share of the texts `used` that are in `known`: most of their runs of RUN tokens, or, where they are shorter,
    the whole text as one sequence. nan without texts."""
    whole = {ids.numpy().tobytes() for ids in known}
    own = [_runs(ids) for ids in used]
    there = np.isin(_joined(own), _joined([_runs(ids) for ids in known]))  # all at once: it sorts
    ends = np.cumsum([len(runs) for runs in own])
    same = [
        2 * int(there[end - len(runs) : end].sum()) > len(runs) if len(runs) else ids.numpy().tobytes() in whole
        for ids, runs, end in zip(used, own, ends, strict=True)
    ]
    return sum(same) / len(used) if used else math.nan


def _joined(runs: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    return np.concatenate([np.zeros(0, np.uint64), *runs])


def _runs(ids: Tensor) -> npt.NDArray[np.uint64]:
    """A hash of every RUN tokens in a row."""
    tokens = ids.numpy().astype(np.uint64)
    value = np.zeros(max(0, len(tokens) - RUN + 1), dtype=np.uint64)
    for j in range(RUN):
        value = value * np.uint64(0x9E3779B97F4A7C15) + tokens[j : j + len(value)] + np.uint64(1)
    return value


def divergence(one: Counts, other: Counts) -> float:
    """The Jensen-Shannon divergence of two distributions given as counts (V,), in bits: 0 the same, 1 nothing shared.

    Source: Lin 1991, IEEE Trans. Inf. Theory 37(1), equation 4.1 with equal weights.
    """
    p, q = (found / found.sum() for found in (one, other))
    middle = (p + q) / 2
    return max(0.0, _entropy(middle) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(p: npt.NDArray[np.float64]) -> float:
    some = p[p > 0]
    return float(-(some * np.log2(some)).sum())


@dataclass(frozen=True)
class Distance:
    """Jensen-Shannon distances, 0 to 1: roots of mean divergences of samples of `tokens` tokens each.

    between: texts that are used and known ones. own, within: two random halves of the used, of the known. covers,
    covers_own: the share of the tokens of used text that a sample of the known covers, and that one of its own does.
    """

    between: float
    own: float
    within: float
    tokens: int
    covers: float
    covers_own: float

    @property
    def excess(self) -> float:
        """The distance without what two samples of the same text are apart: 0 where they cannot be told apart.

        Divergences of samples are too large by about the same, so the halves' own are taken off, as in an energy
        distance.
        """
        return math.sqrt(max(0.0, self.between**2 - (self.own**2 + self.within**2) / 2))


def distance(used: Sequence[Tensor], known: Sequence[Tensor], size: int, seed: int) -> Distance | None:
    """How far the tokens of `known` are from those of `used`, over DRAWS random halves of both, whole texts together.

    Both in an order that says nothing, but for what belongs together. size: of the vocabulary. None where either is a
    single text, which has no halves.
    """
    draw = torch.Generator().manual_seed(seed)
    found, tokens = np.zeros(5), 0
    for _ in range(DRAWS):
        halves = [_halves(texts, draw) for texts in (used, known)]
        if not all(halves):
            return None
        parts = [part for pair in halves for part in pair]
        tokens = min(map(len, parts))
        a, b, c, d = (np.bincount(part[:tokens], minlength=size).astype(np.int64) for part in parts)
        found += divergence(a, c), divergence(a, b), divergence(c, d), covered(c, a), covered(b, a)
    between, own, within = np.sqrt(found[:3] / DRAWS).tolist()
    covers, covers_own = (found[3:] / DRAWS).tolist()
    return Distance(between, own, within, tokens, covers, covers_own)


def _halves(texts: Sequence[Tensor], draw: torch.Generator) -> tuple[Counts, Counts] | tuple[()]:
    """The tokens of two parts of the texts, of about as many each; () for a single one.

    Texts stay in their order, as in a ring that is cut at a random place and opposite: neighbours may be windows of
    one document, and one document in both parts would make them alike.
    """
    some = [ids for ids in texts if len(ids)]
    if len(some) < 2:
        return ()
    start = int(torch.randint(len(some), (1,), generator=draw))
    order = [*range(start, len(some)), *range(start)]
    sums = np.cumsum([len(some[n]) for n in order])
    cut = int(np.abs(2 * sums[:-1] - sums[-1]).argmin()) + 1
    return _flat(some[n] for n in order[:cut]), _flat(some[n] for n in order[cut:])


def _flat(sequences: Iterable[Tensor]) -> Counts:
    found = [ids.numpy() for ids in sequences]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)
