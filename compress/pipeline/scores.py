"""The task's figures of models side by side, on the same held-out rows: what `compress bench` says of task models.

Every model is opened by plain transformers, one at a time; differences are paired by row with the first one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress.core.crf import read_crf
from compress.core.errors import ModelError
from compress.core.numerics.bootstrap import Array
from compress.core.opening import Opened
from compress.core.skeleton import read_config
from compress.core.task import Context, Task
from compress.core.types import Measurement
from compress.measure.exported import exported
from compress.pipeline.inputs import load_tokenizer, longest_sequence
from compress.pipeline.labelled import Labelled, find_labelled
from compress.pipeline.stand_in import stand_in
from compress.pipeline.stream import Report
from compress.pipeline.task_text import compared
from compress.recipe import EVAL_ROWS, Recipe
from compress.train.score import Part, outputs_of
from export.client import RuntimeProcess


@dataclass(frozen=True)
class HeldOut:
    """Rows of a task that no model was tuned on, as the first of the models reads them."""

    labelled: Labelled
    part: Part
    context: Context


def held_out(recipe: Recipe, opened: Opened) -> HeldOut | None:
    """The rows that `recipe.data` or the model's own tuning gives; None where there is only text to go by.

    Raises DataError and UsageError as `find_labelled` does.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        opened.folder, local_files_only=True, trust_remote_code=recipe.trust_remote_code
    )
    tokenizer = load_tokenizer(opened.folder, recipe.trust_remote_code)
    labelled = find_labelled(recipe, opened.folder, config, tokenizer)
    if (rows := labelled.labelled) is None or rows.task.text:
        return None
    settings = {**rows.task.settings(opened.folder), **rows.settings}
    length = min(labelled.max_length, longest_sequence(config))
    context = Context(tokenizer, rows.columns, rows.labels, length, settings=settings)
    context = rows.task.surveyed([rows.rows[n] for n in rows.division.train], context)
    whole = rows.part("test", context)
    kept = whole.rows[: EVAL_ROWS if recipe.eval_samples is None else recipe.eval_samples]
    features = [feature for feature in whole.features if feature.row < len(kept)]
    return HeldOut(rows, Part(tuple(kept), tuple(features)), context)


def task_scores(
    subjects: Sequence[tuple[str, Path]], found: HeldOut, trusted: bool, report: Report
) -> list[Measurement]:
    """Figures of every subject (name, folder) with 95 % intervals, and its change against the first.

    Raises ModelError for one that cannot be opened for the task.
    """
    counts: list[Array] = []
    for number, (_, folder) in enumerate(subjects):
        report("judging the task", number, len(subjects))
        counts.append(_counts(folder, found, trusted))
    report("judging the task", len(subjects), len(subjects))
    task = found.labelled.task
    measured: list[Measurement] = []
    for number, (name, _) in enumerate(subjects):
        pair = compared(task, [counts[0], counts[number]], name)
        if number == 0:
            measured += [replace(m, subject=name) for m in pair if m.subject == "original"]
        else:
            measured += [m for m in pair if m.subject != "original"]
    return measured


def _counts(folder: Path, found: HeldOut, trusted: bool) -> Array:
    task, part = found.labelled.task, found.part
    export = exported(str(folder))
    home = folder if export is None else export.where
    crf = read_crf(home, found.context.labels) if task.words else None
    context = replace(found.context, decode=crf.decode if crf is not None else None)
    if export is not None:
        config = read_config(export.artifact, trusted, packed=True)
        with RuntimeProcess.open(export.runtime, export.where, trusted=trusted) as process:
            outputs = outputs_of(stand_in(process, config), task, context, part.features)
        return task.counts(task.answers(outputs, part.features, context), part.rows, context)
    with redirect_stderr(io.StringIO()):  # compressed-tensors shows a bar for each of the four things that it does
        model = _opened(task, folder, trusted)
        outputs_of(model, task, context, part.features[:1])
    outputs = outputs_of(model, task, context, part.features)
    return task.counts(task.answers(outputs, part.features, context), part.rows, context)


def _opened(task: Task, folder: Path, trusted: bool) -> Any:
    import transformers

    try:
        return getattr(transformers, task.auto).from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusted, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{folder} cannot be opened for {task.name}: {said}") from None
