"""Text or text pair -> one class: topics, sentiment, entailment. Accuracy and macro F1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compress.core.errors import DataError
from compress.core.task import Context, Feature, Field, Metric, Row, Task, text_of

if TYPE_CHECKING:
    from torch import Tensor

    from compress.core.numerics.bootstrap import Array


class TextClassification(Task):
    """One label a row; two text columns are encoded as a pair."""

    name = "text-classification"
    auto = "AutoModelForSequenceClassification"
    peft = "SEQ_CLS"
    architecture = "ForSequenceClassification"
    fields = (
        Field("text", ("text", "sentence", "sentence1", "premise", "review", "content", "body", "document", "tweet",
                       "question", "question1", "query", "comment", "message", "article")),
        Field("label", ("label", "labels", "class", "category", "target", "topic", "sentiment", "intent", "y"),
              answer=True),
        Field("pair", ("sentence2", "hypothesis", "text2", "text_pair", "question2"), required=False),
    )  # fmt: skip
    metrics = (Metric("accuracy"), Metric("f1_macro"))
    config: ClassVar = {"problem_type": "single_label_classification"}

    def strata(self, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
        """By label."""
        return [label_of(row, columns["label"], number) for number, row in enumerate(rows)]

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """Label names: numbers in order, else sorted. Raises DataError for floats, blanks and a single class."""
        column = columns["label"]
        names = {label_of(row, column, number, source) for number, row in enumerate(rows)}
        if len(names) < 2:
            raise DataError(f"column {column!r} of {source} holds the label {next(iter(names), None)!r} only; "
                            "a classifier needs two classes or more")  # fmt: skip
        if len(names) > max(2, len(rows) // 2):
            raise DataError(
                f"column {column!r} of {source} holds {len(names)} different labels in {len(rows)} rows; "
                "name the column of classes with --columns label=COLUMN"
            )
        return sorted_labels(names)

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """One feature a row, cut to max_length; `labels` is the class number."""
        column, pair = context.columns["text"], context.columns.get("pair")
        known = {name: number for number, name in enumerate(context.labels)}
        found = []
        for number, row in enumerate(rows):
            texts = [text_of(row, c, number) for c in (column, pair) if c is not None]
            full = context.tokenizer(*texts, truncation=True, max_length=context.max_length)
            inputs: dict[str, Any] = {name: list(ids) for name, ids in full.items()}
            if context.columns.get("label") is not None:
                label = label_of(row, context.columns["label"], number)
                if label not in known:
                    raise DataError(f"row {number + 1} has the label {label!r}, which the model does not know; "
                                    f"it knows {', '.join(context.labels[:12])}")  # fmt: skip
                inputs["labels"] = known[label]
            found.append(Feature(inputs, number, truncated=len(inputs["input_ids"]) >= context.max_length))
        return found

    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Padded by the tokenizer to the longest."""
        batch = context.tokenizer.pad([f.inputs for f in features], return_tensors="pt")
        return dict(batch)

    def answers(self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context) -> list[int]:
        """The class numbers of the largest logits (C,)."""
        del features, context
        return [int(logits.argmax()) for logits in outputs]

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 3 C): by class hits, wrong claims and misses."""
        known = {name: number for number, name in enumerate(context.labels)}
        classes = len(context.labels)
        counts = np.zeros((len(rows), 3, classes))
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            truth = known[label_of(row, context.columns["label"], number)]
            if answer == truth:
                counts[number, 0, truth] = 1
            else:
                counts[number, 1, answer] = counts[number, 2, truth] = 1
        return counts.reshape(len(rows), -1)

    def figures(self, totals: Array) -> Array:
        """Accuracy; F1 averaged over the classes that occur, as scikit-learn does."""
        hits, wrong, missed = np.moveaxis(totals.reshape(len(totals), 3, -1), 1, 0)
        rows = (hits + missed).sum(1)
        occurs = hits + wrong + missed > 0
        f1 = 2 * hits / np.where(occurs, 2 * hits + wrong + missed, 1)
        return np.stack([hits.sum(1) / rows, f1.sum(1) / occurs.sum(1)], axis=1)

    def wrong(self, totals: Array) -> Array:
        """Every hit is a miss, and claimed for the class that follows."""
        hits, wrong, missed = np.moveaxis(totals.reshape(len(totals), 3, -1), 1, 0)
        found = np.stack([np.zeros_like(hits), wrong + np.roll(hits, 1, -1), missed + hits], axis=1)
        return found.reshape(len(totals), -1)

    def balance(self, rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, int]:
        """Rows of each class."""
        counted = Counter(label_of(row, columns["label"], number) for number, row in enumerate(rows))
        return {name: counted[name] for name in sorted_labels(counted)}


def label_of(row: Row, column: str, number: int, source: str = "the data") -> str:
    """The label in a cell as a name; 3, 3.0 and "3" are one label. Raises DataError for blanks and for real numbers."""
    value = row.get(column)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "" or text != text:
        raise DataError(f"row {number + 1} of {source} has no label in column {column!r}; fill it, or leave such rows "
                        f"out with --filter '{column}!='")  # fmt: skip
    try:
        real = float(text) if isinstance(text, str) and "." in text else text
    except ValueError:
        real = text
    if isinstance(real, float):
        if not math.isfinite(real) or real != int(real):
            raise DataError(
                f"row {number + 1} of {source} has {value!r} in column {column!r}; labels are classes, not real "
                "numbers; name the column of classes with --columns label=COLUMN, or write a class for each range"
            )
        return str(int(real))
    return str(text)


def sorted_labels(names: Any) -> tuple[str, ...]:
    """Whole numbers in numeric order, else by alphabet."""
    found = set(names)
    if all(name.lstrip("-").isdecimal() for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


TASK = TextClassification()
