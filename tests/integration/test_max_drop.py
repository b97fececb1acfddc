"""`quantize --max-drop` on tiny models: the bound is shown, a plan that loses too much is built again, refusals."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from compress.core.errors import BudgetError, CompressError, RecipeError
from compress.core.types import RunRecord
from compress.measure.size import weight_bytes
from compress.pipeline import planning
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe
from tests.killed import killed_after
from tests.rebuild import write_text
from tests.tiny import CORPUS, save_tiny

ROWS = 480


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier and rows that it answers right, all of them."""
    folder = tmp_path_factory.mktemp("drop")
    place = save_tiny("bert-classifier", folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    draw = random.Random(0)
    words = [word for word in " ".join(CORPUS).split() if len(word) < 12 and word.isascii()]
    texts = [" ".join(draw.choices(words, k=8)) for _ in range(ROWS)]
    with torch.no_grad():
        scores = torch.cat(
            [model(**tokenizer(t, return_tensors="pt", return_token_type_ids=False)).logits for t in texts]
        )
    middle = scores.median(0).values  # both answers occur
    model.classifier.bias.data -= middle
    model.save_pretrained(place)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, [model.config.id2label[int(n)] for n in (scores - middle).argmax(1)], strict=True))
    return folder


def dropped(folder: Path, out: Path, **settings: Any) -> RunRecord:
    """The record of a run on the rows beside the model."""
    small = {"samples": 40, "seq_len": 32, "threads": 1, "verify": False, "generate": 0, "max_drop": "8%"}
    base = {"model": str(folder / "model"), "data": str(folder / "rows.csv"), "out": str(out)}
    return quantize(Recipe.build(**{**base, **small, **settings}))


def test_the_smallest_file_that_is_shown_to_lose_little(classifier: Path, tmp_path: Path) -> None:
    record = dropped(classifier, tmp_path / "out")
    before = next(m.median for m in record.measurements if m.name == "accuracy" and m.subject == "original")
    assert before == 1.0
    after = next(m for m in record.measurements if m.name == "accuracy_change")
    assert after.n > 100
    assert after.median >= -0.08
    whole = dropped(classifier, tmp_path / "int8", max_drop="", bits=8, activations="none", embeddings="int8")
    assert weight_bytes(tmp_path / "out") < weight_bytes(tmp_path / "int8")
    assert whole.sensitivity == {}
    said = next(note for note in record.notes if note.startswith("accuracy drops by at most"))
    assert any(f"({share}% sure, 134 rows" in said for share in ("95", "96.5", "98.5"))
    assert said.endswith("within --max-drop 8.00%")
    measured = [row["measured"][0] for row in record.sensitivity["frontier"]]
    assert measured[0] > measured[-1]
    assert "Plans judged on calibration text, nats per answer" in (tmp_path / "out" / "report.txt").read_text()


def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan that is tried first is the smallest there is."""
    monkeypatch.setattr(planning, "expected_bounds", lambda ready, seen, *_: [0.0] * len(seen))


def test_a_plan_that_loses_too_much_is_replaced_and_killed_anywhere_it_ends_the_same(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bold(monkeypatch)
    settings = {"max_drop": "8%", "data": str(classifier / "rows.csv")}
    record = dropped(classifier, tmp_path / "whole", **settings)
    lines = (tmp_path / "whole" / "compress" / "journal.jsonl").read_text().splitlines()
    (failed,) = [line for line in map(json.loads, lines) if line["kind"] == "void"]
    assert failed["certificate"]["bound"] > 0.08
    assert any(note.startswith("A smaller plan was built first: accuracy drops by at most") for note in record.notes)
    assert any("98.5% sure" in note for note in record.notes)
    kinds = ("judged", "planned", "void", "block", "measured", "outside")
    deaths = killed_after(monkeypatch, kinds, lambda: dropped(classifier, tmp_path / "cut", **settings))
    assert {"judged", "planned", "void", "block", "measured"} <= set(deaths)
    assert deaths.count("measured") == 2
    for name in ("model.safetensors", "config.json", "compress/plan.json", "compress/profile.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_perplexity_may_grow_so_much(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    text = write_text(tmp_path / "text.txt")
    base = {"samples": 24, "seq_len": 32, "eval_samples": 12, "threads": 1, "verify": False, "generate": 0}
    record = quantize(
        Recipe.build(model=str(tmp_path / "model"), data=str(text), out=str(tmp_path / "out"), max_drop="6%", **base)
    )
    said = next(note for note in record.notes if note.startswith("perplexity"))
    assert "within --max-drop 6.00%" in said
    ratio = next(m for m in record.measurements if m.name == "perplexity_ratio")
    assert ratio.median <= 1.06
    assert {row.scheme for row in record.layers if row.block >= 0} != {"int8-row-sym"}


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"max_drop": "0.1%"}, BudgetError, "held-out rows cannot show that accuracy drops by less than 0.10%"),
        ({"max_drop": "much"}, RecipeError, "--max-drop 'much' is not understood; write it like 1% or 0.01"),
        ({"max_drop": "1%", "bits": 3}, RecipeError, "chooses bits layer by layer; leave out --bits"),
        ({"max_drop": "8%", "max_bytes": "1kB"}, BudgetError, "1,000 bytes are too few"),
    ],
)
def test_what_cannot_be_shown_leaves_nothing(
    classifier: Path, tmp_path: Path, settings: dict[str, Any], kind: type[CompressError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        dropped(classifier, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_model_without_answers_has_no_figure_that_could_drop(tmp_path: Path) -> None:
    save_tiny("mpnet", tmp_path / "model")
    text = write_text(tmp_path / "text.txt")
    with pytest.raises(RecipeError, match=r"there is none for .* on this data: give --data with answers"):
        quantize(Recipe.build(model=str(tmp_path / "model"), data=str(text), out=str(tmp_path / "o"), max_drop="1%"))
