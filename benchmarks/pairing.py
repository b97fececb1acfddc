"""Two task models on the same held-out rows: the figure of each, and their difference paired by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.core.crf import read_crf
from compress.core.numerics.bootstrap import Array, bootstrap
from compress.core.task import Context, Task
from compress.pipeline.inputs import load_tokenizer
from compress.pipeline.labelled import find_labelled
from compress.recipe import Recipe
from compress.train.score import score


def gain(before: Path, after: Path, data: Path, metric: str) -> dict[str, Any]:
    """`metric` of both models on the test rows of `data`, and `gain`: after - before, with 95 % intervals.

    Both must have been tuned with the same rows and seed, so that neither has seen the test rows.
    """
    task, first = counts_of(before, data)
    _, second = counts_of(after, data)
    column = [m.name for m in task.metrics].index(metric)
    width = first.shape[1]

    def figures(totals: Array) -> Array:
        found = [task.figures(totals[:, part])[:, column] for part in (slice(width), slice(width, None))]
        return np.stack([*found, found[1] - found[0]], axis=1)

    values, bounds = bootstrap(np.concatenate([first, second], axis=1), figures, 0)
    return {
        name: {"median": float(value), "low": bound[0], "high": bound[1], "n": len(first)}
        for name, value, bound in zip((before.name, after.name, "gain"), values, bounds, strict=True)
    }


def counts_of(folder: Path, data: Path) -> tuple[Task, Array]:
    """The task of a tuned model and its counts (rows, k) on the test rows of `data`."""
    import transformers

    recipe = Recipe.build(model=str(folder), data=str(data))
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    found = find_labelled(recipe, folder, config)
    labelled = found.labelled
    if labelled is None:
        raise SystemExit(f"{folder} is no task model of the rows of {data}; {found.note}")
    context = Context(load_tokenizer(folder, False), labelled.columns, labelled.labels, found.max_length)
    crf = read_crf(folder, labelled.labels)
    context = replace(context, decode=crf.decode) if crf is not None else context
    model = getattr(transformers, labelled.task.auto).from_pretrained(folder, local_files_only=True)
    return labelled.task, score(model, labelled.task, context, labelled.part("test", context))
