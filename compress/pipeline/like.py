"""`--like`: a sample of what the model is used on, read as --data is, as the token sequences that the model will see.

Its rows need no answers. Of tasks whose model writes, the text that is read and the text that is written are two sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibrate import sample as texts
from calibrate.rows import Reading, read_rows
from calibrate.sample import MOST, Sample, sample
from calibrate.tokens import digest
from compress.core.errors import DataError
from compress.core.fingerprint import file_sha256
from compress.core.task import Feature, Row, Task
from compress.core.writing import WritingTask
from compress.pipeline.labelled import folder_of, read_task
from compress.pipeline.task_text import TaskText, texts_of
from compress.recipe import Recipe

Sides = dict[str, list[Tensor]]
"""What is read and written: `text`, or `source` and `target` of models that write -> sequences (L,) int64."""


def check(recipe: Recipe, folder: Path) -> None:
    """Raises DataError when --like is the calibration data itself. folder: of the model, which knows its own rows."""
    like = recipe.like
    if like is None:
        return
    if not like.strip():
        raise DataError("--like is empty; give a file, a folder or a hub name, or leave it out")
    tuned = read_task(folder)
    data = recipe.data if recipe.data is not None else str(tuned["data"]) if tuned is not None else None
    if data is not None and _same(like, data):
        raise DataError(f"--like {like} is the calibration data itself ({data}), and its distance to itself tells "
                        "nothing; give other text, of what the model will be used on")  # fmt: skip


def _same(one: str, other: str) -> bool:
    a, b = Path(one).expanduser(), Path(other).expanduser()
    if one == other or (a.exists() and b.exists() and a.samefile(b)):
        return True
    files = a.is_file() and b.is_file() and a.stat().st_size == b.stat().st_size
    return files and file_sha256(a) == file_sha256(b)


def read_like(
    recipe: Recipe, text: TaskText | None, tokenizer: Any, vocab_size: int, longest: int
) -> tuple[Sides, Sample]:
    """The sample that --like names: sequences by side, and where they came from. longest: tokens the model takes.

    text: the rows that calibrate, where they are those of a task. Raises DataError in the words of --like.
    """
    assert recipe.like is not None
    try:
        if text is not None:
            return _rows(recipe, text, vocab_size, longest)
        found = sample(recipe.like, recipe.text_column, tokenizer, vocab_size, longest, recipe.seed)
    except DataError as error:
        raise DataError(str(error).replace("--data", "--like")) from None
    return {"text": list(found.sequences)}, found


def _rows(recipe: Recipe, text: TaskText, vocab_size: int, longest: int) -> tuple[Sides, Sample]:
    """Rows of the same task; of a source that has other columns, its text where the task reads or hears just one."""
    assert recipe.like is not None
    task, context = text.task, text.context
    try:
        table = read_rows(recipe.like, Reading(task.words, task.hears))
        columns = _columns(task, table.rows, context.columns, table.source)
    except DataError:
        if sum(asked.required and not asked.answer for asked in task.fields) != 1:
            raise
        found = sample(recipe.like, None, context.tokenizer, vocab_size, longest, recipe.seed)
        side = "text" if not isinstance(task, WritingTask) else "target" if task.hears else "source"
        return {side: list(found.sequences)}, found
    rows = task.located(table.rows, columns, folder_of(table.source))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    asked = replace(context, columns=columns, max_length=min(longest, texts.LONGEST))
    features: list[Feature] = []
    count = 0
    for number in order:
        if count >= MOST:
            break
        made = task.features([rows[number]], asked)
        features += made
        count += sum(len(ids) for feature in made for ids in texts_of(feature))
    sides = sides_of(task, features)
    card = {"source": table.source, "format": table.format, "column": ", ".join(columns.values())}
    return sides, Sample(tuple(sides[next(iter(sides))]), True, card, table.notes)


def _columns(task: Task, rows: Sequence[Row], known: Mapping[str, str], source: str) -> dict[str, str]:
    """role -> column of what is read, and of what is written where it is there; answers may be missing."""
    there = {str(key) for row in rows[:1000] for key in row}
    kept = {role: column for role, column in known.items() if column in there}
    answers = {asked.role: asked.names[0] for asked in task.fields if asked.answer}
    written = task.target if isinstance(task, WritingTask) else ""
    absent = [role for role in answers if role not in kept and not there & set(_names(task, role))]
    filled = [{**row, **{answers[role]: "" for role in absent}} for row in rows[:1000]]
    found = task.columns(filled, kept, source)
    return {r: c for r, c in found.items() if r not in answers or (r == written and r not in absent)}


def _names(task: Task, role: str) -> Iterable[str]:
    return next(asked.names for asked in task.fields if asked.role == role)


def sides_of(task: Task | None, features: Iterable[Feature]) -> Sides:
    """What features read and write; of speech only what is written."""
    found = list(features)
    if not isinstance(task, WritingTask):
        return {"text": [ids for feature in found for ids in texts_of(feature)]}
    sides: Sides = {} if task.hears else {"source": [ids for feature in found for ids in texts_of(feature)]}
    written = [torch.tensor(f.inputs["labels"]) for f in found if f.inputs.get("labels")]
    return sides | ({"target": written} if written else {})


def marked(sides: Sides) -> str:
    """sha256 of the sequences, side by side."""
    return digest(
        [ids for texts in sides.values() for ids in texts], {name: len(texts) for name, texts in sides.items()}
    )
