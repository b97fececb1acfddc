"""Labelled data for one task: which task it is, rows read and divided, and found again by later commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrate.divide import Division, divide
from calibrate.rows import Table, read_rows
from compress.core.errors import DataError, ModelError, UsageError
from compress.core.fingerprint import digest
from compress.core.registry import load, names
from compress.core.task import Context, Row, Task
from compress.core.writing import WritingTask
from compress.recipe import Recipe
from compress.train.score import Part

TASK_FILE = Path("compress") / "task.json"
"""In the folder of a tuned model: what it was tuned on, so that later commands judge it on the same held-out rows."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for. task: its name or `auto`. columns: role -> column. labels: of the model, () if new."""

    data: str
    task: str
    columns: Mapping[str, str]
    seed: int
    strict: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """Rows of one source, divided. card: plain values for the report. notes: sentences."""

    task: Task
    rows: tuple[Row, ...]
    columns: dict[str, str]
    labels: tuple[str, ...]
    division: Division
    card: dict[str, Any]
    notes: tuple[str, ...]

    def part(self, name: str, context: Context) -> Part:
        """Rows and features of `train`, `validation` or `test`."""
        rows = [self.rows[n] for n in getattr(self.division, name)]
        return Part(rows, self.task.features(rows, context))


def choose_task(name: str, architectures: Sequence[str]) -> Task | None:
    """The task called `name`; with `auto` that of the model's class, None when it has no task's head.

    Raises UsageError for names that there are not.
    """
    if name != "auto":
        task: Task = load("task", name)
        return task
    tasks: list[Task] = [load("task", known) for known in names("task")]
    return next((t for t in tasks for a in architectures if t.fits(a)), None)


def read_labelled(wanted: Wanted, architectures: Sequence[str]) -> Labelled:
    """Read, check and divide the rows of `wanted.data`. Raises DataError and UsageError."""
    task = choose_task(wanted.task, architectures)
    table = read_rows(wanted.data, tagged=task is not None and task.words, audio=task is not None and task.hears)
    if task is None:
        task, table = _task_of_columns(table, wanted)
    return _divided(task, table, wanted)


def _divided(task: Task, table: Table, wanted: Wanted) -> Labelled:
    columns = task.columns(table.rows, wanted.columns, table.source)
    texts = task.texts(table.rows, columns, table.source)
    labels = task.labels(table.rows, columns, table.source)
    rows, mended = task.sound(table.rows, columns)
    if mended and wanted.strict:
        raise DataError(f"row {mended[0][0] + 1} of {table.source} has an I- tag that no B- tag begins; mend it, or "
                        "leave out --strict to have it read as B-")  # fmt: skip
    rows = task.located(rows, columns, _folder_of(table.source))
    strata = task.strata(rows, columns)
    division = divide(texts, strata, table.given, wanted.seed)
    found = task.balance(rows, columns)
    notes = [*table.notes, *_remarks(division, found, sum(count for _, count in mended))]
    if wanted.labels:
        if unknown := sorted(set(labels) - set(wanted.labels)):
            raise DataError(
                f"{table.source} has labels that the model does not know: {', '.join(unknown[:8])}; it knows "
                f"{', '.join(wanted.labels[:8])}; to use it as text only, name its column with --text-column"
            )
        labels = wanted.labels
    elif missing := sorted(set(labels) - set(task.labels([rows[n] for n in division.train], columns, table.source))):
        raise DataError(f"the labels {', '.join(missing[:8])} are in no training row, only in held-out ones; "
                        "give more rows of them, or leave them out")  # fmt: skip
    card = {
        "source": table.source,
        "format": table.format,
        "encoding": table.encoding,
        "task": task.name,
        "columns": columns,
        "rows": len(table.rows),
        "copies": division.copies,
        "train": len(division.train),
        "validation": len(division.validation),
        "test": len(division.test),
        "labels": found,
        "seed": wanted.seed,
        "digest": digest([texts, strata, division.test]),
    }
    return Labelled(task, tuple(rows), columns, labels, division, card, tuple(notes))


def _task_of_columns(table: Table, wanted: Wanted) -> tuple[Task, Table]:
    """The first task whose columns are all there; a text file may be words with tags."""
    there = list(dict.fromkeys(str(key) for row in table.rows[:1000] for key in row))
    if absent := next((column for column in wanted.columns.values() if column not in there), None):
        raise DataError(f"{table.source} has no column {absent!r}; the columns are: {', '.join(there[:20])}")
    tasks: list[Task] = [task for name in names("task") if (task := load("task", name)).tunable]
    tasks = [task for task in tasks if not isinstance(task, WritingTask)]  # an encoder cannot learn to write
    for task in sorted(tasks, key=lambda task: not task.words):  # words are the more unusual column
        with suppress(DataError):
            task.columns(table.rows, wanted.columns, table.source)
            return task, table
    if table.format == "txt":
        with suppress(DataError):
            return next(task for task in tasks if task.words), read_rows(wanted.data, tagged=True)
    raise DataError(f"no task fits the columns of {table.source}; name one with --task ({', '.join(names('task'))})")


