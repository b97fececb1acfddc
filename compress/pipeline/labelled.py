"""Labelled data for one task: which task it is, rows read and divided, features, and what the report says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.divide import Division, divide
from calibrate.rows import Table, read_rows
from compress.core.errors import DataError, ModelError
from compress.core.fingerprint import digest
from compress.core.registry import load, names
from compress.core.task import Context, Row, Task
from compress.core.tasks.token_classification import repair
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
    return next((t for t in tasks for a in architectures if t.by_class and a.endswith(t.architecture)), None)


def read_labelled(wanted: Wanted, architectures: Sequence[str]) -> Labelled:
    """Read, check and divide the rows of `wanted.data`. Raises DataError and UsageError."""
    task = choose_task(wanted.task, architectures)
    table = read_rows(wanted.data, tagged=task is not None and task.name == "token-classification")
    if task is None:
        task, table = _task_of_columns(table, wanted)
    columns = task.columns(table.rows, wanted.columns, table.source)
    rows, repaired = _repaired(task, table, columns, wanted.strict)
    labels = task.labels(rows, columns, table.source)
    found = task.balance(rows, columns)
    texts = [" ".join(_flat(row.get(column)) for role, column in columns.items() if role not in _ANSWERS)
             for row in rows]  # fmt: skip
    strata = [str(row.get(columns["label"])) for row in rows] if "label" in columns else [""] * len(rows)
    division = divide(texts, strata, table.given, wanted.seed)
    notes = [*table.notes, *_remarks(division, found), *([repaired] if repaired else [])]
    if wanted.labels:
        if unknown := sorted(set(labels) - set(wanted.labels)):
            raise DataError(f"{table.source} has labels that the model does not know: {', '.join(unknown[:8])}; "
                            f"it knows {', '.join(wanted.labels[:8])}")  # fmt: skip
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


_ANSWERS = ("label", "tags", "answers")


def _flat(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _task_of_columns(table: Table, wanted: Wanted) -> tuple[Task, Table]:
    """The first task whose columns are all there; a text file may be words with tags."""
    there = list(dict.fromkeys(str(key) for row in table.rows[:1000] for key in row))
    if absent := next((column for column in wanted.columns.values() if column not in there), None):
        raise DataError(f"{table.source} has no column {absent!r}; the columns are: {', '.join(there[:20])}")
    for name in ("token-classification", *(n for n in names("task") if n != "token-classification")):
        task: Task = load("task", name)
        if not task.tunable:
            continue
        try:
            task.columns(table.rows, wanted.columns, table.source)
        except DataError:
            continue
        return task, table
    if table.format == "txt":
        with suppress(DataError):
            return load("task", "token-classification"), read_rows(wanted.data, tagged=True)
    raise DataError(f"no task fits the columns of {table.source}; name one with --task ({', '.join(names('task'))})")


def _repaired(task: Task, table: Table, columns: Mapping[str, str], strict: bool) -> tuple[list[Row], str]:
    """Rows with sound BIO tags, and the sentence that says how many were not. Raises DataError with `strict`."""
    if task.name != "token-classification":
        return list(table.rows), ""
    rows: list[Row] = []
    changed = 0
    for number, row in enumerate(table.rows):
        value = row.get(columns["tags"])
        tags, count = repair(value.split() if isinstance(value, str) else list(value or []))
        if count and strict:
            raise DataError(f"row {number + 1} of {table.source} has an I- tag that no B- tag begins; mend it, or "
                            "leave out --strict to have it read as B-")  # fmt: skip
        changed += count
        rows.append({**row, columns["tags"]: tags})
    return rows, f"{changed} I- tags without a B- before them were read as B-." if changed else ""


def _remarks(division: Division, found: Mapping[str, int]) -> list[str]:
    said = []
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
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{path} is damaged; delete it, or tune the model again") from None
    return found


@dataclass(frozen=True)
class WantedRows:
    """Labelled rows that a command should use. max_length: tokens of a row."""

    rows: Wanted
    max_length: int


def wanted_rows(recipe: Recipe, folder: Path, config: Any) -> WantedRows | None:
    """The rows to calibrate and judge with: those of --data where they have labels, else those the model was tuned on.

    None for models without a task's head and for data without its columns: then text is all there is to go by.
    """
    task = choose_task(recipe.task, config.architectures or [])
    if task is None:
        return None
    known = read_task(folder) if recipe.data is None else None
    if recipe.data is None and (known is None or not _there(known["data"])):
        return None
    labels = tuple(str(config.id2label[n]) for n in sorted(config.id2label)) if task.by_class else ()
    columns = recipe.columns or (known["columns"] if known else {})
    seed = known["seed"] if known else recipe.seed
    wanted = Wanted(known["data"] if known else str(recipe.data), task.name, columns, seed, labels=labels)
    if known is None and not recipe.columns and not _has_columns(task, wanted):
        return None
    return WantedRows(wanted, known["max_length"] if known else recipe.seq_len)


def _there(data: str) -> bool:
    return Path(data).exists()


def _has_columns(task: Task, wanted: Wanted) -> bool:
    try:
        table = read_rows(wanted.data, tagged=task.name == "token-classification")
        task.columns(table.rows, wanted.columns, table.source)
    except DataError:
        return False
    return True
