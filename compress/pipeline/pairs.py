"""Rows of tasks that write, for the loop: what the encoder reads and the target that the decoder is given.

The rows that calibrate and a few held-out ones ride along with their targets, which gives perplexity, KL and agreement.
What the models write themselves is made later, for more rows: see answered.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from calibrate.data import PreparedData
from compress.core.errors import DataError
from compress.core.fingerprint import digest
from compress.core.task import Context, Feature
from compress.pipeline.labelled import Labelled
from compress.pipeline.stream import BATCH_TOKENS
from compress.pipeline.task_text import TaskText, prepared
from compress.recipe import EVAL_DOCUMENTS, EVAL_WRITTEN, Recipe


def prepared_pairs(labelled: Labelled, context: Context, recipe: Recipe) -> tuple[PreparedData, TaskText]:
    """Training rows until they hold `recipe.samples` times `seq_len` tokens, or `samples` rows of speech; test rows.

    The rows of the result are those that answers are written for. Raises DataError when nothing is left.
    """
    held = EVAL_WRITTEN if recipe.eval_samples is None else recipe.eval_samples
    task, division = labelled.task, labelled.division
    context = task.surveyed([labelled.rows[n] for n in division.train], context)
    draw = np.random.default_rng(recipe.seed)
    chosen: list[Feature] = []
    left = recipe.samples * recipe.seq_len
    for number in draw.permutation(division.train).tolist():
        if left <= 0:
            break
        feature = replace(task.features([labelled.rows[number]], context)[0], row=number)
        left -= recipe.seq_len if task.hears else sum(_lengths(feature))
        chosen.append(feature)
    if not chosen:
        raise DataError(f"{labelled.card['source']} leaves no training row to calibrate with; give more rows")
    judged = draw.permutation(division.test).tolist()[:held]
    rows = tuple(labelled.rows[n] for n in judged)
    riding = tuple(task.features(rows, context)[:EVAL_DOCUMENTS])  # all are read: a missing file is said now
    batches = [_batches(features, task.hears) for features in (riding, chosen)]
    text = TaskText(task, context, rows, riding, batches[0], tuple(chosen), batches[1])
    data = prepared(text, labelled, context.max_length)
    told = [column for role, column in labelled.columns.items() if role != "audio"]
    said: list[Any] = [[row.get(column) for column in told] for row in rows]
    marked = digest([data.heldout.digest, said])
    data.card["heldout"] |= {"digest": marked, "answers": len(rows)}
    return replace(data, heldout=replace(data.heldout, digest=marked)), text


def _lengths(feature: Feature) -> tuple[int, int]:
    return feature.shape[0], len(feature.inputs["labels"])


def _batches(features: Sequence[Feature], hears: bool) -> tuple[tuple[int, ...], ...]:
    """Numbers of features, those of equal source and target length together; speech one by one."""
    by_lengths: dict[tuple[int, ...], list[int]] = {}
    for number, feature in enumerate(features):
        by_lengths.setdefault((number,) if hears else _lengths(feature), []).append(number)
    found = []
    for lengths in sorted(by_lengths):
        numbers, size = by_lengths[lengths], max(1, BATCH_TOKENS // max(1, sum(lengths)))
        found += [tuple(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    return tuple(found)
