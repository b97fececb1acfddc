"""Tiny models tuned on tiny tables, then quantized: learned, saved, reopened by plain transformers, judged again."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight

from compress.core.crf import read_crf
from compress.core.errors import DataError, ModelError, OutputError, UsageError
from compress.core.types import RunRecord
from compress.pipeline.labelled import Found, Wanted, find_labelled, read_labelled
from compress.pipeline.quantize import quantize
from compress.pipeline.settle import class_weights
from compress.pipeline.tune import tune
from compress.recipe import Recipe, TuneRecipe
from tests.tiny import save_tiny

WORDS = ("river", "market", "window", "report", "engine", "garden", "minute", "school")
SIGNS = {"sport": ("goal", "match"), "tech": ("chip", "code"), "food": ("bread", "salt")}
QUICK: dict[str, Any] = {"epochs": 5, "learning_rate": 2e-3, "threads": 1, "batch_size": 8}


def write_topics(path: Path, rows: int = 300, seed: int = 0) -> Path:
    """Texts of which some words tell the topic; every fourth row is longer."""
    draw = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for n in range(rows):
            label = sorted(SIGNS)[n % 3]
            words = [*draw.choices(WORDS, k=1 + 2 * (n % 4 == 0)), *draw.choices(SIGNS[label], k=3), str(n)]
            draw.shuffle(words)
            writer.writerow([" ".join(words), label])
    return path


def write_tags(path: Path, rows: int = 120) -> Path:
    """Words with tags: what follows `in` is a place; some sentences begin an entity with I-."""
    draw = random.Random(0)
    lines = []
    for n in range(rows):
        for word in draw.choices(WORDS, k=3):
            lines.append(f"{word}\tO")
        place = draw.choice(("London", "Paris", "Oslo"))
        lines += ["in\tO", f"{place}\t{'I' if n % 10 == 0 else 'B'}-place", f"{n}\tO", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run(model: Path, data: Path, out: Path, **settings: Any) -> RunRecord:
    return tune(TuneRecipe.build(model=str(model), data=str(data), out=str(out), **(QUICK | settings)))


def figure(record: RunRecord, name: str, subject: str) -> float:
    return next(m.median for m in record.measurements if (m.name, m.subject) == (name, subject))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("source") / "bert")


@pytest.fixture(scope="module")
def topics(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    folder = tmp_path_factory.mktemp("topics")
    return folder / "out", run(bert, write_topics(folder / "topics.csv"), folder / "out")


def test_topics_are_learned_and_the_model_opens_anywhere(topics: tuple[Path, RunRecord]) -> None:
    out, record = topics
    assert figure(record, "accuracy", str(out)) > 0.9
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    classify = transformers.pipeline("text-classification", model=str(out), device="cpu")
    said = [answer["label"] for answer in classify(["river goal match goal 7", "market bread bread salt 9"])]
    assert said == ["sport", "food"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="training"' in page
    assert "the loss went from" in page.lower()
    assert "Validation scores" in page
    assert not (out / "compress" / "work").exists()


def test_the_same_command_returns_the_finished_run(topics: tuple[Path, RunRecord], bert: Path) -> None:
    out, record = topics
    again = run(bert, out.parent / "topics.csv", out)
    assert again.measurements == record.measurements
    with pytest.raises(OutputError, match="--epochs: 5 -> 6"):
        run(bert, out.parent / "topics.csv", out, epochs=6)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_tuned_model_is_judged_on_the_rows_it_never_saw(
    topics: tuple[Path, RunRecord], bits: int, tmp_path: Path
) -> None:
    """`compress quantize OUT` finds the task, the rows and the split by itself."""
    tuned, before = topics
    out = tmp_path / "small"
    recipe = Recipe.build(model=str(tuned), out=str(out), bits=bits, samples=4, seq_len=64, threads=1)
    record = quantize(recipe)
    assert figure(record, "accuracy", "original") == figure(before, "accuracy", str(tuned))
    assert abs(figure(record, "accuracy_change", str(out))) < 0.1
    assert figure(record, "kl", str(out)) < (1e-3 if bits == 8 else 0.3)
    assert record.data["test"] == before.data["test"]
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    assert list(opened.config.label2id) == ["food", "sport", "tech"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    logits = opened.eval()(**tokenizer("river goal match goal 7", return_tensors="pt")).logits
    assert opened.config.id2label[int(logits.argmax())] == "sport"


def test_rows_that_changed_or_went_since_tuning(topics: tuple[Path, RunRecord], tmp_path: Path) -> None:
    """What held-out scores rest on is said: the same rows by any name, changed rows, rows that are gone."""
    tuned, config = tmp_path / "tuned", transformers.AutoConfig.from_pretrained(topics[0])
    shutil.copytree(topics[0], tuned)
    kept = json.loads((tuned / "compress" / "task.json").read_text(encoding="utf-8"))
    data = tmp_path / "rows.csv"
    shutil.copy(kept["data"], data)
    (tuned / "compress" / "task.json").write_text(json.dumps({**kept, "data": str(data)}), encoding="utf-8")

    def found(**settings: Any) -> Found:
        return find_labelled(Recipe.build(model=str(tuned), **settings), tuned, config)

    by_itself, by_name = found().labelled, found(data=str(data), seed=7).labelled
    assert by_itself is not None
    assert by_name is not None
    assert by_itself.division == by_name.division
    assert not [note for note in by_itself.notes if "has changed" in note]
    assert found(data=str(data), text_column="text").labelled is None
    with data.open("a", encoding="utf-8") as file:
        file.write("one more river goal,sport\n")
    changed = found().labelled
    assert changed is not None
    assert [note for note in changed.notes if "has changed since the model was tuned on it" in note]
    data.unlink()
    assert found().labelled is None
    assert "is gone; give --data to judge the task" in found().note


def test_a_task_without_rows_and_rows_without_the_columns(bert: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(bert)
    with pytest.raises(UsageError, match="--task feature-extraction needs rows to judge with; give --data"):
        find_labelled(Recipe.build(task="feature-extraction"), bert, config)
    data = write_topics(tmp_path / "t.csv")
    with pytest.raises(DataError, match="feature-extraction reads a column of query"):
        find_labelled(Recipe.build(task="feature-extraction", data=str(data)), bert, config)


def test_a_cell_without_text_is_named_by_its_row(bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "t.jsonl"
    rows = [{"text": f"river {n}" if n != 33 else None, "label": "ab"[n % 2]} for n in range(40)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=r"row 34 of .*t\.jsonl has None in column 'text' where text should be"):
        run(bert, data, tmp_path / "out")


def test_tags_are_learned_repaired_and_judged_after_quantizing(bert: Path, tmp_path: Path) -> None:
    data = write_tags(tmp_path / "places.conll")
    record = run(bert, data, tmp_path / "out", epochs=3)
    assert figure(record, "entity_f1", str(tmp_path / "out")) > 0.8
    assert "12 I- tags without a B- before them were read as B-." in record.notes
    with pytest.raises(DataError, match=r"row 1 of .* leave out --strict"):
        run(bert, data, tmp_path / "other", strict=True)
    small = quantize(
        Recipe.build(model=str(tmp_path / "out"), out=str(tmp_path / "small"), bits=8, samples=4, seq_len=64, threads=1)
    )
    change = figure(small, "entity_f1_change", str(tmp_path / "small"))
    assert abs(change) < 0.05


def test_weights_of_rare_classes(bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "rare.csv"
    lines = write_topics(tmp_path / "all.csv", 180).read_text(encoding="utf-8").splitlines()
    rare = [line for line in lines[1:] if line.endswith("tech")][:8]
    data.write_text("\n".join([lines[0], *rare, *(x for x in lines[1:] if not x.endswith("tech"))]), encoding="utf-8")
    labelled = read_labelled(Wanted(str(data), "auto", {}, 0), [])
    truth = [str(labelled.rows[n]["label"]) for n in labelled.division.train]
    expected = compute_class_weight("balanced", classes=np.array(labelled.labels), y=np.array(truth))
    assert class_weights(labelled) == pytest.approx(expected.tolist())
    record = run(bert, data, tmp_path / "weighted", resample="weights", epochs=1)
    assert record.data["labels"] == {"food": 60, "sport": 60, "tech": 8}
    run(bert, data, tmp_path / "plain", epochs=1)
    heads = [load_file(tmp_path / name / "model.safetensors")["classifier.bias"] for name in ("weighted", "plain")]
    assert heads[0][2] > heads[1][2]  # the rare class is claimed more often


def test_a_loss_that_is_not_a_number_stops_with_its_step(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the loss is (nan|inf) at step \d+; lower --learning-rate 1e\+30"):
        run(bert, write_topics(tmp_path / "t.csv"), tmp_path / "out", learning_rate=1e30, warmup=0.0)


def test_labels_that_only_held_out_rows_have(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_topics(folder / "train.csv", 60)
    (folder / "test.csv").write_text("text,label\nriver salt 1000,drink\nriver goal 1001,sport\n", encoding="utf-8")
    with pytest.raises(DataError, match="the labels drink are in no training row"):
        run(bert, folder, tmp_path / "out")


def test_a_head_of_another_size(topics: tuple[Path, RunRecord], tmp_path: Path) -> None:
    lines = write_topics(tmp_path / "t.csv").read_text(encoding="utf-8").replace(",food", ",sport")
    lines = lines.replace(",tech", ",code")  # not one of the classes that the head has
    (tmp_path / "two.csv").write_text(lines, encoding="utf-8")
    with pytest.raises(ModelError, match="has a head for another number of classes than the 2 of the data"):
        run(topics[0], tmp_path / "two.csv", tmp_path / "out")


@pytest.mark.parametrize("method", ["full", "lora", "p-tuning"])
def test_a_crf_survives_saving_and_quantizing(method: str, bert: Path, tmp_path: Path) -> None:
    data, out = write_tags(tmp_path / "places.conll"), tmp_path / "out"
    options = {"tokens": 4} if method == "p-tuning" else {}
    source = bert
    if method == "p-tuning":  # which needs a checkpoint with everything but the head
        source = tmp_path / "whole"
        run(bert, data, source, epochs=1)
    record = run(source, data, out, epochs=4, crf=True, method=method, options=options)
    crf = read_crf(out, ("O", "B-place", "I-place"))
    assert crf is not None
    assert crf.chain.transitions[0, 2].item() < crf.chain.transitions[0, 1].item()
    f1 = figure(record, "entity_f1", str(out))
    assert f1 > (0.3 if method == "p-tuning" else 0.8)
    if method == "p-tuning":
        return
    assert not [name for name in load_file(out / "model.safetensors") if "crf" in name]
    small = quantize(
        Recipe.build(model=str(out), out=str(tmp_path / "small"), bits=8, samples=4, seq_len=64, threads=1)
    )
    assert figure(small, "entity_f1", "original") == f1
    assert (tmp_path / "small" / "crf.json").read_bytes() == (out / "crf.json").read_bytes()


def test_a_crf_is_for_taggers(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--crf is for tags of words; text-classification has none"):
        run(bert, write_topics(tmp_path / "t.csv"), tmp_path / "out", crf=True)


def test_a_column_that_is_not_there(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column 'stars'; the columns are: text, label"):
        run(bert, write_topics(tmp_path / "t.csv"), tmp_path / "out", columns={"label": "stars"})


def test_a_kind_of_column_that_the_task_does_not_have(bert: Path, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "t.csv")
    with pytest.raises(DataError, match="--columns lable=label: text-classification has no column of that kind"):
        run(bert, data, tmp_path / "out", task="text-classification", columns={"lable": "label"})
    with pytest.raises(DataError, match="no task fits the columns"):
        run(bert, data, tmp_path / "out", columns={"lable": "label"})


def test_the_kinds_of_columns_choose_the_task(bert: Path, tmp_path: Path) -> None:
    """A title, a body and a topic: a classifier, or, where the title is called a query, an embedder."""
    lines = write_topics(tmp_path / "t.csv", 60).read_text(encoding="utf-8").splitlines()[1:]
    body = "".join(f"title {n},{line}\n" for n, line in enumerate(lines))
    (tmp_path / "three.csv").write_text("title,body,topic\n" + body, encoding="utf-8")

    def task_of(**columns: str) -> str:
        return read_labelled(Wanted(str(tmp_path / "three.csv"), "auto", columns, 0), []).task.name

    assert task_of() == task_of(text="title") == "text-classification"
    assert task_of(query="title") == "feature-extraction"
