"""Every token is predicted once, by what stands before it in its window."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.core.task import IGNORED, Context
from compress.core.tasks.causal_lm import TASK
from tests.tiny import EOS, tiny_tokenizer


def context_of(length: int = 16, side: str = "right") -> Context:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    return Context(tokenizer, {"text": "text"}, (), length)


def test_windows_overlap_by_one_token() -> None:
    text = "Ships passed far out, and on clear nights he could count their lights."
    features = TASK.features([{"text": text}, {"text": "six"}], context_of())
    ids = [*tiny_tokenizer()(text)["input_ids"], EOS]
    joined = features[0].inputs["input_ids"]
    for feature in features[1:-1]:
        assert feature.inputs["input_ids"][0] == joined[-1]
        joined = joined + feature.inputs["input_ids"][1:]
    assert joined == ids
    assert all(feature.shape[0] <= 16 and feature.shape[0] > 1 for feature in features)
    assert [feature.row for feature in features] == [0] * (len(features) - 1) + [1]


def test_a_document_that_ends_itself_gets_no_second_end() -> None:
    assert TASK.features([{"text": "six</s>\n"}], context_of())[0].inputs["input_ids"].count(EOS) == 1


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("before", [0, 3])
def test_perplexity_is_that_of_cross_entropy(side: str, before: int) -> None:
    """Padding on either side is not counted, nor are learned positions before the text."""
    context = context_of(32, side)
    rows = [{"text": "Ships passed far out."}, {"text": "six"}]
    features = TASK.features(rows, context)
    batch = TASK.collate(features, context)
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    torch.manual_seed(0)
    logits = torch.randn(2, before + batch["input_ids"].shape[1], 400)
    found = TASK.outputs(SimpleNamespace(logits=logits), batch)
    counts = TASK.counts(TASK.answers(list(found), features, context), rows, context)
    text = logits[:, before:]
    for n, feature in enumerate(features):
        inside = batch["attention_mask"][n].bool()
        expected = torch.nn.functional.cross_entropy(
            text[n][inside][:-1], torch.tensor(feature.inputs["input_ids"][1:]), reduction="sum"
        )
        assert counts[n].tolist() == pytest.approx([float(expected), feature.shape[0] - 1], rel=1e-5)
    total = counts.sum(0, keepdims=True)
    assert TASK.figures(total)[0, 0] == pytest.approx(np.exp(total[0, 0] / total[0, 1]))


def test_a_tokenizer_without_padding_and_a_broken_model() -> None:
    context = context_of()
    context.tokenizer.pad_token = None
    batch = TASK.collate(TASK.features([{"text": "six"}, {"text": "far out"}], context), context)
    assert batch["input_ids"].shape == batch["labels"].shape
    assert np.isfinite(TASK.figures(np.array([[1e9, 1.0]]))).all()
    assert TASK.metrics[0].lower_is_better
