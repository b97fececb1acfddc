"""Labels as people write them; figures against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from compress.core.errors import DataError
from compress.core.registry import load, names
from compress.core.task import Context
from compress.core.tasks.text_classification import TASK, label_of, sorted_labels
from tests.tiny import tiny_tokenizer

COLUMNS = {"text": "text", "label": "label"}


def rows_of(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"some words {n}", "label": label} for n, label in enumerate(labels)]


def context_of(labels: tuple[str, ...], length: int = 32) -> Context:
    return Context(tiny_tokenizer(), COLUMNS, labels, length)


def test_every_task_says_what_it_is() -> None:
    for name in names("task"):
        task = load("task", name)
        assert task.name == name
        assert task.auto.startswith("AutoModel")
        assert task.metrics
        # embedders have no class of their own; models that write are told by transformers' own tables
        assert bool(task.architecture) == (name not in ("feature-extraction", "seq2seq"))
        assert task.architecture or not task.classes


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_figures_are_those_of_scikit_learn(classes: int) -> None:
    draw = np.random.default_rng(classes)
    names_ = tuple("abcdefg"[:classes])
    truth, said = draw.integers(classes, size=200), draw.integers(classes, size=200)
    said[:80] = truth[:80]
    counts = TASK.counts(said.tolist(), rows_of([names_[n] for n in truth]), context_of(names_))
    accuracy, f1 = TASK.figures(counts.sum(0, keepdims=True))[0]
    assert accuracy == pytest.approx(accuracy_score(truth, said), abs=1e-12)
    assert f1 == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-12)


def test_a_class_that_does_not_occur_is_left_out_of_macro_f1() -> None:
    counts = TASK.counts([0, 1, 0], rows_of(["a", "b", "b"]), context_of(("a", "b", "c")))
    expected = f1_score([0, 1, 1], [0, 1, 0], average="macro")
    assert TASK.figures(counts.sum(0, keepdims=True))[0, 1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "name"),
    [(3, "3"), (3.0, "3"), ("3", "3"), ("3.0", "3"), (True, "true"), (" good ", "good"), ("v1.x", "v1.x")],
)  # fmt: skip
def test_labels_as_people_write_them(value: Any, name: str) -> None:
    assert label_of({"label": value}, "label", 0) == name


@pytest.mark.parametrize("value", [0.5, "0.73", None, "", "  ", float("nan")])
def test_what_is_no_label_is_refused_with_its_row(value: Any) -> None:
    with pytest.raises(DataError, match=r"row 8 of x\.csv has"):
        label_of({"label": value}, "label", 7, "x.csv")


def test_numbers_are_sorted_as_numbers() -> None:
    assert sorted_labels(["10", "9", "-1"]) == ("-1", "9", "10")
    assert sorted_labels(["b", "10", "a"]) == ("10", "a", "b")


def test_one_class_and_a_class_for_every_row_are_refused() -> None:
    with pytest.raises(DataError, match="'a' only"):
        TASK.labels(rows_of(["a"] * 5), COLUMNS, "x")
    with pytest.raises(DataError, match="20 different labels in 20 rows"):
        TASK.labels(rows_of([f"id{n}" for n in range(20)]), COLUMNS, "x")


def test_columns_are_guessed_named_or_listed() -> None:
    rows = [{"Review": "good", "Sentiment": "pos", "id": 1}]
    assert TASK.columns(rows, {}, "x") == {"text": "Review", "label": "Sentiment"}
    assert TASK.columns(rows, {"label": "id"}, "x") == {"text": "Review", "label": "id"}
    with pytest.raises(DataError, match="no column 'stars'; the columns are: Review, Sentiment, id"):
        TASK.columns(rows, {"label": "stars"}, "x")
    with pytest.raises(DataError, match=r"text-classification reads a column of label .* --columns label=COLUMN"):
        TASK.columns([{"text": "a", "id": 1}], {}, "x")


def test_pairs_are_encoded_together_and_long_rows_are_cut() -> None:
    tokenizer = tiny_tokenizer()
    columns = {"text": "a", "pair": "b", "label": "label"}
    context = Context(tokenizer, columns, ("no", "yes"), 12)
    rows = [{"a": "one two", "b": "three", "label": "yes"}, {"a": "word " * 40, "b": "x", "label": "no"}]
    short, long = TASK.features(rows, context)
    assert short.inputs["input_ids"] == tokenizer("one two", "three")["input_ids"]
    assert (short.inputs["labels"], long.inputs["labels"]) == (1, 0)
    assert (short.truncated, long.truncated) == (False, True)
    assert len(long.inputs["input_ids"]) == 12
    batch = TASK.collate([short, long], context)
    assert batch["input_ids"].shape == (2, 12)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [len(short.inputs["input_ids"]), 12]
    assert TASK.answers(torch.tensor([[0.0, 1.0], [2.0, 1.0]]).unbind(), [short, long], context) == [1, 0]


def test_a_label_that_the_model_does_not_know() -> None:
    with pytest.raises(DataError, match="row 1 has the label 'maybe', which the model does not know; it knows no, yes"):
        TASK.features(rows_of(["maybe"]), context_of(("no", "yes")))
