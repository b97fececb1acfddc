"""Choices in lists and columns, labels of every kind, padding that is scored and not counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.core.errors import DataError
from compress.core.task import IGNORED, Context
from compress.core.tasks.multiple_choice import TASK, choices_of
from tests.tiny import tiny_tokenizer

COLUMNS = {"question": "question", "choices": "choices", "label": "label"}


def context_of(length: int = 64, side: str = "right") -> Context:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    return Context(tokenizer, COLUMNS, (), length)


def rows_of(labels: list[Any], choices: Any = ("six", "ten", "a lamp")) -> list[dict[str, Any]]:
    return [{"question": f"{n}?", "choices": list(choices), "label": label} for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ([0, 1, 2], [0, 1, 2]),
        (["1", "3", "2"], [0, 2, 1]),  # from 1: none is 0 and one is the last
        (["0", "2.0", 1], [0, 2, 1]),
        (["A", "c", "b"], [0, 2, 1]),
        (["six", "a lamp", "ten"], [0, 2, 1]),
        (["A", "3", "b"], [0, 2, 1]),  # letters and numbers, as ARC has them
    ],
)
def test_labels_of_every_kind(labels: list[Any], numbers: list[int]) -> None:
    rows = rows_of(labels)
    TASK.labels(rows, COLUMNS, "x")
    found, _ = TASK.sound(rows, COLUMNS)
    assert [row["label"] for row in found] == numbers
    assert [f.inputs["labels"] for f in TASK.features(found, context_of())] == numbers
    assert TASK.sound(found, COLUMNS)[0] == found


def test_labels_that_are_texts_of_numbers() -> None:
    rows = rows_of(["12", "7", "12"], ["7", "12"])
    assert [row["label"] for row in TASK.sound(rows, COLUMNS)[0]] == [1, 0, 1]


def test_labels_and_choices_that_cannot_be() -> None:
    with pytest.raises(DataError, match=r"row 2 of x has the label 'z', which is neither number, letter nor text"):
        TASK.labels(rows_of([0, "z"]), COLUMNS, "x")
    with pytest.raises(DataError, match=r"row 1 of x has the label 3"):
        TASK.labels(rows_of([3, 0]), COLUMNS, "x")
    with pytest.raises(DataError, match=r"row 1 of x has 1 choices; there must be two or more"):
        TASK.labels(rows_of([0], ["six"]), COLUMNS, "x")
    with pytest.raises(DataError, match=r"row 4 of x has None in column 'choices' where choices should be"):
        choices_of({"choices": None}, COLUMNS, 3, "x")
    with pytest.raises(DataError, match="reads choices and x has none"):
        TASK.columns([{"question": "q", "label": 1, "a": "only one"}], {}, "x")


def test_columns_of_choices() -> None:
    def found(*names: str, **given: str) -> list[str]:
        columns = TASK.columns([dict.fromkeys(("question", "label", *names), "x")], given, "x")
        return [column for role, column in columns.items() if role.startswith("choice")]

    assert found("ending0", "ending1", "ending2") == ["ending0", "ending1", "ending2"]
    assert found("A", "B", "C", "D") == ["A", "B", "C", "D"]
    assert found("choice1", "choice2") == ["choice1", "choice2"]
    assert found("option_a", "option_b") == ["option_a", "option_b"]
    assert found("left", "right", choice0="left", choice1="right") == ["left", "right"]
    assert found("options") == ["options"]
    with pytest.raises(DataError, match="x has no column 'middle'"):
        found("left", choice0="left", choice1="middle")


def test_choices_of_a_row() -> None:
    assert choices_of({"choices": {"text": ["a", "b"], "label": ["A", "B"]}}, COLUMNS, 0) == ["a", "b"]
    assert choices_of({"choices": '["a", "b"]'}, COLUMNS, 0) == ["a", "b"]
    each = {"choice0": "A", "choice1": "B", "choice2": "C"}
    assert choices_of({"A": "six", "B": "ten", "C": ""}, each, 0) == ["six", "ten"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_of_different_numbers_of_choices(side: str) -> None:
    context = context_of(side=side)
    rows = [*rows_of([1], ["six", "ten lamps and a ship"]), *rows_of([2], ["a", "b", "c", "d"])]
    features = TASK.features(rows, context)
    assert [feature.shape[0] for feature in features] == [2, 4]
    for feature in features:
        widths = {len(ids) for ids in feature.inputs["input_ids"]}
        assert widths == {feature.shape[1]}
    batch = TASK.collate(features, context)
    assert batch["input_ids"].shape[:2] == (2, 4)
    assert batch["labels"].tolist() == [[0, 1, IGNORED, IGNORED], [0, 0, 1, 0]]
    assert torch.equal(batch["input_ids"][0, 2], batch["input_ids"][0, 0])
    real = [[int(m.sum()) for m in row] for row in batch["attention_mask"]]
    for n, feature in enumerate(features):
        assert real[n][: feature.shape[0]] == [sum(mask) for mask in feature.inputs["attention_mask"]]


class Fixed(torch.nn.Module):
    """A model that gives these outputs, whatever it reads."""

    def __init__(self, **outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = SimpleNamespace(**outputs)

    def forward(self, **_: torch.Tensor) -> SimpleNamespace:
        return self.outputs


def test_choices_that_pad_are_in_no_loss_and_no_answer() -> None:
    outputs = torch.tensor([[1.0, 2.0, 9.0, 9.0], [0.0, 1.0, 3.0, 2.0]])
    labels = torch.tensor([[0, 1, IGNORED, IGNORED], [0, 0, 1, 0]])
    one = torch.nn.functional.cross_entropy(outputs[:1, :2], torch.tensor([1]))
    other = torch.nn.functional.cross_entropy(outputs[1:], torch.tensor([2]))
    loss = TASK.loss(Fixed(logits=outputs), {"input_ids": labels, "labels": labels}, context_of())
    torch.testing.assert_close(loss, (one + other) / 2)
    rows = [*rows_of([1], ["six", "ten"]), *rows_of([2], ["a", "b", "c", "d"])]
    features = TASK.features(rows, context_of())
    answers = TASK.answers(list(outputs), features, context_of())
    assert answers == [1, 2]
    assert TASK.counts(answers, rows, context_of()).tolist() == [[1, 1], [1, 1]]
    assert TASK.figures(TASK.counts([0, 2], rows, context_of()).sum(0, keepdims=True)).tolist() == [[0.5]]


def test_long_questions_are_cut_and_choices_kept() -> None:
    feature = TASK.features([{"question": "why " * 99, "choices": ["six", "ten"], "label": 0}], context_of(24))[0]
    assert feature.truncated
    assert feature.shape == (2, 24)
    assert feature.inputs["input_ids"][0][-2:] != feature.inputs["input_ids"][1][-2:]
