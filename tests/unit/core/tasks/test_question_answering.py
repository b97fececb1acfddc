"""Windows, spans and answers; what is wrong in rows."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from compress.core.errors import DataError
from compress.core.task import IGNORED, Context, Flaw
from compress.core.tasks.question_answering import LONGEST, TASK, Best, best_span, golds_of, place, said_of
from tests.tiny import tiny_tokenizer

COLUMNS = {"question": "question", "context": "context", "answers": "answers"}
TEXT = "Ships passed far out, and on clear nights he could count their lights. " * 4 + "今天天气很好。"


def context_of(length: int = 64, side: str = "right", special: bool = False, **settings: Any) -> Context:
    """special: with <s> first and </s> between and behind, as bert's [CLS] and [SEP]."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    if special:
        tokenizer.cls_token = "<s>"
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return Context(tokenizer, COLUMNS, (), length, settings=settings)


def row_of(answer: str, text: str = TEXT, question: str = "what did he count?") -> dict[str, Any]:
    return {"question": question, "context": text, "answers": {"text": [answer], "answer_start": [text.index(answer)]}}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("answer", ["their lights", "far", "天气", "Ships passed", "很好。"])
def test_truth_is_where_the_answer_is(answer: str, special: bool) -> None:
    """Every window that holds the whole answer points at it, every other one at its null position."""
    context, row = context_of(special=special), row_of(answer)
    start = TEXT.index(answer)
    features = TASK.features([row], context)
    assert len(features) > 2
    hits = 0
    for feature in features:
        first, last = feature.inputs["start_positions"], feature.inputs["end_positions"]
        spans = [span for span in feature.spans if span is not None]
        if spans[0][0] <= start and spans[-1][1] >= start + len(answer):
            a, b = feature.spans[first], feature.spans[last]
            assert a is not None
            assert b is not None
            assert answer in TEXT[a[0] : b[1]]
            assert len(TEXT[a[0] : b[1]].strip()) <= len(answer) + 3  # a token may hold more than the answer
            hits += 1
        else:
            assert first == last == feature.units[0] == 0
    assert hits


