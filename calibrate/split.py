"""Held-out and calibration text, kept apart by construction.

`partition` is the only function that divides documents, `Partition` refuses halves that share one, and the
token sets of calibrate.tokens are made from a Partition and from nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compress.core.errors import CompressError, DataError

MIN_TOKENS = 16  # shorter held-out documents say little, and are used only when all are short
RUN = 64  # documents that share this many tokens in a row stay on one side
HELD_SHARE = 4  # held-out text is at most a quarter where text is scarce
COMMON = 20  # a run in more than 1/20 of the documents (at least 4) is boilerplate, not a copy
LEVELS = (r"\n[ \t]*\n\s*", r"\n", r"(?<=[.!?;])\s+|(?<=[。！？；])")  # paragraphs, lines, sentences
REPEAT_CHARS = 32  # units of this length are kept once; shorter ones ("Yes.", "}") repeat in any prose


@dataclass(frozen=True)
class Document:
    """One document as tokens. number: its position among the distinct documents of the source."""

    number: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """How much is asked for. tokens: what calibration should have; minimum: tokens of a held-out document."""

    tokens: int
    eval_samples: int
    minimum: int = MIN_TOKENS
    source: str = "the text"


@dataclass(frozen=True)
class Partition:
    """Two sets of documents without a common one. boilerplate: runs of RUN tokens that may be in both.

    Raises CompressError when a number or the same tokens are in both halves; `partition` never does that.
    """

    calibration: tuple[Document, ...]
    heldout: tuple[Document, ...]
    boilerplate: bool = False

    def __post_init__(self) -> None:
        seen = {d.number for d in self.calibration} | {d.ids for d in self.calibration}
        for document in self.heldout:
            if document.number in seen or document.ids in seen:
                raise CompressError(f"document {document.number} is in both halves, a fault of this program")


def unique(texts: Iterable[str]) -> list[str]:
    """Texts that differ in more than white space, first ones kept, blank ones dropped."""
    kept: dict[str, str] = {}
    for text in texts:
        if key := " ".join(text.split()):
            kept.setdefault(key, text)
    return list(kept.values())


def sections(text: str, target: int, plenty: bool) -> tuple[list[str], bool]:
    """`(sections, gapped)`: contiguous groups of paragraphs of about `target` characters.

    Where paragraphs are longer than that, of lines, sentences or plain characters. A unit that repeats an
    earlier one is dropped first. Between two groups one unit is left out, so that a held-out section does
    not continue a calibration one; not when groups have under eight units and there is no `plenty`.
    """
    units = list(_distinct(_units(text, target, 0)))
    gap = plenty or len(units) * target >= 8 * sum(map(len, units))
    groups: list[str] = []
    current: list[str] = []
    size = 0
    for unit in units:
        if size >= target:
            groups.append("".join(current).strip())
            current, size = [], 0
            if gap:
                continue
        current.append(unit)
        size += len(unit)
    if current:
        groups.append("".join(current).strip())
    return groups, gap and len(groups) > 1


def _units(text: str, target: int, level: int) -> Iterator[str]:
    """Pieces of at most `target` characters that join to `text`, cut at the coarsest level that does."""
    if level == len(LEVELS):
        step = max(1, target // 8)
        yield from (text[i : i + step] for i in range(0, len(text), step))
        return
    start = 0
    ends = [match.end() for match in re.finditer(LEVELS[level], text)]
    for end in [*ends, len(text)]:
        piece = text[start:end]
        start = end
        if len(piece) <= target:
            if piece:
                yield piece
        else:
            yield from _units(piece, target, level + 1)


def _distinct(units: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for unit in units:
        key = " ".join(unit.split())
        if len(key) < REPEAT_CHARS or key not in seen:
            seen.add(key)
            yield unit


def partition(documents: Sequence[Document], wanted: Wanted) -> Partition:
    """The one place where documents become held-out or calibration text.

    documents: in shuffled order, with distinct numbers. Equal ones are collapsed; documents that share a
    run of RUN tokens are one cluster, and a cluster goes to one side (its longest member is judged, the
    rest of it is set aside). Held-out clusters are taken first, in order, but where text is scarce they
    hold at most a quarter of the tokens. Raises DataError when there are too few for one of each.
    """
    distinct = list({d.ids: d for d in reversed(documents) if d.ids}.values())[::-1]
    if not wanted.eval_samples:
        return Partition(tuple(distinct), ())
    clusters, boilerplate = _clusters(distinct)
    chosen = _choose(clusters, wanted)
    taken = {document.number for cluster in chosen for document in cluster}
    heldout = tuple(max(cluster, key=lambda d: len(d.ids)) for cluster in chosen)
    return Partition(tuple(d for d in distinct if d.number not in taken), heldout, boilerplate)


def strangers(documents: Sequence[Document], known: Sequence[Document]) -> list[Document]:
    """Those of `documents` that share no run of RUN tokens with one that is `known`, as `partition` counts them."""
    clusters, _ = _clusters([*known, *documents])
    taken = {document.number for document in known}
    met = {d.number for cluster in clusters if any(d.number in taken for d in cluster) for d in cluster}
    same = {document.ids for document in known}
    return [document for document in documents if document.number not in met and document.ids not in same]


def _choose(clusters: list[list[Document]], wanted: Wanted) -> list[list[Document]]:
    """The held-out clusters: at least one, and never all."""
    able = [c for c in clusters if max(len(d.ids) for d in c) >= wanted.minimum]
    if not able:
        able = sorted(clusters, key=lambda c: -max(len(d.ids) for d in c))[: wanted.eval_samples]
    able = [c for c in able if max(len(d.ids) for d in c) >= 2]  # one token predicts nothing
    if len(clusters) < 2 or not able:
        raise DataError(
            f"{wanted.source} has {len(clusters)} distinct document{'s' * (len(clusters) != 1)} of use, and "
            "calibration and held-out text need one each; give more text, or --eval-samples 0"
        )
    total = sum(_size(c) for c in clusters)
    chosen: list[list[Document]] = []
    held = 0
    for cluster in able:
        if len(chosen) == min(wanted.eval_samples, len(clusters) - 1):
            break
        with_it = held + _size(cluster)
        if total - with_it >= wanted.tokens or with_it * HELD_SHARE <= total:
            chosen.append(cluster)
            held = with_it
    return chosen or [min(able, key=_size)]


def _size(cluster: list[Document]) -> int:
    return sum(len(document.ids) for document in cluster)


def _clusters(documents: list[Document]) -> tuple[list[list[Document]], bool]:
    """Documents grouped by shared runs, in order, and whether boilerplate runs were seen.

    When the groups would swallow most of the text, runs say nothing and every document stands alone.
    """
    links, boilerplate = _links([document.ids for document in documents])
    parent = list(range(len(documents)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[Document]] = {}
    for i, document in enumerate(documents):
        groups.setdefault(root(i), []).append(document)
    clusters = list(groups.values())
    largest = max(clusters, key=_size, default=[])
    if len(largest) > 2 and 2 * _size(largest) > sum(_size(c) for c in clusters):
        return [[document] for document in documents], True
    return clusters, boilerplate


def _links(sequences: list[tuple[int, ...]]) -> tuple[list[tuple[int, int]], bool]:
    """Pairs of sequences that share a run of RUN tokens, by a rolling hash (a collision only links more)."""
    hashes, owners = [], []
    for i, ids in enumerate(sequences):
        if len(ids) >= RUN:
            tokens = np.asarray(ids, dtype=np.uint64)
            value = np.zeros(len(ids) - RUN + 1, dtype=np.uint64)
            for j in range(RUN):
                value = value * np.uint64(0x9E3779B97F4A7C15) + tokens[j : j + len(value)] + np.uint64(1)
            value = np.unique(value)
            hashes.append(value)
            owners.append(np.full(len(value), i, dtype=np.int64))
    if len(hashes) < 2:
        return [], False
    key, owner = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((owner, key))
    key, owner = key[order], owner[order]
    _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
    common = counts > max(4, len(sequences) // COMMON)
    same = (key[1:] == key[:-1]) & ~common[inverse[1:]]
    pairs = np.unique(np.stack((owner[:-1][same], owner[1:][same]), axis=1), axis=0)
    return [(int(a), int(b)) for a, b in pairs], bool(common.any())
