"""Issue D, item 7: candidates for better codes at the same size, one by one, and what each part of ours is worth.

Group 64, asymmetric, no mixed bits, 32 x 256 calibration tokens; held-out divergence to the original in nats (of a
token, a word's tag, a text's label), single runs. Seconds are of one core, by the processor's own clock, model opened
and held-out text judged included. Each cell is a file in runs/bench/candidates: what is there is not measured again,
and reports/candidates.json holds whatever is there; delete a file to measure its cell anew.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
import sys
from itertools import product
from typing import Any

from benchmarks.inputs._making import INPUTS
from benchmarks.shared import RUNS, bbc, line, save

CANDIDATES: dict[str, tuple[str, ...]] = {
    "gptq": ("--method", "gptq"),
    "rtn": ("--method", "rtn"),
    "hqq": ("--method", "hqq"),
    "awq": ("--method", "awq"),
    "gptq + awq": ("--method", "gptq", "--reparam", "awq"),
    "gptq + rotate": ("--method", "gptq", "--reparam", "rotate"),
    "gptq classic": ("--method", "gptq", "--option", "classic=true"),
    "gptq without correct": ("--method", "gptq", "--option", "correct=false"),
    "gptq without rounds": ("--method", "gptq", "--option", "rounds=0"),
    "gptq without shrinkage": ("--method", "gptq", "--option", "shrinkage=0"),
    "gptq without act_order": ("--method", "gptq", "--option", "act_order=false"),
    "rtn by min-max": ("--method", "rtn", "--option", "clip=false"),
    "rtn + rotate": ("--method", "rtn", "--reparam", "rotate"),
    "gptq + rotate, awq": ("--method", "gptq", "--reparam", "rotate,awq"),
}
"""What is compared, as options of `compress quantize`; the first is the default, which ratios are to."""

BBC = "the articles of the BBC"  # in place of their folder, which only a run needs
SUBJECTS: dict[str, tuple[str, ...]] = {
    "tweets": (
        str(INPUTS / "tweets-ner-full"),
        *("--data", str(INPUTS / "tweets"), "--eval-samples", "400", "--uniform", "--embeddings", "keep"),
    ),
    "topics": (
        str(INPUTS / "bbc-topics"),
        *("--data", str(INPUTS / "bbc" / "bbc.csv"), "--eval-samples", "200", "--uniform", "--embeddings", "keep"),
    ),
    "demo": ("demo", "--data", BBC, "--eval-samples", "6"),
}
"""MiniLM as a tagger and as a classifier, SmolLM2-135M with its norms folded."""

BITS = (3, 2, 4)
FIGURES = ("kl", "top1_agreement", "hidden_cosine", "perplexity_ratio", "accuracy_change", "entity_f1_change")
CELLS = RUNS / "candidates"


def measure(subject: str, bits: int, candidate: str) -> dict[str, Any]:
    """One cell: figures with intervals, and processor seconds."""
    out = RUNS / "candidates-out"
    shutil.rmtree(out, ignore_errors=True)
    words = [
        "quantize",
        *(str(bbc()) if word == BBC else word for word in SUBJECTS[subject]),
        "--bits",
        str(bits),
        "--group-size",
        "64",
        "--asymmetric",
        "--out",
        str(out),
    ]
    words += ["--samples", "32", "--seq-len", "256", "--generate", "0", "--threads", "1", "--no-verify", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "compress.cli", *words, *CANDIDATES[candidate]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{subject}, {bits} bits, {candidate}: {done.stderr.strip()}")
    record = json.loads(done.stdout)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cell: dict[str, Any] = {"subject": subject, "bits": bits, "candidate": candidate, "cpu_seconds": round(seconds, 1)}
    for m in record["measurements"]:
        if m["name"] in FIGURES and m["subject"] != "original":
            cell[m["name"]] = {name: m[name] for name in ("median", "low", "high", "n")}
    cell["notes"] = [note for note in record["notes"] if note.startswith("The inputs of")]
    shutil.rmtree(out)
    print(f"   {subject}, {bits} bits, {candidate}: KL {cell['kl']['median']:.4f}, {seconds:.0f} s", flush=True)
    return cell


def rows_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each candidate: its divergence over the default's where both were measured, geometric means."""
    kl = {(c["subject"], c["bits"], c["candidate"]): c["kl"]["median"] for c in cells}
    base = next(iter(CANDIDATES))
    found = []
    for candidate, bits in product(CANDIDATES, sorted(BITS)):
        ratios = {s: kl[s, bits, candidate] / kl[s, bits, base] for s in SUBJECTS
                  if (s, bits, candidate) in kl and (s, bits, base) in kl}  # fmt: skip
        if candidate != base and ratios:
            mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
            shown = ", ".join(f"{subject} {ratio:.2f}" for subject, ratio in ratios.items())
            found.append(line(f"{candidate}, {bits} bits: KL over {base}'s", f"{mean:.2f} ({shown})", "stated", True))
    return found


def result(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What the report holds."""
    return {"lines": rows_of(cells), "rows": cells, "cells": f"{len(cells)} of {len(jobs())}"}


def jobs() -> list[tuple[str, int, str]]:
    """Every cell, three bits first."""
    return [(subject, bits, name) for bits, name, subject in product(BITS, CANDIDATES, SUBJECTS)]


def run() -> dict[str, Any]:
    """Measure what is not there yet."""
    CELLS.mkdir(parents=True, exist_ok=True)
    paths = {job: CELLS / f"{job[0]}-{job[1]}-{'-'.join(job[2].replace(',', '').split())}.json" for job in jobs()}
    for job, path in paths.items():
        if path.is_file():
            continue
        cell = measure(*job)
        staged = path.with_suffix(".part")
        staged.write_text(json.dumps(cell), encoding="utf-8")
        staged.rename(path)
        save("candidates", result(_read(paths.values())))
    return result(_read(paths.values()))


def _read(paths: Any) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
