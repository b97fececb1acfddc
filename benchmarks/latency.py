"""Acceptance 7 of issue D: `quantize --max-latency` on a real encoder, what was expected beside what the export takes.

First a budget that no plan keeps and one that the model keeps as it is: both are refused, and say what the fastest plan
and the model take. Then budgets in between, each a run of its own that times operators, plans, exports and times the
export. Then the exports once more, with the float32 model in the same rounds: by its share of that one a plan is judged
even where the machine is slower than it was when the plan was made.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.inputs._making import INPUTS
from benchmarks.shared import RUNS, line
from compress.core.device import usable_cores
from compress.measure.operators import Request, Timing, in_rounds
from export.client import RuntimeProcess

MODEL, DATA = "bbc-topics", "bbc/bbc.csv"
BATCH, TOKENS = 1, 128
BETWEEN = (0.2, 0.5, 0.8)
"""Where budgets lie between the fastest plan and the model as it is; on all cores the middle one alone."""
CLOSE = 0.10
ROUNDS = 10


def quantized(budget: str, threads: int, out: Path) -> subprocess.CompletedProcess[str]:
    """A run of the command."""
    words = ["quantize", str(INPUTS / MODEL), "--data", str(INPUTS / DATA), "--to", "onnx", "--max-latency", budget]
    words += ["--request", f"{BATCH}x{TOKENS}", "--threads", str(threads), "--samples", "32", "--json", "--overwrite"]
    return subprocess.run(
        [sys.executable, "-m", "compress.cli", *words, "--out", str(out)], capture_output=True, text=True, check=False
    )


def said(done: subprocess.CompletedProcess[str], pattern: str, code: int) -> float:
    """A number of a refusal. Raises SystemExit where it was none."""
    found = re.search(pattern, done.stderr)
    if done.returncode != code or found is None:
        raise SystemExit(f"exit {done.returncode}: {done.stderr.strip()[-400:]}")
    return float(found[1])


def planned(ms: float, threads: int, out: Path) -> dict[str, Any]:
    """What a run within a budget expected, and what its export took."""
    done = quantized(f"{ms:.2f}ms", threads, out)
    if not done.stdout.strip():
        raise SystemExit(f"{ms:.2f} ms: {done.stderr.strip()[-400:]}")
    record = json.loads(done.stdout)
    took = next(m for m in record["measurements"] if m["name"] == "latency_ms")
    layers = [row for name, row in record["plan"]["layers"].items() if ".layer." in name]
    timed = next(told for told in _journal(out) if told["kind"] == "timed")
    return {
        "budget_ms": round(ms, 2), "threads": threads, "exit": done.returncode, "out": str(out.relative_to(RUNS)),
        "expected_ms": record["plan"]["predicted_ms"], "took_ms": took["median"], "low": took["low"],
        "high": took["high"], "int8": sum("activation" in row for row in layers), "layers": len(layers),
        "accuracy": {m["subject"]: m["median"] for m in record["measurements"] if m["name"] == "accuracy"},
        "float_ms": timed["whole"][timed["dense"]], "table": timed,
    }  # fmt: skip


def _journal(out: Path) -> list[dict[str, Any]]:
    text = (out / "compress" / "journal.jsonl").read_text(encoding="utf-8")
    return [json.loads(row) for row in text.splitlines()]


def again(rows: list[dict[str, Any]], threads: int) -> None:
    """Time all exports and the float32 model in the same rounds; medians go into the rows."""
    plain = RUNS / f"latency-float-{threads}"
    words = ["export", str(RUNS / rows[0]["out"]), "--to", "onnx", "--out", str(plain), "--overwrite", "--no-verify"]
    words += ["--option", "weights=float32", "--quiet"]
    subprocess.run([sys.executable, "-m", "compress.cli", *words], check=True, capture_output=True)
    files = {"float32": plain / "model.onnx"}
    files |= {row["out"]: RUNS / row["out"] / "exports" / "onnx" / "model.onnx" for row in rows}
    with RuntimeProcess("onnxruntime", threads) as process:
        taken = in_rounds(process, files, Request(BATCH, TOKENS, 30000), Timing(ROUNDS, 5, 0.25), lambda *_: None)
    medians = {name: [statistics.median(part) for part in rounds] for name, rounds in taken.items()}
    for row in rows:
        pairs = zip(medians[row["out"]], medians["float32"], strict=True)
        row["share"] = statistics.median(mine / plain_ms for mine, plain_ms in pairs)
        row["again_ms"], row["float_again_ms"] = medians[row["out"]], medians["float32"]


def lines_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is held to the bound: the run's own figures, and shares of the float32 model."""
    found = []
    for row in rows:
        what = f"MiniLM topics, {BATCH} x {TOKENS} tokens, threads: {row['threads']}, budget {row['budget_ms']:g} ms"
        off = row["took_ms"] / row["expected_ms"] - 1
        value = f"{row['took_ms']:.2f} ms where {row['expected_ms']:.2f} were expected ({off:+.1%}), "
        value += f"{row['int8']} of {row['layers']} layers int8"
        found.append(line(f"{what}: export against plan", value, f"within {CLOSE:.0%}", abs(off) <= CLOSE))
        expected = row["expected_ms"] / row["float_ms"]
        off = row["share"] / expected - 1
        value = f"{row['share']:.3f} where {expected:.3f} were expected ({off:+.1%})"
        found.append(line(f"{what}: share of float32", value, f"within {CLOSE:.0%}", abs(off) <= CLOSE))
    return found


def run() -> dict[str, Any]:
    """Budgets on one thread, one on all cores."""
    if not (INPUTS / MODEL).is_dir():
        raise SystemExit(f"{MODEL} has not been made; run: make inputs")
    rows: list[dict[str, Any]] = []
    ends = []
    for threads in dict.fromkeys((1, usable_cores())):
        least = said(quantized("0.01ms", threads, RUNS / "latency-none"), r"the fastest plan takes ([\d.]+) ms", 4)
        most = said(quantized("60s", threads, RUNS / "latency-all"), r"the model takes ([\d.]+) ms as it is", 3)
        ends.append({"threads": threads, "fastest_ms": least, "model_ms": most})
        print(f"   threads: {threads}: fastest plan {least} ms, the model as it is {most} ms", flush=True)
        mine = []
        for part in BETWEEN if threads == 1 else BETWEEN[1:2]:
            ms = least + part * (most - least)
            mine.append(planned(ms, threads, RUNS / f"latency-{threads}-{round(100 * part)}"))
            print(f"   {lines_of([{**mine[-1], 'share': 0.0}])[0]['value']}", flush=True)
        again(mine, threads)
        rows += mine
    return {"lines": lines_of(rows), "ends": ends, "rows": rows}