def test_windows_overlap_and_cover_the_context() -> None:
    features = TASK.features([row_of("far")], context_of())
    covered = [{span for span in feature.spans if span is not None} for feature in features]
    whole = set().union(*covered)
    full = tiny_tokenizer()(TEXT, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    assert whole == {(a, b) for a, b in full if b > a}
    assert all(one & other for one, other in itertools.pairwise(covered))
    assert all(feature.shape[0] <= 64 for feature in features)
    assert not any(feature.truncated for feature in features)


def test_a_question_longer_than_the_model_is_cut_and_said() -> None:
    features = TASK.features([row_of("far", question="why " * 200)], context_of(32))
    assert all(feature.truncated and feature.shape[0] <= 32 for feature in features)
    assert any(feature.inputs["start_positions"] != 0 for feature in features)


@pytest.mark.parametrize("seed", range(10))
def test_the_best_span_is_that_of_trying_all(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(40, 2))
    spans = [None if n < 8 else (3 * n, 3 * n + 2) for n in range(40)]
    span, score = best_span(scores, spans, 0)
    tried = [
        (scores[a, 0] + scores[b, 1], (3 * a, 3 * b + 2)) for a in range(8, 40) for b in range(a, min(40, a + LONGEST))
    ]
    best = max(tried)
    assert score == pytest.approx(best[0])
    assert span == best[1]


def test_longer_answers_where_the_data_has_them() -> None:
    scores = np.zeros((60, 2))
    scores[5, 0], scores[50, 1] = 9.0, 9.0
    spans = [(n, n + 1) for n in range(60)]
    assert best_span(scores, spans, 0)[1] == 9.0
    assert best_span(scores, spans, 46) == ((5, 51), 18.0)


def test_the_best_window_answers_and_null_is_the_lowest() -> None:
    context = context_of(unanswerable=True)
    row = row_of("far")
    features = TASK.features([row], context)
    outputs = [torch.zeros(feature.shape[0], 2) for feature in features]
    at = features[0].inputs["start_positions"]
    outputs[0][at] = 5.0  # start and end of `far`
    outputs[0][0] = 4.0  # null of this window
    outputs[1][0] = 9.0
    best = TASK.answers(outputs, features, context)[0]
    assert (best.score, best.null) == (10.0, 0.0)
    assert said_of(best, TEXT, context) == "far"
    assert said_of(Best(best.span, 1.0, 2.0), TEXT, context) == ""
    assert said_of(Best(best.span, 1.0, 2.0), TEXT, context_of()) == "far"
    assert TASK.counts([best], [row], context).tolist() == [[1, 1, 1]]
    empty = {**row, "answers": {"text": [], "answer_start": []}}
    assert TASK.counts([Best(best.span, 1.0, 2.0)], [empty], context).tolist() == [[1, 1, 1]]


def test_positions_move_with_padding_on_the_left() -> None:
    rows = [row_of("lamp", "He lit the lamp."), row_of("far")]
    for side in ("right", "left"):
        context = context_of(side=side)
        features = TASK.features(rows, context)
        batch = TASK.collate(features, context)
        for n, feature in enumerate(features):
            at = int(batch["start_positions"][n])
            assert int(batch["input_ids"][n, at]) == feature.inputs["input_ids"][feature.inputs["start_positions"]]


def test_the_loss_is_transformers_own_and_leaves_lost_rows_out() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(3, 7, 2)
    inputs = {
        "input_ids": torch.zeros(3, 7),
        "attention_mask": torch.ones(3, 7),
        "start_positions": torch.tensor([1, 2, IGNORED]),
        "end_positions": torch.tensor([3, 2, IGNORED]),
    }
    expected = (
        torch.nn.functional.cross_entropy(outputs[:2, :, 0], torch.tensor([1, 2]))
        + torch.nn.functional.cross_entropy(outputs[:2, :, 1], torch.tensor([3, 2]))
    ) / 2

    class Fixed(torch.nn.Module):
        def forward(self, **_: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(start_logits=outputs[..., 0], end_logits=outputs[..., 1])

    torch.testing.assert_close(TASK.loss(Fixed(), inputs, context_of()), expected)
    nothing = {**inputs, "start_positions": torch.full((3,), IGNORED), "end_positions": torch.full((3,), IGNORED)}
    assert float(TASK.loss(Fixed(), nothing, context_of())) == 0.0


def test_shapes_of_answers() -> None:
    flat = {"question": "q", "context": "c", "answers": "a", "start": "s"}
    assert golds_of({"a": "six", "s": "12"}, flat, 0) == [("six", 12)]
    assert golds_of({"a": "six", "s": "-1"}, flat, 0) == [("six", None)]
    assert (
        golds_of({"a": None}, flat, 0) == golds_of({"a": ""}, flat, 0) == golds_of({"a": float("nan")}, flat, 0) == []
    )
    assert golds_of({"answers": '{"text": ["a", "b"], "answer_start": [1, 2]}'}, COLUMNS, 0) == [("a", 1), ("b", 2)]
    assert golds_of({"answers": [{"text": "a", "answer_start": 3}]}, COLUMNS, 0) == [("a", 3)]
    assert golds_of({"answers": {"text": [], "answer_start": []}}, COLUMNS, 0) == []
    with pytest.raises(DataError, match="row 3 of x has 7 in column 'answers' where an answer should be"):
        golds_of({"answers": 7}, COLUMNS, 2, "x")


def test_answers_are_found_and_flaws_counted() -> None:
    text = "six ships, six lamps"
    assert [place(text, "six", start) for start in (0, 11, 9, 1, None)] == [0, 11, 11, 0, 0]
    assert place(text, "seven", 0) is None
    rows = [
        {"question": "q", "context": text, "answers": {"text": ["six"], "answer_start": [10]}},
        {"question": "q", "context": text, "answers": "seven"},
        {"question": "q", "context": text, "answers": ""},
        {"question": "q", "context": text, "answers": "lamps"},
    ]
    found, flaws = TASK.sound(rows, COLUMNS)
    assert flaws == [Flaw(0, "start", 1), Flaw(1, "lost")]
    assert [row["answers"]["answer_start"] for row in found] == [[11], [], [], [15]]
    assert [row["answers"]["text"] for row in found] == [["six"], ["seven"], [], ["lamps"]]
    assert TASK.survey(found, COLUMNS)[0] == {"unanswerable": True, "longest": 5}
    features = TASK.features(found, context_of())
    assert features[1].inputs["start_positions"] == IGNORED
    assert features[2].inputs["start_positions"] == 0
    with pytest.raises(DataError, match="no answer is in the context of its row"):
        TASK.sound(rows[1:3], COLUMNS)


def test_blank_cells_are_named() -> None:
    for role in ("question", "context"):
        with pytest.raises(DataError, match=f"row 2 of x has an empty {role} in column '{role}'"):
            TASK.labels([row_of("far"), {**row_of("far"), role: "  "}], COLUMNS, "x")
