"""Labelled data for one task: which task it is, rows read and divided, and found again by later commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibrate.choose import Choice
from calibrate.divide import Division, divide, few_documents
from calibrate.rows import Reading, Table, read_rows
from compress.core.errors import DataError, ModelError, UsageError
from compress.core.fingerprint import digest
from compress.core.registry import load, names
from compress.core.task import Context, Flaw, Row, Task
from compress.core.writing import WritingTask
from compress.pipeline.written import documents_of
from compress.recipe import Recipe, TuneRecipe
from compress.train.score import Part

TASK_FILE = Path("compress") / "task.json"
"""In the folder of a tuned model: what it was tuned on, so that later commands judge it on the same held-out rows."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for. task: its name or `auto`. columns: role -> column. labels: of the model, () if new.

    choice: which of the rows. head: labels of the head that the model has, kept where the rows have no other ones.
    tokenizer: of the model; its chat template makes texts of conversations.
    """

    data: str
    task: str
    columns: Mapping[str, str]
    seed: int
    strict: bool = False
    labels: tuple[str, ...] = ()
    choice: Choice = field(default_factory=Choice)
    head: tuple[str, ...] = ()
    tokenizer: Any = None

    def read(self, task: Task | None) -> Table:
        """The rows of the source as `task` reads files, those of `choice`. Raises DataError and RecipeError."""
        reading = Reading(task is not None and task.words, task is not None and task.hears)
        return read_rows(self.data, reading, self.choice, self.seed)


def choice_of(recipe: Recipe | TuneRecipe) -> Choice:
    """Which rows a recipe asks for."""
    return Choice(recipe.split, tuple(recipe.filter), recipe.select)


@dataclass(frozen=True)
class Labelled:
    """Rows of one source, divided. card: plain values for the report. notes: sentences.

    settings: what all rows together say, for Context.
    """

    task: Task
    rows: tuple[Row, ...]
    columns: dict[str, str]
    labels: tuple[str, ...]
    division: Division
    card: dict[str, Any]
    notes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def part(self, name: str, context: Context) -> Part:
        """Rows and features of `train`, `validation` or `test`."""
        rows = [self.rows[n] for n in getattr(self.division, name)]
        if name != "train":
            return Part(rows, self.task.features(rows, context))
        examples = self.task.examples(rows, context)
        return Part(rows, [feature for example in examples for feature in example], examples)


def choose_task(name: str, architectures: Sequence[str]) -> Task | None:
    """The task called `name`; with `auto` that of the model's class, None when it has no task's head.

    Raises UsageError for names that there are not.
    """
    if name != "auto":
        task: Task = load("task", name)
        return task
    tasks: list[Task] = [load("task", known) for known in names("task")]
    return next((t for t in tasks for a in architectures if t.fits(a)), None)


def labels_of_head(name: str, config: Any) -> tuple[str, ...]:
    """The classes of the head that the model has for the task `name`, or for its own; () where it has none."""
    task = choose_task("auto", config.architectures or [])
    return names_of(config) if task is not None and task.classes and name in ("auto", task.name) else ()


def names_of(config: Any) -> tuple[str, ...]:
    """The classes of a model, by number."""
    return tuple(str(config.id2label[n]) for n in sorted(config.id2label))


def read_labelled(wanted: Wanted, architectures: Sequence[str]) -> Labelled:
    """Read, check and divide the rows of `wanted.data`. Raises DataError and UsageError.

    A language model learns classes where the rows have them, else the text.
    """
    task = choose_task(wanted.task, architectures)
    table = wanted.read(task)
    if task is None:
        task, table = _task_of_columns(table, wanted)
    elif task.text and wanted.task == "auto":
        with suppress(DataError):
            task, table = _task_of_columns(table, wanted, classes=True)
    return _divided(task, table, wanted)


def _divided(task: Task, table: Table, wanted: Wanted) -> Labelled:
    # rows are counted as they were chosen
    called = f"the chosen rows of {table.source}" if wanted.choice != Choice() else table.source
    if task.text:
        table = documents_of(table, wanted.columns.get("text"), wanted.tokenizer)
    columns = task.columns(table.rows, wanted.columns, table.source)
    texts = task.texts(table.rows, columns, called)
    labels = task.labels(table.rows, columns, called)
    rows, flaws = task.sound(table.rows, columns)
    if flaws and wanted.strict:
        raise DataError(f"row {flaws[0].row + 1} of {called} {task.flaws[flaws[0].kind][1]}")
    settings, told = task.survey(rows, columns)
    rows = task.located(rows, columns, folder_of(table.source))
    strata = task.strata(rows, columns)
    documents = task.documents(rows, columns)
    division = divide(texts, strata, table.given, wanted.seed, documents)
    if documents is not None and few_documents(documents) and len(set(documents)) < len(texts):
        told.append(f"There are {len(set(documents))} different contexts, too few to hold some out: rows of one "
                    "context are in training and in held-out parts.")  # fmt: skip
    found = task.balance(rows, columns)
    notes = [*table.notes, *_repairs(task, flaws), *told, *_remarks(division, found)]
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
    elif set(labels) <= set(wanted.head):
        if absent := ", ".join([name for name in wanted.head if name not in labels][:8]):
            notes.append(f"No row has the label {absent}, which the model's head has: it is kept and learns nothing.")
        labels = wanted.head
    card = {
        "source": table.source,
        "format": table.format,
        "encoding": table.encoding,
        "task": task.name,
        "columns": columns,
        **wanted.choice.card(),
        "rows": len(table.rows),
        "copies": division.copies,
        "train": len(division.train),
        "validation": len(division.validation),
        "test": len(division.test),
        "labels": found,
        "seed": wanted.seed,
        "digest": digest([texts, strata, division.test, _truths(task, rows, columns), wanted.choice.card() or {}]),
    }
    return Labelled(task, tuple(rows), columns, labels, division, card, tuple(notes), settings)


def _truths(task: Task, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
    """The answers as text: rows whose answers changed are other rows."""
    read = [columns[asked.role] for asked in task.fields if asked.answer and asked.role in columns]
    return [repr([row.get(column) for column in read]) for row in rows]


def _task_of_columns(table: Table, wanted: Wanted, classes: bool = False) -> tuple[Task, Table]:
    """The task whose columns are all there, those that ask for most first; a text file may be words with tags.

    classes: of tasks with classes only, and a text file is text. Text alone is no task: it must be asked for, or the
    model's class name it.
    """
    there = list(dict.fromkeys(str(key) for row in table.rows[:1000] for key in row))
    if absent := next((column for column in wanted.columns.values() if column not in there), None):
        raise DataError(f"{table.source} has no column {absent!r}; the columns are: {', '.join(there[:20])}")
    known: list[Task] = [load("task", name) for name in names("task")]
    tasks = [t for t in known if t.tunable and not t.text and (t.classes or not classes)]
    tasks = [task for task in tasks if not isinstance(task, WritingTask)]  # an encoder cannot learn to write
    # what asks for most is surest, then what finds its answers too; words are the most unusual column
    for task in sorted(tasks, key=lambda task: (-task.columns_asked, not _answered(task), not task.words)):
        with suppress(DataError):
            task.columns(table.rows, wanted.columns, table.source)
            return task, table
    if table.format == "txt" and not classes:
        with suppress(DataError):
            tagger = next(task for task in tasks if task.words)
            return tagger, wanted.read(tagger)
    raise DataError(f"no task fits the columns of {table.source}; name one with --task ({', '.join(names('task'))})")


def _repairs(task: Task, flaws: Sequence[Flaw]) -> list[str]:
    counts = {kind: sum(flaw.count for flaw in flaws if flaw.kind == kind) for kind in task.flaws}
    return [said.format(count=counts[kind]) for kind, (said, _) in task.flaws.items() if counts[kind]]


def _answered(task: Task) -> bool:
    return any(field.answer and field.required for field in task.fields)


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
        "local": path.exists(),
        "columns": labelled.columns,
        "seed": labelled.card["seed"],
        "choice": {name: labelled.card[name] for name in Choice().__dataclass_fields__ if name in labelled.card},
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
        kept = {key: found[key] for key in ("task", "data", "local", "columns", "seed", "max_length", "digest")}
        given = found.get("choice", {})
        filters = tuple(map(str, given.get("filters", ())))
        return {**kept, "choice": Choice(str(given.get("split", "")), filters, str(given.get("select", "")))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is damaged; delete it, or tune the model again") from None


@dataclass(frozen=True)
class Found:
    """Labelled rows for a model, or None where text is all there is to go by, and then perhaps why.

    max_length: tokens of a row.
    """

    labelled: Labelled | None = None
    max_length: int = 0
    note: str = ""


def find_labelled(recipe: Recipe, folder: Path, config: Any, tokenizer: Any = None) -> Found:
    """The rows to calibrate and judge with: those of --data where they have labels, else those the model was tuned on.

    Rows that the model was tuned on are divided as they were then, however they are named. Raises UsageError for a
    --task without rows, DataError for rows that a task was asked for and that do not fit it. Language models go by
    text: they have rows here only when they were tuned on them and nothing else was given.
    """
    tuned = read_task(folder)
    task = choose_task(recipe.task, config.architectures or [])
    if task is None and tuned is not None:
        task = choose_task(tuned["task"], ())  # embedders: their class does not tell
    choice = choice_of(recipe)
    if task is None or recipe.text_column is not None:
        if choice != Choice():
            raise UsageError("--split, --filter and --select are for rows of a task; give --task, or leave them out")
        return Found()
    tuned = tuned if tuned is not None and tuned["task"] == task.name else None
    if task.text and tuned is None:
        return Found()
    if recipe.data is None and tuned is None:
        if recipe.task != "auto" or choice != Choice():
            asked = f"--task {task.name}" if recipe.task != "auto" else "--split, --filter or --select"
            raise UsageError(f"{asked} needs rows to judge with; give --data")
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
        labels=names_of(config) if task.classes else (),
        choice=choice if choice != Choice() or tuned is None or not again else tuned["choice"],
        tokenizer=tokenizer,
    )
    if task.text and not again:
        return Found()
    try:
        table = wanted.read(task)
        if not task.text:
            task.columns(table.rows, wanted.columns, table.source)
    except DataError:
        if again or recipe.columns or recipe.task != "auto" or choice != Choice() or task.hears:
            raise
        return Found()
    labelled = _divided(task, table, wanted)
    if tuned is not None and again and labelled.card["digest"] != tuned["digest"]:
        why = "has changed since" if wanted.choice == tuned["choice"] else "was divided from other rows when"
        said = f"{data} {why} the model was tuned on it: rows held out now may have been trained on."
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


def folder_of(source: str) -> Path:
    """The folder that paths in the rows of `source` are relative to."""
    path = Path(source).expanduser().resolve()
    return path if path.is_dir() else path.parent


def _relative(data: str, tuned: str) -> str | None:
    """`data`, when it is another name of the path `tuned`."""
    path = Path(data).expanduser()
    return data if path.exists() and str(path.resolve()) == tuned else None
