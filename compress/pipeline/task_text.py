"""Labelled rows as text for the loop: training rows calibrate, held-out rows judge the task itself.

Rows of one length make a batch, so that no padding is counted in statistics and none is computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from calibrate.data import PreparedData
from compress.core.errors import DataError
from compress.core.numerics.bootstrap import Array, bootstrap
from compress.core.numerics.paired import Pair
from compress.core.task import TRUTHS, Context, Feature, Row, Task
from compress.core.types import Measurement, TokenSet
from compress.core.writing import WritingTask
from compress.pipeline.labelled import Labelled
from compress.pipeline.stream import BATCH_TOKENS


@dataclass(frozen=True)
class TaskText:
    """Features that calibrate and that judge, each with its batches (numbers of features of one length)."""

    task: Task
    context: Context
    rows: tuple[Row, ...]  # the held-out ones
    heldout: tuple[Feature, ...]
    heldout_batches: tuple[tuple[int, ...], ...]
    calibration: tuple[Feature, ...]
    calibration_batches: tuple[tuple[int, ...], ...]

    def inputs(self, calibration: bool) -> list[dict[str, Tensor]]:
        """Model inputs, batch by batch, without labels."""
        features = self.calibration if calibration else self.heldout
        batches = self.calibration_batches if calibration else self.heldout_batches
        chosen = ([features[n] for n in batch] for batch in batches)
        if isinstance(self.task, WritingTask):
            return [self.task.forced(batch, self.context) for batch in chosen]
        return [stacked(batch) for batch in chosen]


def task_text(labelled: Labelled, context: Context, tokens: int, held: int, seed: int) -> TaskText:
    """Features of a part of the rows: training rows in the order of `seed` until they hold `tokens`; `held` test rows.

    Raises DataError when nothing is left.
    """
    division = labelled.division
    draw = np.random.default_rng(seed)
    chosen: list[Feature] = []
    count = 0
    order = draw.permutation(division.train).tolist()
    for number in order:
        if count >= tokens:
            break
        made = [replace(f, row=number) for f in labelled.task.features([labelled.rows[number]], context)]
        chosen += made
        count += sum(math.prod(feature.shape) for feature in made)
    judged = sorted(draw.permutation(division.test).tolist()[:held])
    rows = tuple(labelled.rows[n] for n in judged)
    features = tuple(labelled.task.features(rows, context))
    if not chosen:
        raise DataError(f"{labelled.card['source']} leaves no training row to calibrate with; give more rows")
    return TaskText(labelled.task, context, rows, features, batches(features), tuple(chosen), batches(chosen))


def with_all_held_out(labelled: Labelled) -> Labelled:
    """The same with validation rows among the test rows: for a bound on a difference every unseen row counts."""
    division = labelled.division
    rows = tuple(sorted([*division.validation, *division.test]))
    return replace(labelled, division=replace(division, validation=(), test=rows))


def batches(features: Sequence[Feature]) -> tuple[tuple[int, ...], ...]:
    """Numbers of features, those of equal shape together, up to BATCH_TOKENS tokens in a batch."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, feature in enumerate(features):
        by_shape.setdefault(feature.shape, []).append(number)
    found = []
    for shape in sorted(by_shape):
        numbers, size = by_shape[shape], max(1, BATCH_TOKENS // math.prod(shape))
        found += [tuple(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    return tuple(found)


def stacked(features: Sequence[Feature]) -> dict[str, Tensor]:
    """Inputs (B, L), or (B, C, L), of features of one shape; a mask only where a row's own texts differ in length."""
    names = [name for name in features[0].inputs if name not in TRUTHS]
    found = {name: torch.tensor([f.inputs[name] for f in features]) for name in names}
    if bool(found.get("attention_mask", torch.ones(1)).all()):
        found.pop("attention_mask", None)
    return found


def prepared(text: TaskText, labelled: Labelled, length: int) -> PreparedData:
    """The same as token sets and a card, for fingerprint and report."""
    source = str(labelled.card["source"])
    held = [f for batch in text.heldout_batches for f in (text.heldout[n] for n in batch)]
    used = [f for batch in text.calibration_batches for f in (text.calibration[n] for n in batch)]
    calibration, heldout = _tokens(used, source), _tokens(held, source)
    card = {
        **{k: v for k, v in labelled.card.items() if k != "labels"},
        "max_length": length,
        "warnings": list(labelled.notes),
        "calibration": {"rows": len(used), "tokens": calibration.n_tokens, "digest": calibration.digest},
        "heldout": {"rows": len(held), "tokens": heldout.n_tokens, "digest": heldout.digest},
    }
    return PreparedData(calibration, heldout, card)


def _tokens(features: Iterable[Feature], source: str) -> TokenSet:
    found = list(features)
    state = hashlib.sha256()
    for feature in found:
        plain = {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in feature.inputs.items()}
        state.update(repr(sorted(plain.items())).encode())
    texts = [(ids, f.row) for f in found for ids in texts_of(f)]
    return TokenSet(tuple(ids for ids, _ in texts), tuple(row for _, row in texts), state.hexdigest(), source)


def texts_of(feature: Feature) -> list[Tensor]:
    """The token ids (L,) of each text of a feature, without what pads them to one length; speech has its labels."""
    ids = torch.tensor(feature.inputs.get("input_ids", feature.inputs.get("labels")))
    if ids.ndim == 1:
        return [ids]
    return [row[mask] for row, mask in zip(ids, torch.tensor(feature.inputs["attention_mask"]).bool(), strict=True)]


def compared(task: Task, counts: Sequence[Array], subject: str) -> list[Measurement]:
    """The task's figures of two models, their counts (rows, k) original first, and their difference paired by row."""
    rows = []
    number = len(counts[0])
    for name, found in (("original", counts[0]), (subject, counts[1])):
        values, bounds = bootstrap(found, task.figures, 0)
        rows += [
            Measurement(name, m.name, m.unit, float(v), *b, n=number, detail={"split": "test"})
            for m, v, b in zip(task.metrics, values, bounds, strict=True)
        ]
    width = counts[0].shape[1]

    def lost(totals: Array) -> Array:
        return task.figures(totals[:, width:]) - task.figures(totals[:, :width])

    values, bounds = bootstrap(np.concatenate(counts, axis=1), lost, 0)
    rows += [
        Measurement(subject, f"{m.name}_change", m.unit, float(v), *b, n=number, detail={"paired": True})
        for m, v, b in zip(task.metrics, values, bounds, strict=True)
    ]
    return [row for row in rows if math.isfinite(row.median)]


def asked_metric(task: Task, counts: Array) -> int | None:
    """The number of the first figure that rows with these sums (rows, k) give; None where they give none."""
    values = task.figures(counts.sum(0, keepdims=True))[0]
    return next((n for n, value in enumerate(values) if math.isfinite(value)), None)


def paired(task: Task, first: Array, second: Array) -> Pair | None:
    """Two models' sums by row; the drop is that of the first figure that the rows give."""
    number = asked_metric(task, first)
    if number is None:
        return None
    sign = -1.0 if task.metrics[number].lower_is_better else 1.0

    def drop(a: Array, b: Array) -> Array:
        found: Array = sign * (task.figures(a)[:, number] - task.figures(b)[:, number])
        return found

    def wrong(totals: Array) -> Array:
        found = task.wrong(totals)
        assert found is not None
        return found

    return Pair(first, second, drop, wrong if task.wrong(first[:1]) is not None else None)


@dataclass
class TaskScores:
    """Outputs of both models, feature by feature, and what they come to."""

    text: TaskText
    original: dict[int, Tensor]
    compressed: dict[int, Tensor]

    def measurements(self, subject: str) -> tuple[list[Measurement], Pair | None]:
        """The task's figures of both models, their difference paired by row, KL and agreement of their answers; and
        the first of the figures that the rows give, by row."""
        task = self.text.task
        counts = [self._counts(found) for found in (self.original, self.compressed)]
        return compared(task, counts, subject) + self._divergence(subject), paired(task, counts[0], counts[1])

    def _counts(self, found: dict[int, Tensor]) -> Array:
        outputs = [found[n] for n in range(len(self.text.heldout))]
        answers = self.text.task.answers(outputs, self.text.heldout, self.text.context)
        return self.text.task.counts(answers, self.text.rows, self.text.context)

    def _divergence(self, subject: str) -> list[Measurement]:
        """KL(original || compressed) of the class distributions and top-1 agreement, over rows or scored words."""
        sums = np.zeros((len(self.text.rows), 3))
        for number, feature in enumerate(self.text.heldout):
            a, b = (self.text.task.compared(found[number], feature) for found in (self.original, self.compressed))
            if a is None or b is None:
                return []
            p, q = torch.log_softmax(a.double(), -1), torch.log_softmax(b.double(), -1)
            agree = float((p.argmax(-1) == q.argmax(-1)).sum())
            sums[feature.row] += (float((p.exp() * (p - q)).sum()), agree, len(a))
        values, bounds = bootstrap(sums, lambda totals: totals[:, :2] / np.maximum(totals[:, 2:], 1), 0)
        detail = {"scored": int(sums[:, 2].sum())}
        return [
            Measurement(subject, name, unit, float(v), *b, n=len(sums), detail=dict(detail))
            for (name, unit), v, b in zip((("kl", "nats"), ("top1_agreement", "fraction")), values, bounds, strict=True)
        ]
