"""Acceptance 2, 5 and 8 of issue C: ONNX exports of the task models in onnxruntime: figures next to torch's, latency.

Task figures are those of `compress export --json`: held-out rows through the runtime and through the compressed model
in memory. Latency: onnxruntime on the float32 export, on the others, and torch on the original, one open at a time,
several rounds, the same threads, batches of texts of 128 tokens; a ratio is the median
of those of the rounds. Once more on one thread.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inputs._making import INPUTS
from benchmarks.shared import RUNS, line
from benchmarks.tasks import SETTINGS, SUBJECTS, command
from compress.core.device import set_threads

FLOAT = "float32"
KINDS = (FLOAT, "W8A8 static", "W8A8 dynamic", "8 bit weights", "4 bit weights")
CHOSEN = ("BBC topics", "tweets, full", "BBC retrieval", "Whisper tiny.en")
LENGTH, REPEATS, ROUNDS, WARM, SETTLE = 128, {1: 12, 32: 3}, 10, 2, 0.5
FASTER, QUIET = 1.8, 1.1


def artifact(name: str, kind: str) -> Path:
    """The artifact of a subject at a setting, made unless it is there; float weights are those of 8 bit weights."""
    setting = "8 bit weights" if kind == FLOAT else kind
    out = RUNS / f"onnx-{name.replace(' ', '-').replace(',', '').lower()}-{list(SETTINGS).index(setting)}"
    if not (out / "compress" / "record.json").is_file():
        words = command(SUBJECTS[name], setting, out)
        words[words.index("--eval-samples") + 1] = "500"
        done = subprocess.run([*words, "--overwrite"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, {setting}: {done.stderr.strip()}")
    return out


def exported(name: str, kind: str) -> dict[str, Any]:
    """The export of a subject: where it is, bytes, and the line of its task's score."""
    source = artifact(name, kind)
    where = RUNS / "onnx-exports" / f"{source.name}-{'float' if kind == FLOAT else 'codes'}"
    options = ["--option", "weights=float32"] if kind == FLOAT else []
    words = ["export", str(source), "--to", "onnx", "--out", str(where), "--overwrite", "--json", *options]
    done = subprocess.run([sys.executable, "-m", "compress.cli", *words], capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"subject": name, "kind": kind, "exit": done.returncode}
    if not done.stdout.strip():
        return {**row, "refused": done.stderr.strip().replace(str(source), source.name)}
    record = json.loads(done.stdout)
    row["bytes"] = next(m["median"] for m in record["measurements"] if m["name"] == "bytes")
    row["lines"] = [{k: v for k, v in told.items() if k != "export"} for told in record["verified"]]
    return {**row, "folder": str(where.relative_to(RUNS)), "said": done.stderr.strip()[-300:]}


