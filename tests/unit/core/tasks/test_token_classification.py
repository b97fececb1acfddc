"""Entities against seqeval; words, sub-words and tags kept in step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score

from compress.core.errors import DataError
from compress.core.task import IGNORED, Context
from compress.core.tasks.token_classification import TASK, entities, firsts_of, repair
from tests.tiny import tiny_tokenizer

LABELS = ("O", "B-loc", "I-loc", "B-per", "I-per")
COLUMNS = {"words": "words", "tags": "tags"}


def context_of(length: int = 64) -> Context:
    return Context(tiny_tokenizer(), COLUMNS, LABELS, length)


def random_tags(draw: Any, rows: int) -> list[list[str]]:
    return [
        draw.choice(LABELS, size=draw.integers(1, 12), p=[0.4, 0.15, 0.15, 0.15, 0.15]).tolist() for _ in range(rows)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_entity_f1_is_that_of_seqeval(seed: int) -> None:
    """Random tags, broken ones among them: seqeval's default reading is conlleval's."""
    draw = np.random.default_rng(seed)
    truth = random_tags(draw, 30)
    said = [[tag if draw.random() < 0.7 else str(draw.choice(LABELS)) for tag in row] for row in truth]
    rows = [{"words": ["w"] * len(row), "tags": row} for row in truth]
    answers = [dict(enumerate(LABELS.index(tag) for tag in row)) for row in said]
    f1, accuracy = TASK.figures(TASK.counts(answers, rows, context_of()).sum(0, keepdims=True))[0]
    assert f1 == pytest.approx(f1_score(truth, said), abs=1e-12)
    right = [a == b for x, y in zip(truth, said, strict=True) for a, b in zip(x, y, strict=True)]
    assert accuracy == pytest.approx(np.mean(right), abs=1e-12)


def test_entities_of_a_sequence() -> None:
    assert entities(["B-loc", "I-loc", "O", "I-per", "I-loc", "B-loc"]) == {
        ("loc", 0, 2), ("per", 3, 4), ("loc", 4, 5), ("loc", 5, 6)
    }  # fmt: skip
    assert entities(["NOUN", "VERB"]) == {("NOUN", 0, 1), ("VERB", 1, 2)}


@pytest.mark.parametrize("seed", range(10))
def test_repaired_tags_have_the_same_entities(seed: int) -> None:
    for tags in random_tags(np.random.default_rng(seed), 20):
        fixed, changed = repair(tags)
        assert entities(fixed) == entities(tags)
        assert repair(fixed) == (fixed, 0)
        assert changed == sum(a != b for a, b in zip(tags, fixed, strict=True))


def test_a_word_is_judged_by_its_first_sub_word() -> None:
    context = context_of()
    rows = [{"words": ["extraordinarily", "London"], "tags": ["O", "B-loc"]}]
    feature = TASK.features(rows, context)[0]
    labels = feature.inputs["labels"]
    assert len(labels) == len(feature.inputs["input_ids"]) > 2
    assert [label for label in labels if label != IGNORED] == [0, 1]
    assert feature.units == (0, 1)
    logits = torch.zeros(len(labels), len(LABELS))
    logits[:, 3] = 1.0  # whatever is not a first sub-word says B-per, and is not asked
    firsts = [n for n, label in enumerate(labels) if label != IGNORED]
    logits[firsts[0], 0] = logits[firsts[1], 1] = 2.0
    assert TASK.answers([logits], [feature], context) == [{0: 0, 1: 1}]


def test_words_without_tokens_and_words_cut_off_count_as_o() -> None:
    context = context_of(6)
    rows = [{"words": ["a", "b", "word " * 9, "c"], "tags": ["B-loc", "O", "O", "B-per"]}]
    feature = TASK.features(rows, context)[0]
    assert feature.truncated
    assert 3 not in feature.units
    counts = TASK.counts([{0: 1}], rows, context)  # word 1 has no token at all
    assert counts.tolist() == [[1, 1, 2, 3, 4]]


def test_padding_is_not_scored() -> None:
    context = context_of()
    rows = [{"words": ["a"], "tags": ["B-loc"]}, {"words": ["b", "c", "d"], "tags": ["O", "O", "B-per"]}]
    batch = TASK.collate(TASK.features(rows, context), context)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert [row[row != IGNORED].tolist() for row in batch["labels"]] == [[1], [0, 0, 3]]


def test_firsts() -> None:
    assert firsts_of([None, 0, 0, 1, 2, 2, None]) == [None, 0, None, 1, 2, None, None]


def test_labels_are_o_first_and_complete() -> None:
    rows = [{"words": ["a", "b"], "tags": ["B-per", "O"]}, {"words": "c", "tags": "B-loc"}]
    assert TASK.labels(rows, COLUMNS, "x") == LABELS


def test_other_numbers_of_words_and_tags_are_refused() -> None:
    with pytest.raises(DataError, match="row 2 of x has 2 words and 1 tags"):
        TASK.labels([{"words": ["a"], "tags": ["O"]}, {"words": ["a", "b"], "tags": ["O"]}], COLUMNS, "x")
    with pytest.raises(DataError, match="row 1 of x has 3 in column 'words' where words should be"):
        TASK.labels([{"words": 3, "tags": ["O"]}], COLUMNS, "x")
