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
    from torch import Tensor, nn

    from compress.core.numerics.bootstrap import Array

Row = Mapping[str, Any]
IGNORED = -100  # the label of positions that are not scored: torch's own convention
TRUTHS = ("labels", "start_positions", "end_positions")  # inputs of a batch that are answers, not read


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
    model has something better than the best of each. settings: what the task has read from the model's folder, and
    what all rows together told it.
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

    Ids are a list, or where a row is several texts a list of lists of one length. row: number of the row. units: what
    each scored position stands for (the number of the word, say). spans: first and last character + 1 of what each
    position stands for, None where that is no text of the row. truncated: a part of the row did not fit.
    """

    inputs: dict[str, Any]
    row: int
    units: tuple[int, ...] = ()
    truncated: bool = False
    spans: tuple[tuple[int, int] | None, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,) of the ids or of the samples of speech, (C, L) of several texts."""
        if "samples" in self.inputs:
            return (len(self.inputs["samples"]),)
        ids = self.inputs["input_ids"]
        return (len(ids), len(ids[0])) if ids and isinstance(ids[0], list) else (len(ids),)


@dataclass(frozen=True)
class Flaw:
    """Something in a row that was worked around. kind: one of Task.flaws. count: how often it is there."""

    row: int
    kind: str
    count: int = 1


class Task(ABC):
    """One task. A new one is a new file in compress/core/tasks with `TASK = ItsClass()`."""

    name: ClassVar[str]
    auto: ClassVar[str]  # the AutoModel class of transformers
    peft: ClassVar[str]  # peft's name of the task
    architecture: ClassVar[str | tuple[str, ...]] = ()  # how names of its model classes end; () where they do not tell
    fields: ClassVar[tuple[Field, ...]]
    metrics: ClassVar[tuple[Metric, ...]]  # the first one says which checkpoint is best, see `aim`
    flaws: ClassVar[Mapping[str, tuple[str, str]]] = {}  # kind -> what was done with {count}, what --strict says
    config: ClassVar[dict[str, Any]] = {}  # of a new head, beside its labels
    classes: ClassVar[bool] = True  # the model's outputs are scores of classes, named in its config
    words: ClassVar[bool] = False  # a row is words with a tag each
    text: ClassVar[bool] = False  # a row is a document without an answer
    tunable: ClassVar[bool] = True
    score_batch: ClassVar[int] = 32  # features scored at once
    hears: ClassVar[bool] = False  # a row is speech: its models read input_features

    @property
    def columns_asked(self) -> int:
        """How many columns there must be: where several tasks fit a file, the one that asks for most is meant."""
        return sum(asked.required for asked in self.fields)

    def fits(self, architecture: str) -> bool:
        """Whether a model class is one of this task's."""
        return bool(self.architecture) and architecture.endswith(self.architecture)

    def columns(self, rows: Sequence[Row], given: Mapping[str, str], source: str) -> dict[str, str]:
        """role -> column name: what the user named, else the first usual name that is there.

        Raises DataError listing the columns when one is not there or cannot be told.
        """
        there = list(dict.fromkeys(str(key) for row in rows[:1000] for key in row))
        listed = ", ".join(repr(name) if not name.isprintable() else name for name in there[:20]) or "none"
        roles = [asked.role for asked in self.fields]
        if strange := next((role for role in given if role not in roles), None):
            raise DataError(f"--columns {strange}={given[strange]}: {self.name} has no column of that kind; it has "
                            f"{', '.join(roles)}")  # fmt: skip
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

    def documents(self, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str] | None:
        """What several rows may be about: rows with the same are in one part of the data. None: nothing is shared."""
        del rows, columns
        return None

    def located(self, rows: Sequence[Row], columns: Mapping[str, str], folder: Path) -> list[Row]:
        """Rows whose files are found: paths in their cells are relative to `folder`, that of the table."""
        del columns, folder
        return list(rows)

    def strata(self, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
        """A group for each row; every part of the data gets the same share of each."""
        del columns
        return [""] * len(rows)

    def sound(self, rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[list[Row], list[Flaw]]:
        """Rows with mended answers, and where that was needed."""
        del columns
        return list(rows), []

    def survey(self, rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """What only all rows together tell: settings for Context, sentences for the report. rows: sound ones."""
        del rows, columns
        return {}, []

    @abstractmethod
    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """Names of the classes in these rows, in a fixed order; () when the task has none. Raises DataError."""

    @abstractmethod
    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """Tokenized rows, in order. Rows without labels give features without. Raises DataError."""

    def examples(self, rows: Sequence[Row], context: Context) -> list[tuple[Feature, ...]]:
        """What is trained on: features of a row that go into one batch together, by default each by itself."""
        return [(feature,) for feature in self.features(rows, context)]

    def unread(self, rows: Sequence[Row], features: Sequence[Feature], context: Context) -> list[str]:
        """What of the rows the model will not see, besides what was cut off, each as a piece of text."""
        del rows, features, context
        return []

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

    def outputs(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """What answers are made from, (B, ...), of a model's output for `inputs`."""
        del inputs
        logits: Tensor = output.logits
        return logits

    def run(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """`outputs` of a batch without its truths, and without positions that some methods put before the text."""
        read = {name: tensor for name, tensor in batch.items() if name not in TRUTHS}
        return read_part(self.outputs(model(**read), read), read)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], context: Context) -> Tensor | None:
        """The loss of a batch of whole examples, with gradients; None: the model's own loss is what is trained."""
        del model, batch, context
        return None

    def aim(self, context: Context) -> Metric:
        """The figure that says which checkpoint is best."""
        del context
        return self.metrics[0]

    def compared(self, output: Tensor, feature: Feature) -> Tensor | None:
        """(n, C): logits of a feature whose distributions KL compares; None where there are none. output: its own."""
        if not self.classes:
            return None
        if output.ndim == 1:
            return output[None]
        labels: Any = feature.inputs.get("labels")
        return output[[n for n, truth in enumerate(labels) if truth != IGNORED]] if isinstance(labels, list) else output

    @abstractmethod
    def answers(self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context) -> list[Any]:
        """One answer for every row of `features`, in order of rows. outputs: the model's, one row (...) a feature."""

    @abstractmethod
    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, k) float64: what each row adds to the sums that `figures` are made from."""

    @abstractmethod
    def figures(self, totals: Array) -> Array:
        """(R, k) sums -> (R, m) figures, in the order of `metrics`."""

    def wrong(self, totals: Array) -> Array | None:
        """(R, k) sums -> what they were if every answer were wrong; None where answers are not right or wrong."""
        del totals
        return None

    def balance(self, rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, int]:
        """How often each label occurs; {} where that says nothing."""
        del rows, columns
        return {}


def read_part(outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Outputs (B, L, ...) without the learned positions that some methods put before the text; (B, C) as they are."""
    return outputs[:, -inputs["input_ids"].shape[-1] :] if outputs.ndim > 2 else outputs


def text_of(row: Row, column: str, number: int, source: str = "the data") -> str:
    """The text in a cell. Raises DataError when it is not text."""
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"row {number + 1} of {source} has {value!r} in column {column!r} where text should be")
    return value
