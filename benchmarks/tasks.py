"""Acceptance 1 to 3 of issue B: task models made by `make inputs`, before and after `compress quantize`.

Figures are the product's own, of `--json`: the task's on every held-out row, and the change paired by row, with 95 %
intervals. A bound is held by the change itself; its interval stands beside it. Two runs at a time, one thread each:
timings in here are not for quoting.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.inputs._making import INPUTS, minilm
from benchmarks.pairing import gain
from benchmarks.shared import RUNS, line

SETTINGS: dict[str, tuple[str, ...]] = {
    "W8A8 static": ("--bits", "8", "--activations", "static"),
    "W8A8 dynamic": ("--bits", "8", "--activations", "dynamic"),
    "8 bit weights": ("--bits", "8", "--activations", "none"),
    "4 bit weights": ("--bits", "4", "--uniform"),
    "mixed 4/8": ("--bits", "4", "--mixed"),
}
"""What is done to a model, as options of `compress quantize`."""

INT8 = ("W8A8 static", "W8A8 dynamic", "8 bit weights")
WORKERS = 2


@dataclass(frozen=True)
class Subject:
    """A model, its rows, and what it is held to.

    model, data: below runs/inputs; an empty model is MiniLM as it is. least: metric -> of the original.
    lost: setting -> metric -> by how much the setting may make it worse. settings: those that it is measured at.
    """

    model: str
    data: str
    metrics: tuple[str, ...]
    options: tuple[str, ...] = ()
    least: Mapping[str, float] = field(default_factory=dict)
    lost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: tuple[str, ...] = tuple(SETTINGS)


ERRORS = {"wer", "cer"}
"""Metrics of which less is better."""

TAGGER = {name: {"entity_f1": 0.01} for name in INT8}
SUBJECTS: dict[str, Subject] = {
    "BBC topics": Subject(
        "bbc-topics",
        "bbc/bbc.csv",
        ("accuracy", "f1_macro"),
        least={"accuracy": 0.96},
        lost={**{name: {"accuracy": 0.005} for name in INT8}, "4 bit weights": {"accuracy": 0.015}},
    ),
    "tweets, full": Subject("tweets-ner-full", "tweets", ("entity_f1",), lost=TAGGER),
    "tweets, full + CRF": Subject("tweets-ner-full-crf", "tweets", ("entity_f1",), lost=TAGGER),
    "tweets, LoRA": Subject("tweets-ner-lora", "tweets", ("entity_f1",), lost=TAGGER),
    "tweets, LoRA + CRF": Subject("tweets-ner-lora-crf", "tweets", ("entity_f1",), lost=TAGGER),
    "BBC retrieval": Subject(
        "",
        "bbc-retrieval",
        ("recall_at_10", "recall_at_1"),
        ("--task", "feature-extraction", "--seq-len", "256"),  # what sentence_bert_config.json cuts at
        lost={**{name: {"recall_at_10": 0.005} for name in INT8}, "mixed 4/8": {"recall_at_10": 0.01}},
    ),
    # no `make inputs` without espeak-ng, which speaks its sentences
    "Whisper tiny.en": Subject(
        "whisper",
        "speech",
        ("wer",),
        lost={"8 bit weights": {"wer": 0.01}},
        settings=("8 bit weights", "4 bit weights"),
    ),
}
CRF = (("tweets-ner-full", "tweets-ner-full-crf"), ("tweets-ner-lora", "tweets-ner-lora-crf"))
"""Models tuned alike without and with a CRF."""


def measure(name: str, setting: str) -> dict[str, Any]:
    """Figures of one subject at one setting, or the sentence with which the command refused."""
    subject = SUBJECTS[name]
    out = RUNS / f"tasks-{subject.data.partition('/')[0]}-{subject.model}-{list(SETTINGS).index(setting)}"
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run(command(subject, setting, out), capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"subject": name, "setting": setting, "options": list(SETTINGS[setting])}
    if done.returncode:
        row["refused"] = done.stderr.strip().replace(str(out), out.name)
    else:
        row |= {"bytes": {}, "figures": {}}
        for m in json.loads(done.stdout)["measurements"]:
            whose = "original" if m["subject"] == "original" else "compressed"
            if m["name"] == "bytes":
                row["bytes"][whose] = m["median"]
            elif m["name"] != "bits_per_weight":
                kept = {"median": m["median"], "low": m["low"], "high": m["high"], "n": m["n"]}
                row["figures"][f"original_{m['name']}" if whose == "original" else m["name"]] = kept
    shutil.rmtree(out, ignore_errors=True)
    print("   " + shown(subject, row), flush=True)
    return row


def command(subject: Subject, setting: str, out: Path) -> list[str]:
    """The command line of one run."""
    model = INPUTS / subject.model if subject.model else minilm()
    words = ["quantize", str(model), "--data", str(INPUTS / subject.data), "--out", str(out), *subject.options]
    sizes = ["--eval-samples", "1000", "--generate", "0", "--threads", "1", "--json"]
    return [sys.executable, "-m", "compress.cli", *words, *SETTINGS[setting], *sizes]


def shown(subject: Subject, row: Mapping[str, Any]) -> str:
    """One line: the original's figure, the compressed one's, the change with its interval, bytes, the bound."""
    head = f"{row['subject']:<19} {row['setting']:<14}"
    if "refused" in row:
        return f"{head} {row['refused']}"
    figures, parts = row["figures"], []
    for metric in subject.metrics:
        bound = subject.lost.get(row["setting"], {}).get(metric)
        kept = figures[f"{metric}_change"]["median"]
        verdict = "" if bound is None else f", bound {bound:g} {'met' if worse(metric, kept) <= bound else 'MISSED'}"
        was, now = (figures[f"{prefix}{metric}"]["median"] for prefix in ("original_", ""))
        parts.append(f"{metric} {was:.4f} -> {now:.4f}, {interval(figures[f'{metric}_change'])}{verdict}")
    size = row["bytes"]
    return f"{head} {'; '.join(parts)}; {size['original'] / 1e6:.1f} -> {size['compressed'] / 1e6:.1f} MB"


def worse(metric: str, change: float) -> float:
    """By how much a change makes a metric worse."""
    return change if metric in ERRORS else -change


def interval(figure: Mapping[str, Any]) -> str:
    """`-0.0024 [-0.0072, 0.0024]`."""
    if figure["low"] is None:
        return f"{figure['median']:+.4f}"
    return f"{figure['median']:+.4f} [{figure['low']:+.4f}, {figure['high']:+.4f}]"


def held(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for every bound: what originals must reach, then what settings may lose."""
    lines = []
    for name, subject in SUBJECTS.items():
        mine = [row for row in rows if row["subject"] == name]
        whole = next((row for row in mine if "refused" not in row), None)
        for metric, least in subject.least.items():
            value = whole["figures"][f"original_{metric}"]["median"] if whole else float("nan")
            lines.append(line(f"{name}: {metric} before", f"{value:.4f}", f">= {least:g}", value >= least))
        for row in mine:
            for metric, bound in subject.lost.get(row["setting"], {}).items():
                what = f"{name}, {row['setting']}: change of {metric}"
                if "refused" in row:
                    lines.append(line(what, "refused", f"{bound:g} worse", False))
                    continue
                change = row["figures"][f"{metric}_change"]
                met = worse(metric, change["median"]) <= bound
                lines.append(line(what, interval(change), f"{bound:g} worse", met))
    return lines


def run() -> dict[str, Any]:
    """Every subject at its settings, and what a CRF gains."""
    missing = [s.model or s.data for s in SUBJECTS.values() if not (INPUTS / (s.model or s.data)).is_dir()]
    if missing:
        raise SystemExit(f"{missing[0]} has not been made; run: make inputs")
    jobs = [(name, setting) for name, subject in SUBJECTS.items() for setting in subject.settings]
    with ThreadPoolExecutor(WORKERS) as pool:
        rows = list(pool.map(measure, *zip(*jobs, strict=True)))
    lines = held(rows)
    gains = []
    for plain, crf in CRF:
        found = gain(INPUTS / plain, INPUTS / crf, INPUTS / "tweets", "entity_f1")
        gains.append(found)
        lines.append(line(f"{crf}: entity_f1 against {plain}", interval(found["gain"]), "stated", True))
    return {"lines": lines, "rows": rows, "crf": gains}
