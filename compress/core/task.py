"""What a task is: the columns it reads, how a row becomes model inputs, and how answers are scored.

One file of `compress.core.tasks` each. Everything that differs between a topic classifier and a NER tagger is asked of
the task; data, training, quantization and measuring know rows, features, answers and counts only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from compress.core.numerics.bootstrap import Array

Row = Mapping[str, Any]
IGNORED = -100  # the label of positions that are not scored: torch's own convention


@dataclass(frozen=True)
class Field:
    """One column that a task reads. names: what it is usually called, best first, lower case.

    answer: it holds what is to be found, not text that the model reads.
    """

    role: str
    names: tuple[str, ...]
    required: bool = True
    answer: bool = False


@dataclass(frozen=True)
class Metric:
    """One figure of a task: the name in --json and its unit."""

    name: str
    unit: str = "fraction"
    lower_is_better: bool = False


@dataclass(frozen=True)
class Context:
    """What rows are read with. columns: role -> column. labels: names by class number, () where a task has none.

    max_length: tokens that the model takes. decode: scores (n, C) of a row's words -> their classes together, where the
    model has something better than the best of each. settings: what the task has read from the model's folder.
    """

    tokenizer: Any
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    max_length: int
    decode: Callable[[Tensor], list[int]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Feature:
    """Model inputs of one row, or of one window of it: names -> ids, `labels` included.

    row: number of the row. units: what each scored position stands for (the number of the word, say).
    truncated: a part of the row did not fit.
    """

    inputs: dict[str, Any]
    row: int
    units: tuple[int, ...] = ()
    truncated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,) of the ids, or of the samples of speech."""
        return (len(self.inputs["input_ids" if "input_ids" in self.inputs else "samples"]),)


class Task(ABC):
    """One task. A new one is a new file in compress/core/tasks with `TASK = ItsClass()`."""

    name: ClassVar[str]
    auto: ClassVar[str]  # the AutoModel class of transformers
    peft: ClassVar[str]  # peft's name of the task
    architecture: ClassVar[str] = ""  # how the names of its model classes end; empty where the class does not tell
    fields: ClassVar[tuple[Field, ...]]
    metrics: ClassVar[tuple[Metric, ...]]  # the first one says which checkpoint is best
    config: ClassVar[dict[str, Any]] = {}  # of a new head, beside its labels
    classes: ClassVar[bool] = True  # the model's outputs are scores of classes, named in its config
    words: ClassVar[bool] = False  # a row is words with a tag each
    tunable: ClassVar[bool] = True
    hears: ClassVar[bool] = False  # a row is speech: its models read input_features
    score_batch: ClassVar[int] = 32  # features scored at once

    def fits(self, architecture: str) -> bool:
        """Whether a model class is one of this task's."""
        return bool(self.architecture) and architecture.endswith(self.architecture)

    def columns(self, rows: Sequence[Row], given: Mapping[str, str], source: str) -> dict[str, str]:
        """role -> column name: what the user named, else the first usual name that is there.

        Raises DataError listing the columns when one is not there or cannot be told.
        """
        there = list(dict.fromkeys(str(key) for row in rows[:1000] for key in row))
        listed = ", ".join(repr(name) if not name.isprintable() else name for name in there[:20]) or "none"
        found: dict[str, str] = {}
        for asked in self.fields:
            wanted = given.get(asked.role)
            if wanted is not None and wanted not in there:
                raise DataError(f"{source} has no column {wanted!r}; the columns are: {listed}")
            by_name = {name.lower(): name for name in reversed(there) if name not in found.values()}
            usual = next((by_name[name] for name in asked.names if name in by_name), None)
            if (column := wanted or usual) is not None:
                found[asked.role] = column
            elif asked.required:
                raise DataError(
                    f"{self.name} reads a column of {asked.role} and {source} has none called "
                    f"{' or '.join(asked.names[:4])}; the columns are: {listed}; name it with --columns "
                    f"{asked.role}=COLUMN"
                )
        return found

    def texts(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> list[str]:
        """What the model reads of each row, as one string: rows with the same are copies. Raises DataError."""
        read = [columns[f.role] for f in self.fields if f.role in columns and not f.answer]
        return [" ".join(text_of(row, column, n, source) for column in read) for n, row in enumerate(rows)]

    def located(self, rows: Sequence[Row], columns: Mapping[str, str], folder: Path) -> list[Row]:
        """Rows whose files are found: paths in their cells are relative to `folder`, that of the table."""
        del columns, folder
        return list(rows)

    def strata(self, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
        """A group for each row; every part of the data gets the same share of each."""
        del columns
        return [""] * len(rows)

    def sound(self, rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[list[Row], list[tuple[int, int]]]:
        """Rows with mended answers, and (row number, how many were mended) of those where it was needed."""
        del columns
        return list(rows), []

    @abstractmethod
    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """Names of the classes in these rows, in a fixed order; () when the task has none. Raises DataError."""

    @abstractmethod
    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """Tokenized rows, in order. Rows without labels give features without. Raises DataError."""

    @abstractmethod
    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """One padded batch of int64 tensors (B, ...), `labels` included where there are any."""

    def settings(self, folder: Path) -> dict[str, Any]:
        """What the task needs to know of a model beside its config. Raises ModelError."""
        del folder
        return {}

    def surveyed(self, rows: Sequence[Row], context: Context) -> Context:
        """`context` with what all training rows together tell."""
        del rows
        return context

    def outputs(self, output: Any) -> Tensor:
        """What answers are made from, (B, ...), of a model's output."""
        logits: Tensor = output.logits
        return logits

    @abstractmethod
    def answers(self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context) -> list[Any]:
        """One answer for every row of `features`, in order of rows. outputs: the model's, one row (...) a feature."""

    @abstractmethod
    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, k) float64: what each row adds to the sums that `figures` are made from."""

    @abstractmethod
    def figures(self, totals: Array) -> Array:
        """(R, k) sums -> (R, m) figures, in the order of `metrics`."""

    def balance(self, rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, int]:
        """How often each label occurs; {} where that says nothing."""
        del rows, columns
        return {}


def text_of(row: Row, column: str, number: int, source: str = "the data") -> str:
    """The text in a cell. Raises DataError when it is not text."""
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"row {number + 1} of {source} has {value!r} in column {column!r} where text should be")
    return value
