"""Question answering, multiple choice, language models: tuned on tiny rows, then quantized and judged on the rest."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from compress.core.errors import DataError, ModelError, UsageError
from compress.core.types import RunRecord
from compress.pipeline.labelled import Wanted, find_labelled, read_labelled
from compress.pipeline.quantize import quantize
from compress.pipeline.tune import tune
from compress.recipe import Recipe, TuneRecipe
from tests.tiny import randomize, save_tiny, tiny_config, tiny_tokenizer

PLACES = ("Oslo", "Rome", "Paris", "Lima")
WORDS = ("river", "market", "window", "report", "engine", "garden", "minute", "school")
QUICK: dict[str, Any] = {"epochs": 2, "learning_rate": 2e-3, "threads": 1, "batch_size": 8, "max_length": 48}


def write_places(path: Path, rows: int = 120, lost: int = 0, none: int = 0) -> Path:
    """Contexts with one place; the first `lost` answers are not there, the last `none` rows have none."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            place = draw.choice(PLACES)
            before = " ".join(draw.choices(WORDS, k=draw.choice((2, 4, 40))))
            context = f"{before} {n} in {place} {draw.choice(WORDS)}."
            answer = {"text": ["Atlantis" if n < lost else place], "answer_start": [context.index(place)]}
            answer = answer if n < rows - none else {"text": [], "answer_start": []}
            file.write(json.dumps({"question": "in where?", "context": context, "answers": answer}) + "\n")
    return path


def write_choices(path: Path, rows: int = 120) -> Path:
    """The choice that repeats the question's word is right; rows have two or three choices."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "A", "B", "C", "label"])
        for n in range(rows):
            choices = draw.sample(WORDS, k=2 + n % 2)
            right = draw.randrange(len(choices))
            long = [f"{word} and {word}" if n % 3 == 0 and at == 0 else word for at, word in enumerate(choices)]
            writer.writerow([f"{n} {choices[right]}", *long, *[""] * (3 - len(choices)), "ABC"[right]])
    return path


def write_text(path: Path, rows: int = 60) -> Path:
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        for n in range(rows):
            writer.writerow([" ".join([str(n), *draw.choices(WORDS[:3], k=draw.choice((6, 30)))])])
    return path


def run(model: Path, data: Path, out: Path, **settings: Any) -> RunRecord:
    return tune(TuneRecipe.build(model=str(model), data=str(data), out=str(out), **(QUICK | settings)))


def shrink(model: Path, out: Path, **settings: Any) -> RunRecord:
    base = {"samples": 4, "seq_len": 64, "threads": 1, "generate": 0}
    return quantize(Recipe.build(model=str(model), out=str(out), **(base | settings)))


def figure(record: RunRecord, name: str, subject: object) -> float:
    return next(m.median for m in record.measurements if (m.name, m.subject) == (name, str(subject)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body with its pooler, once a classifier of seven classes."""
    folder = tmp_path_factory.mktemp("source") / "bert"
    torch.manual_seed(0)
    config = tiny_config("bert")
    config.num_labels = 7
    model = transformers.BertModel(config)
    randomize(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("source") / request.param)


