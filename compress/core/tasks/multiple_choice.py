"""Question and choices -> the number of the right one. Accuracy.

The model reads every choice with the question and gives each one score; rows may differ in how many choices they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compress.core.errors import DataError
from compress.core.squad import parsed
from compress.core.task import IGNORED, Context, Feature, Field, Metric, Row, Task, text_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.core.numerics.bootstrap import Array

LETTERS = "abcdefghijklmnopqrstuvwxyz"
STEMS = ("choice", "ending", "option", "answer", "sol", "choice_", "ending_", "option_", "answer_")
"""Names of columns with a choice each: choice0, ending_1, optionA ...; a, b, c, d without a stem."""


class MultipleChoice(Task):
    """Choices are a list in one column ({"text": [...]} too), or a column each; a label is a number, letter or text."""

    name = "multiple-choice"
    auto = "AutoModelForMultipleChoice"
    peft = ""
    architecture = "ForMultipleChoice"
    classes = False
    score_batch: ClassVar[int] = 8
    fields = (
        Field("question", ("question", "prompt", "question_stem", "stem", "query", "ctx", "sent1", "startphrase",
                           "goal", "premise")),
        Field("choices", ("choices", "options", "endings", "candidates"), required=False),
        Field("label", ("label", "answer", "correct", "answerkey", "answer_key", "answer_idx", "correct_answer", "gold",
                        "target"), answer=True),
        Field("context", ("context", "passage", "article", "support", "paragraph"), required=False),
    )  # fmt: skip
    metrics = (Metric("accuracy"),)

    @property
    def columns_asked(self) -> int:
        """Question, label and choices, in however many columns."""
        return 3

    def columns(self, rows: Sequence[Row], given: Mapping[str, str], source: str) -> dict[str, str]:
        """The usual, and the roles choice0, choice1 ... where choices have a column each. Raises DataError."""
        there = list(dict.fromkeys(str(key) for row in rows[:1000] for key in row))
        by_name = {name.lower(): name for name in reversed(there)}
        each = [given[f"choice{n}"] for n in range(len(given)) if f"choice{n}" in given]
        if unknown := next((name for name in each if name not in there), None):
            raise DataError(f"{source} has no column {unknown!r}; the columns are: {', '.join(there[:20])}")
        if not each and "choices" not in given and not any(n in by_name for n in self.fields[1].names):
            each = [by_name[name] for name in _numbered(by_name)]
        numbered = {f"choice{n}" for n in range(len(given))}
        usual = {role: name for role, name in given.items() if role not in numbered}
        found = super().columns(rows, usual, source)
        if each and "choices" not in given:
            found.pop("choices", None)
            return {**found, **{f"choice{n}": name for n, name in enumerate(each)}}
        if "choices" not in found:
            raise DataError(f"{self.name} reads choices and {source} has none: neither a column choices or options nor "
                            f"choice0, choice1 ... or A, B, C; the columns are: {', '.join(there[:20])}; name it with "
                            "--columns choices=COLUMN")  # fmt: skip
        return found

    def texts(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> list[str]:
        """Context, question and choices."""
        return [
            "\n".join((*_asked(row, columns, n, source), *choices_of(row, columns, n, source)))
            for n, row in enumerate(rows)
        ]

    def documents(self, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str] | None:
        """The contexts, where there are any."""
        if "context" not in columns:
            return None
        return [text_of(row, columns["context"], number) for number, row in enumerate(rows)]

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """None. Raises DataError for rows of fewer than two choices and labels that name none of them."""
        read = _Reading(rows, columns)
        for number, row in enumerate(rows):
            choices = choices_of(row, columns, number, source)
            if len(choices) < 2:
                raise DataError(f"row {number + 1} of {source} has {len(choices)} choices; there must be two or more")
            if read.number(row, choices) is None:
                raise DataError(f"row {number + 1} of {source} has the label {row.get(columns['label'])!r}, which is "
                                f"neither number, letter nor text of one of its {len(choices)} choices")  # fmt: skip
        return ()

    def sound(self, rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[list[Row], list[Any]]:
        """Rows whose labels are numbers from 0: only all rows together tell whether they count from 0 or from 1."""
        read = _Reading(rows, columns)
        return [
            {**row, columns["label"]: read.number(row, choices_of(row, columns, n))} for n, row in enumerate(rows)
        ], []

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """One feature a row: (C, L) ids, each choice padded to the row's longest; the longer part is cut to fit."""
        found = []
        for number, row in enumerate(rows):
            choices = choices_of(row, context.columns, number)
            *before, question = _asked(row, context.columns, number)
            firsts = [before[0] if before else question] * len(choices)
            seconds = [f"{question} {choice}" for choice in choices] if before else choices
            full = context.tokenizer(firsts, seconds, truncation=True, max_length=context.max_length)
            cut = max(map(len, full["input_ids"])) >= context.max_length
            full["attention_mask"] = [[1] * len(ids) for ids in full["input_ids"]]
            inputs: dict[str, Any] = dict(context.tokenizer.pad(full, return_attention_mask=True))
            if "label" in context.columns:
                label = row.get(context.columns["label"])
                inputs["labels"] = _Reading([row], context.columns).number(row, choices)
                if inputs["labels"] is None:
                    raise DataError(f"row {number + 1} has the label {label!r}, which names none of its choices")
            found.append(Feature(inputs, number, truncated=cut))
        return found

    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """(B, C, L), padded to the most choices and the longest; `labels` (B, C): 1 right, 0 wrong, IGNORED padding.

        A choice that pads is the row's first one once more: text that models can read, scored and not counted.
        """
        import torch

        most = max(f.shape[0] for f in features)
        flat: list[dict[str, Any]] = []
        for feature in features:
            for n in range(most):
                at = n if n < feature.shape[0] else 0
                flat.append({name: ids[at] for name, ids in feature.inputs.items() if name != "labels"})
        padded = context.tokenizer.pad(flat, return_tensors="pt")
        batch = {name: ids.view(len(features), most, -1) for name, ids in padded.items()}
        if all("labels" in f.inputs for f in features):
            labels = torch.full((len(features), most), IGNORED)
            for number, feature in enumerate(features):
                labels[number, : feature.shape[0]] = 0
                labels[number, feature.inputs["labels"]] = 1
            batch["labels"] = labels
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """Cross entropy over the choices that a row has; the model's own would count those that pad."""
        from torch.nn.functional import cross_entropy

        del context
        labels = batch["labels"]
        return cross_entropy(self.run(model, batch).masked_fill(labels == IGNORED, float("-inf")), labels.argmax(-1))

    def compared(self, output: Tensor, feature: Feature) -> Tensor:
        """(1, C)."""
        return output[None, : feature.shape[0]]

    def answers(self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context) -> list[int]:
        """The number of the choice with the highest score. outputs: (C',), choices that pad after the row's own."""
        del context
        return [int(output[: feature.shape[0]].argmax()) for output, feature in zip(outputs, features, strict=True)]

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 2): right, 1."""
        counts = np.ones((len(rows), 2))
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            truth = _Reading([row], context.columns).number(row, choices_of(row, context.columns, number))
            counts[number, 0] = answer == truth
        return counts

    def figures(self, totals: Array) -> Array:
        """Share of rows answered right."""
        return totals[:, :1] / totals[:, 1:]

    def wrong(self, totals: Array) -> Array:
        """None right."""
        return totals * (0, 1)


class _Reading:
    """What labels mean in these rows: numbers from 0 or from 1, letters, or the choices' texts."""

    def __init__(self, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
        self.column = columns["label"]
        self.base = 0
        pairs = [(row.get(self.column), choices_of(row, columns, n)) for n, row in enumerate(rows)]
        numbers = [(n, len(choices)) for label, choices in pairs if (n := _digits(label)) is not None]
        if numbers and all(n > 0 for n, _ in numbers) and any(n == most for n, most in numbers):
            self.base = 1
        by_text = all(isinstance(label, str) and label in choices for label, choices in pairs)
        self.texts_first = by_text and any(self.counted(label, len(choices)) is None for label, choices in pairs)

    def number(self, row: Row, choices: Sequence[str]) -> int | None:
        """The label's number from 0, None when it names no choice."""
        label = row.get(self.column)
        text = list(choices).index(label) if isinstance(label, str) and label in choices else None
        counted = self.counted(label, len(choices))
        return text if self.texts_first or counted is None else counted

    def counted(self, label: Any, most: int) -> int | None:
        """The number that a label says, by figures or letter."""
        n = _digits(label)
        if n is not None:
            n -= self.base
        elif isinstance(label, str) and len(label.strip()) == 1:
            n = LETTERS.find(label.strip().lower())
        return n if n is not None and 0 <= n < most else None


def _digits(label: Any) -> int | None:
    """3, 3.0 and "3" as 3."""
    if isinstance(label, bool) or label is None:
        return None
    try:
        real = float(label)
    except (TypeError, ValueError):
        return None
    return int(real) if real == real and abs(real) < 1e6 and real == int(real) else None


def _numbered(names: Mapping[str, str]) -> list[str]:
    """The longest run of columns that are one choice each, two at least, else none."""
    runs = [["a", "b", *LETTERS[2:]]]
    for stem in STEMS:
        runs += [[f"{stem}{n}" for n in range(start, start + 26)] for start in (0, 1)]
        runs.append([f"{stem}{letter}" for letter in LETTERS])
    found: list[str] = []
    for run in runs:
        here = run[: next((n for n, name in enumerate(run) if name not in names), len(run))]
        found = here if len(here) > max(1, len(found)) else found
    return found


def _asked(row: Row, columns: Mapping[str, str], number: int, source: str = "the data") -> list[str]:
    """The context where there is one, and the question."""
    return [text_of(row, columns[role], number, source) for role in ("context", "question") if role in columns]


def choices_of(row: Row, columns: Mapping[str, str], number: int, source: str = "the data") -> list[str]:
    """The choices of a row, in order, without columns that are blank at the end. Raises DataError."""
    if "choices" in columns:
        value = parsed(row.get(columns["choices"]))
        value = value.get("text") if isinstance(value, Mapping) else value
        named = columns["choices"]
    else:
        named = columns["choice0"]
        value = [row.get(columns[role]) for role in columns if role.startswith("choice")]
        while value and (value[-1] is None or value[-1] == ""):
            value.pop()
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(x, str | int | float) for x in value)
    ):
        raise DataError(f"row {number + 1} of {source} has {value!r} in column {named!r} where choices should be: a "
                        "list of texts, or a column for each")  # fmt: skip
    return [str(choice) for choice in value]


TASK = MultipleChoice()
