"""Quality of whole models: the reference's worker and one subject's run through the documents in step.

Only `ROWS` rows of logits of each are ever in this process; each worker holds those of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor

from compress.core.device import usable_cores
from compress.core.errors import DataError, ModelError
from compress.core.types import Measurement, TokenSet
from compress.measure.client import ROWS, Worker
from compress.measure.quality import (
    DocumentScore,
    HiddenScore,
    score_chunk,
    score_hidden,
    summarise,
    summarise_hidden,
)
from compress.measure.settings import BenchSettings, Progress
from compress.measure.subject import DECODER, Description


def measure_quality(
    settings: BenchSettings, kinds: Sequence[Description], notes: list[str], progress: Progress
) -> list[Measurement]:
    """Perplexity, its ratio, KL and top-1 agreement (encoders: hidden cosine) to the first subject.

    The reference alone gives its perplexity only. Sentences go to `notes`. Raises DataError when no
    sequence has 2 tokens, and what the workers raise.
    """
    pairs = _cut(scorable(settings.data), kinds, notes)
    others: Sequence[Description | None] = kinds[1:] or [None]
    both = len(kinds) > 1
    threads = max(1, (settings.threads or usable_cores()) // (2 if both else 1))
    worker_settings = replace(settings.worker, threads=threads)
    total = len(pairs) * len(others)
    measurements: list[Measurement] = []
    with Worker.open(kinds[0].subject, worker_settings) as reference:
        reference.description = kinds[0]  # a runtime's worker knows only what it opened
        for turn, kind in enumerate(others):
            name = kinds[0].subject if kind is None else kind.subject
            scores: list[DocumentScore | HiddenScore] = []
            with ExitStack() as stack:
                other = None if kind is None else stack.enter_context(Worker.open(name, worker_settings))
                for number, (document, ids) in enumerate(pairs):
                    progress(f"quality of {name}", turn * len(pairs) + number, total)
                    scores.append(compare(reference, other, document, ids))
            rows = _rows(scores, kinds[0].subject, name, settings.seed)
            measurements += rows if turn == 0 else [row for row in rows if row.subject == name]
    progress("quality", total, total)
    return measurements


def compare(reference: Worker, other: Worker | None, document: int, ids: Tensor) -> DocumentScore | HiddenScore:
    """Both workers over one sequence `ids` (L,), side by side, compared `ROWS` rows at a time.

    other None compares the reference with itself, which leaves its perplexity. Decoders predict tokens 1
    to L-1; of other models all L hidden states are compared. Raises ModelError where shapes differ or
    values are not finite.
    """
    reference.forward(ids)
    if other is not None:
        other.forward(ids)
    length, width = reference.shape()
    if other is not None and (shape := other.shape()) != (length, width):
        raise ModelError(
            f"{reference.name} and {other.name} give {width} and {shape[1]} values a token; "
            "compare models of the same vocabulary and width"
        )
    decoder = reference.description is not None and reference.description.kind == DECODER
    scores: DocumentScore | HiddenScore | None = None
    last = length - 1 if decoder else length
    for start in range(0, last, ROWS):
        stop = min(start + ROWS, last)
        a = reference.rows(start, stop)
        b = a if other is None else other.rows(start, stop)
        if decoder:
            chunk: Any = score_chunk(document, a, b, ids[start + 1 : stop + 1])
        else:
            chunk = score_hidden(document, a, b)
        scores = chunk if scores is None else scores + chunk
    if scores is None:
        raise DataError(f"document {document} has {length} tokens; nothing is predicted in fewer than 2")
    return scores


def scorable(data: TokenSet | None) -> list[tuple[int, Tensor]]:
    """(document, ids) of every sequence long enough to predict something. Raises DataError for none."""
    pairs = list(zip(data.documents, data.sequences, strict=True)) if data is not None else []
    pairs = [(document, ids) for document, ids in pairs if ids.numel() > 1]
    if not pairs:
        raise DataError("quality needs held-out text and no sequence has 2 tokens; give longer text")
    return pairs


def _cut(
    pairs: Sequence[tuple[int, Tensor]], kinds: Sequence[Description], notes: list[str]
) -> list[tuple[int, Tensor]]:
    """Sequences no longer than the positions of every subject, the same for all of them."""
    most = min((d.positions for d in kinds if d.positions is not None), default=None)
    if most is None or all(ids.numel() <= most for _, ids in pairs):
        return list(pairs)
    notes.append(f"held-out sequences were cut to {most} tokens, the positions the subjects have")
    return [(document, ids[:most]) for document, ids in pairs]


def _rows(scores: Sequence[Any], reference: str, name: str, seed: int) -> list[Measurement]:
    """Measurements under the names the user gave; of the reference alone its perplexity."""
    if isinstance(scores[0], HiddenScore):
        return [summarise_hidden(scores, name, seed)] if name != reference else []
    rows = summarise(scores, name, seed)
    rows[0] = replace(rows[0], subject=reference, detail={**rows[0].detail, "reference": True})
    return rows[:1] if name == reference else rows