@pytest.fixture(scope="module")
def answering(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    folder = tmp_path_factory.mktemp("qa")
    data = write_places(folder / "places.jsonl", lost=3, none=20)
    return folder / "out", run(bert, data, folder / "out", epochs=4)


def test_answers_are_learned_and_what_was_worked_around_is_said(answering: tuple[Path, RunRecord]) -> None:
    out, record = answering
    assert record.model["architecture"] == "BertForQuestionAnswering"
    assert "20 of 120 rows have no answer: the model learns to say so." in record.notes
    assert any(note.startswith("The answers of 3 rows are not in their context") for note in record.notes)
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert 0 <= figure(record, "exact_match", out) <= figure(record, "f1", out) <= 1
    opened = transformers.AutoModelForQuestionAnswering.from_pretrained(out)
    assert opened.qa_outputs.out_features == 2


@pytest.mark.parametrize("bits", [8, 4])
def test_answers_are_judged_on_the_rows_held_out(answering: tuple[Path, RunRecord], bits: int, tmp_path: Path) -> None:
    tuned, before = answering
    record = shrink(tuned, tmp_path / "small", bits=bits, verify=bits == 8)
    for name in ("f1", "exact_match"):
        assert figure(record, name, "original") == pytest.approx(figure(before, name, tuned), abs=1e-9)
        change = figure(record, name, tmp_path / "small") - figure(record, name, "original")
        assert figure(record, f"{name}_change", tmp_path / "small") == pytest.approx(change, abs=1e-9)
    assert 0 <= figure(record, "kl", tmp_path / "small") < (0.01 if bits == 8 else 0.5)
    assert len(record.verified) == (2 if bits == 8 else 0)  # a failing one is an error


def test_broken_answers_are_refused_when_asked(bert: Path, tmp_path: Path) -> None:
    data = write_places(tmp_path / "p.jsonl", lost=2)
    with pytest.raises(DataError, match=r"row 1 of .* has an answer that is not in its context; mend it"):
        run(bert, data, tmp_path / "out", strict=True)
    with pytest.raises(DataError, match="no answer is in the context of its row"):
        run(bert, write_places(tmp_path / "q.jsonl", lost=120), tmp_path / "out")
    with pytest.raises(UsageError, match="--resample weights is for classes of rows; question-answering has none"):
        run(bert, data, tmp_path / "out", resample="weights")


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix", "p-tuning", "ia3", "bitfit", "dora"])
def test_answers_by_every_method(method: str, bert: Path, tmp_path: Path) -> None:
    """peft puts its prompts before the text and leaves the positions where they were; our loss does not mind."""
    options = {"tokens": 4} if method in ("prompt", "prefix", "p-tuning") else {}
    data = write_places(tmp_path / "p.jsonl", 60)
    record = run(bert, data, tmp_path / "out", method=method, options=options, learning_rate=None)
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    assert losses[-1] < losses[0]


def test_choices_are_learned_judged_and_padding_is_in_no_statistic(bert: Path, tmp_path: Path) -> None:
    data, out = write_choices(tmp_path / "quiz.csv"), tmp_path / "out"
    record = run(bert, data, out, epochs=6)
    assert record.data["columns"] == {"question": "question", "label": "label", "choice0": "A", "choice1": "B",
                                      "choice2": "C"}  # fmt: skip
    assert figure(record, "accuracy", out) > 0.6
    assert transformers.AutoConfig.from_pretrained(out).architectures == ["BertForMultipleChoice"]
    for bits in (8, 4):
        small = shrink(out, tmp_path / f"small{bits}", bits=bits, verify=bits == 8)
        assert figure(small, "accuracy", "original") == figure(record, "accuracy", out)
        assert abs(figure(small, "accuracy_change", tmp_path / f"small{bits}")) < 0.2
        assert figure(small, "kl", tmp_path / f"small{bits}") < (0.01 if bits == 8 else 0.5)
        assert figure(small, "hidden_cosine", tmp_path / f"small{bits}") > 0.9


def test_choices_by_adapters_that_can(bert: Path, tmp_path: Path) -> None:
    data = write_choices(tmp_path / "quiz.csv", 40)
    run(bert, data, tmp_path / "lora", method="lora", epochs=1)
    assert (tmp_path / "lora" / "adapter" / "adapter_config.json").is_file()
    with pytest.raises(ModelError, match="reads no single text that a prompt could stand before"):
        run(bert, data, tmp_path / "out", method="prompt")
    with pytest.raises(UsageError, match="--resample weights is for classes of rows; multiple-choice has none"):
        run(bert, data, tmp_path / "out", resample="weights")


def test_a_language_model_keeps_its_best_epoch_and_its_text_path(lm: Path, tmp_path: Path) -> None:
    data, out = write_text(tmp_path / "texts.csv"), tmp_path / "out"
    record = run(lm, data, out, epochs=3)
    assert record.data["task"] == "causal-lm"
    scores = {line["step"]: line["perplexity"] for line in record.training["lines"] if "perplexity" in line}
    assert len(scores) == 3
    assert record.training["best"] == min(scores, key=lambda step: scores[step])
    assert min(scores.values()) < 0.8 * max(scores.values())
    plain = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert figure(record, "perplexity", out) == pytest.approx(own_perplexity(plain, out, record, data), rel=1e-4)
    small = shrink(out, tmp_path / "small", bits=8)
    assert small.data["task"] == "causal-lm"  # the rows that tuning held out
    assert figure(small, "perplexity", "original") == pytest.approx(figure(record, "perplexity", out), rel=1e-3)
    assert figure(small, "perplexity_ratio", tmp_path / "small") < 1.1
    config = transformers.AutoConfig.from_pretrained(lm)
    assert find_labelled(Recipe.build(model=str(lm)), lm, config).labelled is None
    other = write_text(tmp_path / "other.csv", 30)
    assert find_labelled(Recipe.build(model=str(out), data=str(other)), out, config).labelled is None


def own_perplexity(model: Any, folder: Path, record: RunRecord, data: Path) -> float:
    """The same by transformers' own loss, document by document."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    labelled = read_labelled(Wanted(str(data), "auto", {}, 0, tokenizer=tokenizer), ["LlamaForCausalLM"])
    nats, tokens = 0.0, 0
    for number in labelled.division.test:
        ids = torch.tensor([[*tokenizer(labelled.rows[number]["text"])["input_ids"], tokenizer.eos_token_id]])
        for start in range(0, ids.shape[1] - 1, QUICK["max_length"] - 1):
            window = ids[:, start : start + QUICK["max_length"]]
            with torch.inference_mode():
                nats += float(model(input_ids=window, labels=window).loss) * (window.shape[1] - 1)
            tokens += window.shape[1] - 1
    return float(np.exp(nats / tokens))


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prefix", "prompt", "p-tuning"])
def test_language_models_by_every_method(method: str, lm: Path, tmp_path: Path) -> None:
    options = {"tokens": 4} if method in ("prompt", "p-tuning", "prefix") else {}
    data = write_text(tmp_path / "texts.csv", 40)
    record = run(lm, data, tmp_path / "out", method=method, options=options, learning_rate=None, epochs=4)
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    epoch = len(losses) // 4
    assert sum(losses[-epoch:]) < sum(losses[:epoch])
    assert (tmp_path / "out" / ("adapter" if options == {} else "") / "adapter_config.json").is_file()


def test_columns_tell_the_task(tmp_path: Path) -> None:
    """Those that ask for most columns first; a language model learns classes where there are some, else the text."""
    tokenizer = tiny_tokenizer()

    def told(rows: list[dict[str, Any]], architectures: tuple[str, ...] = ()) -> str:
        file = tmp_path / "rows.jsonl"
        made = [{k: fill(v, n) for k, v in rows[n % len(rows)].items()} for n in range(24)]
        file.write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
        return read_labelled(Wanted(str(file), "auto", {}, 0, tokenizer=tokenizer), architectures).task.name

    def fill(value: Any, n: int) -> Any:
        if isinstance(value, list):
            return [fill(one, n) for one in value]
        return value.replace("N", str(n)) if isinstance(value, str) else value

    question = {"question": "which N?", "context": "six lamps of N", "answers": {"text": ["six"], "answer_start": [0]}}
    assert told([question]) == "question-answering"
    assert told([{"question": "which N?", "choices": ["six", "ten"], "label": 1}]) == "multiple-choice"
    assert told([{"question": "N?", "A": "x N", "B": "y", "answer": "B"}]) == "multiple-choice"
    assert told([{"text": "lamp N", "label": "a"}, {"text": "sea N", "label": "b"}]) == "text-classification"
    assert told([{"words": ["N", "in"], "tags": ["O", "B-x"], "id": "N"}]) == "token-classification"
    with pytest.raises(DataError, match="no task fits the columns"):
        told([{"text": "only text N"}])
    llama = ("LlamaForCausalLM",)
    assert told([{"text": "only text N"}], llama) == "causal-lm"
    assert told([{"text": "lamp N", "label": "a"}, {"text": "sea N", "label": "b"}], llama) == "text-classification"
    assert told([{"question": "which N?", "context": "six of N", "answer": "six"}], llama) == "causal-lm"
    assert told([{"prompt": "which N?", "response": "six"}], llama) == "causal-lm"


def test_a_text_file_is_cut_into_sections_for_a_language_model(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text(
        "\n\n".join(f"On day {n} the {WORDS[n % 8]} was open. It rained." for n in range(300)), encoding="utf-8"
    )
    wanted = Wanted(str(file), "auto", {}, 0, tokenizer=tiny_tokenizer())
    labelled = read_labelled(wanted, ["GPT2LMHeadModel"])
    assert labelled.task.name == "causal-lm"
    assert len(labelled.rows) > 20
    assert any("cut into" in note for note in labelled.notes)
    again = read_labelled(
        Wanted(str(file), "auto", labelled.columns, 0, tokenizer=tiny_tokenizer()), ["GPT2LMHeadModel"]
    )
    assert again.card["digest"] == labelled.card["digest"]


def test_conversations_are_written_by_the_template(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    rows = [{"prompt": f"lamp {n}?", "response": "six"} for n in range(24)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    labelled = read_labelled(Wanted(str(file), "causal-lm", {}, 0, tokenizer=tiny_tokenizer()), [])
    assert labelled.columns == {"text": "prompt + response"}
    assert labelled.rows[3]["prompt + response"] == "<s>user\nlamp 3?</s>\n<s>assistant\nsix</s>\n"
    again = Wanted(str(file), "causal-lm", labelled.columns, 0, tokenizer=tiny_tokenizer())
    assert read_labelled(again, []).card["digest"] == labelled.card["digest"]


def test_other_answers_are_other_rows(tmp_path: Path) -> None:
    data = write_places(tmp_path / "p.jsonl", 30)
    before = read_labelled(Wanted(str(data), "auto", {}, 0), []).card["digest"]
    text = data.read_text(encoding="utf-8")
    data.write_text(text.replace('"text": ["Rome"]', '"text": ["in Rome"]', 1), encoding="utf-8")
    assert read_labelled(Wanted(str(data), "auto", {}, 0), []).card["digest"] != before