def scores(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each task figure in onnxruntime against torch's."""
    found = []
    for row in rows:
        what = f"{row['subject']}, {row['kind']}: score in onnxruntime against torch"
        told = next((told for told in row.get("lines", ()) if told["check"] == "task score"), None)
        bound = "equal within .005" if row["subject"].startswith("Whisper") else "equal within .002"
        if told is None:
            found.append(line(what, row.get("refused") or row.get("said") or "not judged", bound, False))
            continue
        value = f"{told['metric']} {told['runtime_score']:.4f} against {told['torch']:.4f}, {told['rows']} rows"
        limit = 0.005 if row["subject"].startswith("Whisper") else 0.002
        found.append(line(what, value, bound, told["difference_of_score"] <= limit + 1e-12))
    return found


Call = Callable[[np.ndarray[Any, Any]], Any]


def runners(rows: list[dict[str, Any]], threads: int) -> dict[str, Callable[[], Call]]:
    """What is timed, by name: what opens it, and gives one call with token ids (b, 128)."""
    from transformers import AutoModelForSequenceClassification

    from export.runtimes.onnxruntime import RUNTIME

    def by_torch() -> Call:
        folder = INPUTS / "bbc-topics"
        torch.set_num_threads(threads)
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

        def call(ids: np.ndarray[Any, Any]) -> Any:
            with torch.inference_mode():
                given = torch.from_numpy(ids)
                return model(input_ids=given, attention_mask=torch.ones_like(given)).logits

        return call

    def by_session(folder: str) -> Call:
        session = RUNTIME.open(str(RUNS / folder), {"threads": threads})
        return lambda ids: session.run({"input_ids": ids})

    found: dict[str, Callable[[], Call]] = {"torch float32": by_torch}
    for row in rows:
        if row["subject"] == "BBC topics" and "folder" in row:
            found[row["kind"]] = partial(by_session, row["folder"])
    return found


def latency(rows: list[dict[str, Any]], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Medians of each runner by batch, of every round: one runner after another, never two open at a time, since
    threads of a session wait in a loop and take the cores of the next one."""
    openers = runners(rows, threads)
    draw = np.random.default_rng(0)
    given = {batch: draw.integers(1000, 20000, (batch, LENGTH)) for batch in REPEATS}
    taken: dict[tuple[int, str], list[list[float]]] = {(batch, name): [] for batch in REPEATS for name in openers}
    for _ in range(rounds):
        for name, opened in openers.items():
            call = opened()
            for batch, repeats in REPEATS.items():
                seconds = []
                for turn in range(WARM + repeats):
                    begin = time.perf_counter()
                    call(given[batch])
                    if turn >= WARM:
                        seconds.append(time.perf_counter() - begin)
                taken[batch, name].append(seconds)
            del call
            gc.collect()
            time.sleep(SETTLE)
    found = []
    for (batch, name), by_round in taken.items():
        whole = [1e3 * seconds for part in by_round for seconds in part]
        row = {"threads": threads, "batch": batch, "name": name, "median_ms": statistics.median(whole),
               "least_ms": min(whole), "n": len(whole),
               "rounds_ms": [1e3 * statistics.median(part) for part in by_round]}  # fmt: skip
        found.append(row)
        print(f"   {threads} threads, batch {batch:2d} {name:<16} {row['median_ms']:8.1f} ms, "
              f"least {row['least_ms']:8.1f}", flush=True)  # fmt: skip
    return found


def held(timed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines on ratios: int8 over float32, float32 over torch. Of what one round measured one after another, then the
    median of the rounds in which nobody else was there: those whose float32 took at most QUIET times its best round.

    A host that moves the two cores of a virtual machine apart costs a batch of one text the same 5 ms whatever its
    kind, for minutes; by float32 such rounds are told, so that what is left over is not better for int8 than it is.
    """
    by = {(row["batch"], row["name"]): row["rounds_ms"] for row in timed}
    where = f"{timed[0]['threads']} threads"
    lines = []
    for batch in REPEATS:
        plain = by.get((batch, FLOAT))
        if plain is None:
            continue
        most = QUIET * min(plain)
        quiet = sum(ms <= most for ms in plain)
        pairs = [(kind, FLOAT, f">= {FASTER}" if kind.startswith("W8A8") else "stated") for kind in KINDS[1:]]
        for kind, base, bound in [*pairs, (FLOAT, "torch float32", ">= 1")]:
            if (batch, kind) in by:
                every = [a / b for a, b in zip(by[batch, base], by[batch, kind], strict=True)]
                ratio = statistics.median(ratio for ratio, ms in zip(every, plain, strict=True) if ms <= most)
                said = f"{ratio:.2f} ({quiet} of {len(every)} rounds; all: {statistics.median(every):.2f})"
                over = "float32 in onnxruntime" if base == FLOAT else "torch"
                least = {f">= {FASTER}": FASTER, ">= 1": 1.0}.get(bound, 0.0)
                lines.append(line(f"{kind} over {over}, {where}, batch {batch}", said, bound, ratio >= least))
    return lines


def run() -> dict[str, Any]:
    """Every subject at every kind, then latencies of the classifier."""
    missing = [s for s in (SUBJECTS[name] for name in CHOSEN) if not (INPUTS / (s.model or s.data)).is_dir()]
    if missing:
        raise SystemExit(f"{missing[0].model or missing[0].data} has not been made; run: make inputs")
    rows = []
    for name in CHOSEN:
        for kind in KINDS:
            if kind == FLOAT or kind in SUBJECTS[name].settings:
                rows.append(exported(name, kind))
                print(f"   {name}, {kind}: {scores(rows[-1:])[0]['value']}", flush=True)
    threads = set_threads(0)
    timed = latency(rows, threads, ROUNDS)
    alone = latency(rows, 1, ROUNDS // 2) if threads > 1 else []
    lines = [*scores(rows), *held(timed), *(held(alone) if alone else ())]
    return {"lines": lines, "threads": threads, "rows": rows, "latency": [*timed, *alone]}
