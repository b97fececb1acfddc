"""The task's figures of an export in its runtime, next to those of the compressed model in memory, on the same held-out
rows.

The runtime's process stands where a model would: the task makes its batches and its answers from it as ever.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from compress.core.crf import read_crf
from compress.core.errors import CompressError, DataError, UsageError
from compress.core.numerics.bootstrap import Array
from compress.core.opening import Opened
from compress.core.types import Measurement
from compress.core.writing import WritingTask
from compress.pipeline.labelled import TASK_FILE
from compress.pipeline.scores import HeldOut, held_out
from compress.pipeline.stand_in import stand_in
from compress.recipe import EVAL_ROWS, EVAL_WRITTEN, Recipe
from compress.train.score import Part, outputs_of
from export.client import RuntimeProcess
from export.judge import MARGIN, Line
from export.reference import Reference
from export.runtimes._kind import Arithmetic
from export.runtimes._rules import GREEDY
from export.source import Source

BOUND, WRITTEN_BOUND = 0.002, 0.005
"""By how much a figure of the runtime may differ from torch's; of what is written, where one token moves the next."""


@dataclass(frozen=True)
class Rows:
    """Held-out rows, and the counts (rows, k) of the reference on them.

    unrounded: the same without the int8 inputs of the artifact, None where it has none: what rounding may do.
    """

    found: HeldOut
    counts: Array
    unrounded: Array | None


def rows_of(source: Source, reference: Reference) -> tuple[Rows | None, str]:
    """The rows that the artifact was judged on, with the reference's counts; or None, and why when there should be
    some."""
    recipe = Recipe(**source.manifest["recipe"])
    try:
        found = held_out(recipe, Opened(_home(source, recipe), source.name))
    except (DataError, UsageError, OSError) as error:
        return None, f"the task was not judged: {error}"
    if found is None:
        return None, ""
    if found.labelled.task.name in ("question-answering", "multiple-choice"):
        return (
            None,
            f"the task was not judged: {found.labelled.task.name} reads more outputs than runtimes are asked for",
        )
    found = _few(found, recipe)
    task = found.labelled.task
    acts = reference.acts is not None and any(c.activation for c in source.coded.values())
    if task.words:
        crf = read_crf(source.folder, found.context.labels)
        found = replace(found, context=replace(found.context, decode=crf.decode if crf is not None else None))
    if isinstance(task, WritingTask):
        _generation(reference.model, source.folder)
    with reference.computing():
        counts = _counts(reference.model, found)
    if not acts:
        return Rows(found, counts, None), ""
    with reference.computing(Arithmetic(integers=True)):
        return Rows(found, counts, _counts(reference.model, found)), ""


def judged(process: RuntimeProcess, rows: Rows, config: Any, subject: str) -> tuple[Line, list[Measurement]]:
    """The runtime's figures on the rows, a line on the first of them against the reference's."""
    task = rows.found.labelled.task
    theirs = _counts(stand_in(process, config), rows.found)
    mine, other = (task.figures(counts.sum(0, keepdims=True))[0] for counts in (rows.counts, theirs))
    n = len(rows.counts)
    measured = []
    for metric, ours, found in zip(task.metrics, mine, other, strict=True):
        if np.isfinite(ours) and np.isfinite(found):
            detail = {"torch": float(ours)}
            measured.append(
                Measurement(subject, f"runtime_{metric.name}", metric.unit, float(found), n=n, detail=detail)
            )
    name = task.aim(rows.found.context).name
    at = next(number for number, metric in enumerate(task.metrics) if metric.name == name)
    limit = WRITTEN_BOUND if isinstance(task, WritingTask) else BOUND
    plain: dict[str, float] = {}
    if rows.unrounded is not None:  # rows on the border fall on either side where an input is beyond a tie
        without = float(task.figures(rows.unrounded.sum(0, keepdims=True))[0][at])
        plain = {"arithmetic_score": abs(without - float(mine[at]))}
        limit = max(limit, 1.0 / n, MARGIN * plain["arithmetic_score"])
    difference = abs(float(mine[at] - other[at]))
    line = {"check": "task score", "metric": name, "torch": float(mine[at]), "runtime_score": float(other[at]),
            "rows": n, "difference_of_score": difference, "tolerance": limit,
            "passed": difference <= limit + 1e-12, **plain}  # fmt: skip
    if not line["passed"]:
        line["said"] = f"{name} is {other[at]:.4f} in the runtime, {mine[at]:.4f} in torch, on the same {n} rows"
    return line, measured


def _counts(model: nn.Module, found: HeldOut) -> Array:
    task, part, context = found.labelled.task, found.part, found.context
    outputs = outputs_of(model, task, context, part.features)
    return task.counts(task.answers(outputs, part.features, context), part.rows, context)


def _home(source: Source, recipe: Recipe) -> Path:
    """The folder that knows how rows were divided: that of the tuned model, else the artifact."""
    model = Path(recipe.model).expanduser()
    return model if (model / TASK_FILE).is_file() else source.folder


def _few(found: HeldOut, recipe: Recipe) -> HeldOut:
    """As many rows as `quantize` judges on."""
    usual = EVAL_WRITTEN if isinstance(found.labelled.task, WritingTask) else EVAL_ROWS
    most = usual if recipe.eval_samples is None else recipe.eval_samples
    kept = found.part.rows[:most]
    features = [feature for feature in found.part.features if feature.row < len(kept)]
    return replace(found, part=Part(kept, features))


def _generation(model: Any, folder: Path) -> None:
    """Give the model what its files say of generation, but for what keeps it from the likeliest tokens: no runtime's
    loop knows that (`Session.write`)."""
    from transformers import GenerationConfig

    model.config.use_cache = True
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        model.generation_config.update(**GREEDY)
        return
    raise CompressError(f"{folder} has no generation_config.json; copy the one of the original model")
