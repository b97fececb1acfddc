"""`compress bench` of task models: their figures on held-out rows, those that quantize reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from compress.cli import app
from tests.tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two words, tuned by the command itself, and its int8 twin beside it."""
    base = tmp_path_factory.mktemp("bench")
    save_tiny("bert", base / "bert")
    with (base / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [[f"{'goal' if n % 2 else 'chip'} number {n}", "sport" if n % 2 else "tech"] for n in range(120)]
        )
    quick = ["--threads", "1", "-q"]
    model = str(base / "bert")
    call("tune", model, "--data", str(base / "rows.csv"), "--out", str(base / "out"), "--epochs", "4", *quick)
    call("quantize", str(base / "out"), "--bits", "8", "--out", str(base / "int8"), "--samples", "4", *quick)
    return base


def call(*words: str) -> str:
    found = CliRunner().invoke(app, list(words))
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_figures_are_those_of_quantize(tuned: Path) -> None:
    out, small = str(tuned / "out"), str(tuned / "int8")
    record = json.loads(call("bench", out, small, "--no-latency", "--threads", "1", "--json"))
    found = {(m["subject"], m["name"]): m for m in record["measurements"]}
    quantized = json.loads((tuned / "int8" / "compress" / "record.json").read_text())["measurements"]
    wanted = {(m["subject"], m["name"]): m for m in quantized}
    assert found[out, "accuracy"]["median"] == wanted["original", "accuracy"]["median"]
    for name in ("accuracy", "f1_macro", "accuracy_change", "f1_macro_change"):
        assert found[small, name] == {**wanted[small, name], "subject": small}
    assert found[small, "bytes"]["median"] < found[out, "bytes"]["median"]


def test_text_is_judged_where_it_is_asked_for(tuned: Path) -> None:
    words = ["--no-latency", "--threads", "1", "--json", "--text-column", "text", "--data", str(tuned / "rows.csv")]
    record = json.loads(call("bench", str(tuned / "out"), str(tuned / "int8"), *words))
    names = {m["name"] for m in record["measurements"]}
    assert "hidden_cosine" in names
    assert "accuracy" not in names


def test_a_model_for_something_else_is_refused(tuned: Path, tmp_path: Path) -> None:
    config = BertConfig(vocab_size=416, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=5)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "five")
    tiny_tokenizer().save_pretrained(tmp_path / "five")
    found = CliRunner().invoke(app, ["bench", str(tmp_path / "five"), "--data", str(tuned / "rows.csv"),
                                         "--task", "text-classification", "--no-latency", "-q"])  # fmt: skip
    assert found.exit_code == 3
    assert "labels that the model does not know" in found.output
