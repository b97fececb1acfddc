"""Texts and what is written of them: columns, targets, generation against transformers' own, figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacrebleu import corpus_bleu

from compress.core.errors import DataError, ModelError
from compress.core.task import IGNORED, Context
from compress.core.tasks.seq2seq import TASK
from tests.tiny import EOS, PAD, tiny_model, tiny_tokenizer

COLUMNS = {"source": "document", "target": "summary"}
ROWS = [
    {"document": "the lighthouse keeper climbed the stairs", "summary": "a keeper climbed"},
    {"document": "she asked for two tickets", "summary": "tickets to the coast, please"},
    {"document": "a scale says", "summary": "scale"},
]


def context_of(**settings: Any) -> Context:
    return Context(tiny_tokenizer(), COLUMNS, (), 24, settings={"start": PAD, **settings})


@pytest.mark.parametrize(
    "architecture", ["T5ForConditionalGeneration", "MarianMTModel", "BartForConditionalGeneration"]
)
def test_encoder_decoders_of_text_fit(architecture: str) -> None:
    assert TASK.fits(architecture)


@pytest.mark.parametrize(
    "architecture",
    [
        "WhisperForConditionalGeneration",
        "BertModel",
        "LlamaForCausalLM",
        "BartForSequenceClassification",
        "GraniteSpeechForConditionalGeneration",
    ],
)
def test_others_do_not(architecture: str) -> None:
    assert not TASK.fits(architecture)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("document", "summary"), ("document", "summary")),
        (("source", "target"), ("source", "target")),
        (("input", "output"), ("input", "output")),
        (("text", "summary"), ("text", "summary")),
        (("article", "highlights", "id"), ("article", "highlights")),
        (("en", "de"), ("en", "de")),
        (("Document", "Summary"), ("Document", "Summary")),
    ],
)
def test_columns_as_people_call_them(there: tuple[str, ...], expected: tuple[str, str]) -> None:
    found = TASK.columns([dict.fromkeys(there, "x")], {}, "data.csv")
    assert (found["source"], found["target"]) == expected


def test_targets_end_and_carry_no_start() -> None:
    tokenizer = tiny_tokenizer()
    plain = tokenizer("a keeper climbed")["input_ids"]
    assert TASK.features(ROWS, context_of())[0].inputs["labels"] == [*plain, EOS]
    begun = context_of(start=plain[0])
    assert TASK.features(ROWS, begun)[0].inputs["labels"] == [*plain[1:], EOS]
    short = Context(tokenizer, COLUMNS, (), 4, settings={"start": PAD})
    first = TASK.features(ROWS, short)[0]
    assert first.truncated
    assert len(first.inputs["input_ids"]) == len(first.inputs["labels"]) == 4
    assert first.inputs["labels"][-1] == EOS


def test_a_batch_is_padded_and_its_padding_ignored() -> None:
    context = context_of()
    features = TASK.features(ROWS, context)
    batch = TASK.collate(features, context)
    for number, feature in enumerate(features):
        ids, labels = feature.inputs["input_ids"], feature.inputs["labels"]
        assert batch["input_ids"][number, : len(ids)].tolist() == ids
        assert batch["attention_mask"][number].sum() == len(ids)
        assert batch["labels"][number].tolist() == labels + [IGNORED] * (batch["labels"].shape[1] - len(labels))


def test_the_decoder_is_forced_as_training_forces_it() -> None:
    """Logits of the forced inputs are those that the model's own loss is made of."""
    context = context_of()
    features = TASK.features(ROWS[:1], context)
    model = tiny_model("t5")
    forced, batch = TASK.forced(features, context), TASK.collate(features, context)
    with torch.inference_mode():
        logits = model(**forced).logits[:, :-1]
        loss = model(**batch).loss
    ours = torch.nn.functional.cross_entropy(logits[0], batch["labels"][0])
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    assert set(forced) == {"input_ids", "decoder_input_ids"}


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])  # the t5's decoder is deeper than its encoder
def test_writing_is_greedy_step_by_step(name: str) -> None:
    model = tiny_model(name)
    model.generation_config.num_beams = 4  # what a model's files may ask for
    context = context_of(new_tokens=6, start=model.config.decoder_start_token_id)
    features = TASK.features(ROWS[:1], context)
    batch = TASK.collate(features, context)
    del batch["labels"]
    written = TASK.predict(model, batch, context)[0].tolist()
    ids = [model.config.decoder_start_token_id]
    with torch.inference_mode():
        for _ in range(6):
            logits = model(**batch, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == EOS:
                break
    assert written == ids
    said = TASK.answers([torch.tensor(written)], features, context)
    assert said == [tiny_tokenizer().decode(ids, skip_special_tokens=True).strip()]


def test_answers_may_be_half_as_long_again_as_the_longest_target() -> None:
    lengths = [len(tiny_tokenizer()(row["summary"])["input_ids"]) + 1 for row in ROWS]
    assert TASK.surveyed(ROWS, context_of()).settings["new_tokens"] == min(24, round(1.5 * max(lengths)))
    assert TASK.surveyed(ROWS[2:], context_of()).settings["new_tokens"] == round(1.5 * lengths[2])


def test_figures_are_means_of_rows_and_bleu_of_all() -> None:
    said = ["a keeper climbed", "two tickets to the coast", ""]
    counts = TASK.counts(said, ROWS, context_of())
    rouge_l, rouge_1, rouge_2, bleu = TASK.figures(counts.sum(0, keepdims=True))[0]
    # row 2: 4 of 5 words said are among the 5 of the target, in order; 3 of 4 pairs
    assert rouge_l == rouge_1 == pytest.approx((1 + 0.8 + 0) / 3)
    assert rouge_2 == pytest.approx((1 + 0.75 + 0) / 3)
    truth = [row["summary"] for row in ROWS]
    assert bleu == pytest.approx(corpus_bleu(said, [truth]).score / 100, abs=1e-11)
    assert np.isfinite(TASK.figures(np.stack([counts[0], counts[2]]))).all()


def test_a_summary_gets_the_prefix_that_the_config_names(tmp_path: Path) -> None:
    said = {"decoder_start_token_id": 0, "task_specific_params": {"summarization": {"prefix": "summarize: "}}}
    (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    settings = TASK.settings(tmp_path)
    assert settings == {"start": 0, "prefix": "summarize: "}
    context = context_of(**settings)
    expected = tiny_tokenizer()("summarize: a scale says")["input_ids"]
    assert TASK.features(ROWS[2:], context)[0].inputs["input_ids"] == expected
    other = Context(tiny_tokenizer(), {"source": "document", "target": "de"}, (), 24, settings=settings)
    translated = TASK.features([{"document": "a scale says", "de": "x"}], other)[0]
    assert translated.inputs["input_ids"] == tiny_tokenizer()("a scale says")["input_ids"]


def test_a_model_without_a_start_token(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="has no decoder_start_token_id"):
        TASK.settings(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="is no JSON"):
        TASK.settings(tmp_path)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (" ", "row 2 of d.csv has no text in column 'summary'"),
        (None, "row 2 of d.csv has None in column 'summary' where text"),
    ],
)
def test_a_row_without_a_target(cell: Any, said: str) -> None:
    rows = [ROWS[0], {**ROWS[1], "summary": cell}]
    with pytest.raises(DataError, match=said):
        TASK.labels(rows, COLUMNS, "d.csv")
