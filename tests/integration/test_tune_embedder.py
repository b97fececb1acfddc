"""A tiny embedder tuned on pairs: it finds more, its folder keeps the pooling, and quantizing judges it again."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.core.types import RunRecord
from compress.pipeline.quantize import quantize
from compress.pipeline.tune import tune
from compress.recipe import Recipe, TuneRecipe
from tests.integration.test_tune import figure
from tests.tiny import randomize, tiny_config, tiny_tokenizer

ASKED = {"river": "market", "window": "engine", "garden": "school", "goal": "chip", "bread": "code"}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT body with the files of sentence-transformers, which say that [CLS] is the vector."""
    folder = tmp_path_factory.mktemp("source") / "embedder"
    torch.manual_seed(0)
    model = transformers.BertModel(tiny_config("bert"))
    randomize(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""},
               {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    return folder


def write_pairs(path: Path, rows: int = 240, scored: bool = False) -> Path:
    """Queries of two words and passages of the two that answer them: nothing but training tells which."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2", "score"] if scored else ["query", "passage"])
        for n in range(rows):
            words = draw.sample(sorted(ASKED), k=2)
            wrong = scored and n % 2 == 1
            said = draw.sample(sorted(ASKED.values()), k=2) if wrong else [ASKED[word] for word in words]
            right = len(set(said) & {ASKED[word] for word in words})
            row = [" ".join([*words, str(n)]), " ".join([*said, str(n * 7 % 100)])]
            writer.writerow([*row, 2.5 * right] if scored else row)
    return path


def run(model: Path, data: Path, out: Path, **settings: Any) -> RunRecord:
    quick = {"epochs": 6, "learning_rate": 2e-3, "threads": 1, "batch_size": 16, "patience": 0}
    return tune(TuneRecipe.build(model=str(model), data=str(data), out=str(out), **(quick | settings)))


def test_pairs_are_learned_and_judged_again(embedder: Path, tmp_path: Path) -> None:
    data, out = write_pairs(tmp_path / "pairs.csv"), tmp_path / "out"
    small = {"samples": 4, "seq_len": 64, "threads": 1, "bits": 8}
    before = quantize(Recipe.build(model=str(embedder), data=str(data), out=str(tmp_path / "plain"),
                                   task="feature-extraction", **small))  # fmt: skip
    record = run(embedder, data, out)
    assert record.data["task"] == "feature-extraction"  # by its columns alone
    name = "recall_at_10"
    assert figure(record, name, str(out)) > figure(before, name, "original") + 0.15
    assert not [m for m in record.measurements if m.name == "spearman"]
    assert (out / "1_Pooling" / "config.json").read_bytes() == (embedder / "1_Pooling" / "config.json").read_bytes()
    assert transformers.AutoModel.from_pretrained(out).config.model_type == "bert"
    after = quantize(Recipe.build(model=str(out), out=str(tmp_path / "small"), **small))
    assert figure(after, name, "original") == pytest.approx(figure(record, name, str(out)), abs=1e-9)
    assert abs(figure(after, f"{name}_change", str(tmp_path / "small"))) < 0.1


def test_similarities_are_learned(embedder: Path, tmp_path: Path) -> None:
    record = run(embedder, write_pairs(tmp_path / "scored.csv", scored=True), tmp_path / "out", epochs=8)
    scores = [line["spearman"] for line in record.training["lines"] if "spearman" in line]
    assert len(scores) == 8
    kept = next(line for line in record.training["lines"] if line["step"] == record.training["best"]
                and "spearman" in line)  # fmt: skip
    assert kept["spearman"] == max(scores)
    assert figure(record, "spearman", str(tmp_path / "out")) > 0.3


@pytest.mark.parametrize("method", ["lora", "bitfit", "prompt"])
def test_adapters_of_embedders(method: str, embedder: Path, tmp_path: Path) -> None:
    options = {"prompt": {"tokens": 4}, "lora": {"rank": 4}}.get(method, {})
    record = run(embedder, write_pairs(tmp_path / "pairs.csv"), tmp_path / "out", method=method, options=options,
                 learning_rate=None)  # fmt: skip
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    assert losses[-1] < losses[0]
    assert record.model["trained"] < 0.2 * record.model["parameters"]
    assert all(line["passed"] for line in record.verified)