def _remarks(division: Division, found: Mapping[str, int], mended: int) -> list[str]:
    said = [f"{mended} I- tags without a B- before them were read as B-."] if mended else []
    if division.copies:
        other = f", {division.conflicts} of them with another label" if division.conflicts else ""
        said.append(f"{division.copies} rows were left out because an earlier row has the same text{other}.")
    if found and max(found.values()) > 10 * min(found.values()):
        low, high = min(found, key=lambda n: found[n]), max(found, key=lambda n: found[n])
        said.append(f"The labels are out of balance: {found[high]} of {high}, {found[low]} of {low}; see --resample.")
    return said


def task_bytes(labelled: Labelled, max_length: int) -> bytes:
    """The bytes of TASK_FILE for a model tuned on `labelled`."""
    path = Path(labelled.card["source"]).expanduser()
    kept = {
        "task": labelled.task.name,
        "data": str(path.resolve()) if path.exists() else labelled.card["source"],
        "local": path.exists(),
        "columns": labelled.columns,
        "seed": labelled.card["seed"],
        "max_length": max_length,
        "digest": labelled.card["digest"],
    }
    return json.dumps(kept, indent=1).encode() + b"\n"


def read_task(folder: Path) -> dict[str, Any] | None:
    """What `tune` wrote, None in other folders. Raises ModelError when it is damaged."""
    path = folder / TASK_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in ("task", "data", "local", "columns", "seed", "max_length", "digest")}
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{path} is damaged; delete it, or tune the model again") from None


@dataclass(frozen=True)
class Found:
    """Labelled rows for a model, or None where text is all there is to go by, and then perhaps why.

    max_length: tokens of a row.
    """

    labelled: Labelled | None = None
    max_length: int = 0
    note: str = ""


def find_labelled(recipe: Recipe, folder: Path, config: Any) -> Found:
    """The rows to calibrate and judge with: those of --data where they have labels, else those the model was tuned on.

    Rows that the model was tuned on are divided as they were then, however they are named. Raises UsageError for a
    --task without rows, DataError for rows that a task was asked for and that do not fit it.
    """
    task = choose_task(recipe.task, config.architectures or [])
    if task is None or recipe.text_column is not None:
        return Found()
    tuned = read_task(folder)
    tuned = tuned if tuned is not None and tuned["task"] == task.name else None
    if recipe.data is None and tuned is None:
        if recipe.task != "auto":
            raise UsageError(f"--task {task.name} needs rows to judge with; give --data")
        return Found()
    if recipe.data is None and tuned is not None and tuned["local"] and not Path(tuned["data"]).exists():
        return Found(note=f"{tuned['data']}, which the model was tuned on, is gone; give --data to judge the task.")
    data = recipe.data if recipe.data is not None else str(tuned["data"] if tuned else "")
    again = tuned is not None and data in (tuned["data"], _relative(data, tuned["data"]))
    wanted = Wanted(
        data=data,
        task=task.name,
        columns=recipe.columns or (tuned["columns"] if tuned is not None and again else {}),
        seed=tuned["seed"] if tuned is not None else recipe.seed,
        labels=tuple(str(config.id2label[n]) for n in sorted(config.id2label)) if task.classes else (),
    )
    try:
        table = read_rows(data, tagged=task.words, audio=task.hears)
        task.columns(table.rows, wanted.columns, table.source)
    except DataError:
        if again or recipe.columns or recipe.task != "auto" or task.hears:
            raise
        return Found()
    labelled = _divided(task, table, wanted)
    if tuned is not None and again and labelled.card["digest"] != tuned["digest"]:
        said = f"{data} has changed since the model was tuned on it: rows held out now may have been trained on."
        labelled = replace(labelled, notes=(*labelled.notes, said))
    return Found(labelled, tuned["max_length"] if tuned is not None else recipe.seq_len)


def hears(recipe: Recipe, config: Any) -> bool:
    """Whether the model's task is one of speech, and its rows are not to be read as text only."""
    task = choose_task(recipe.task, config.architectures or [])
    return task is not None and task.hears and recipe.text_column is None


def has_rows(recipe: Recipe, folder: Path) -> bool:
    """Whether --data or the file that the model was tuned on is there to be read."""
    tuned = read_task(folder)
    return recipe.data is not None or (tuned is not None and (not tuned["local"] or Path(tuned["data"]).exists()))


def _folder_of(source: str) -> Path:
    """The folder that paths in the rows of `source` are relative to."""
    path = Path(source).expanduser().resolve()
    return path if path.is_dir() else path.parent


def _relative(data: str, tuned: str) -> str | None:
    """`data`, when it is another name of the path `tuned`."""
    path = Path(data).expanduser()
    return data if path.exists() and str(path.resolve()) == tuned else None
