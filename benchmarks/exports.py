"""Acceptance 1, 4 and 6 of issue C: the demo model at 4 bits in every decoder format, each in its own runtime.

Artifacts are made by `compress quantize` unless they are there: the default, a symmetric one (vLLM's GPTQ kernels know
no zero points), one for each of ggml's 4-bit types and NF4. Each is exported and judged by `compress export --json`;
decode rates are those of that run, one runtime alone on the machine, next to transformers in float32 on the original,
timed first and last.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.shared import RUNS, line
from compress.core.opening import resolve
from compress.measure.client import Worker
from export import environments

ARTIFACTS: dict[str, list[str]] = {
    "default": ["--bits", "4"],
    "symmetric": ["--bits", "4", "--symmetric"],
    "q4_1": ["--scheme", "q4_1"],
    "nf4": ["--scheme", "nf4"],
}
EXPORTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("default", "compressed-tensors", ()),
    ("default", "gguf", ()),
    ("default", "gptq", ()),
    ("default", "onnx-genai", ()),
    ("default", "onnx-genai", ("accuracy_level=4",)),
    ("default", "openvino", ()),
    ("symmetric", "gptq", ()),
    ("q4_1", "gguf", ()),
    ("nf4", "bitsandbytes", ()),
)
FASTER = 2.0
FIGURES = ("runtime_kl", "runtime_difference", "runtime_top1", "runtime_greedy", "bytes", "decode_tokens_per_s",
           "prefill_tokens_per_s", "peak_rss_bytes")  # fmt: skip


def artifact(name: str) -> Path:
    """The artifact called `name`, made unless it is there."""
    out = RUNS / f"exports-{name}"
    if not (out / "compress" / "record.json").is_file():
        words = ["quantize", *ARTIFACTS[name], "--out", str(out), "--generate", "0", "-q"]
        done = subprocess.run([sys.executable, "-m", "compress.cli", *words], check=False)
        if done.returncode:
            raise SystemExit(f"{name} cannot be made")
    return out


def original() -> float:
    """Tokens a second of transformers on the original in float32: the same prompt and steps as a judged export."""
    with Worker.open(str(resolve("demo").folder)) as worker:
        steps = worker.latency(16, 32, 3)["step_seconds"]
    return statistics.median(len(row) / sum(row) for row in steps)


def exported(name: str, form: str, options: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each runtime that opens the export: figures, bounds, verdict, what its server said."""
    source = artifact(name)
    where = RUNS / f"exports-{name}-{form}{'-' + options[0].replace('=', '-') if options else ''}"
    words = ["export", str(source), "--to", form, "--out", str(where), "--overwrite", "--json"]
    words += [word for option in options for word in ("--option", option)]
    done = subprocess.run([sys.executable, "-m", "compress.cli", *words], capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"artifact": name, "format": form, "options": list(options), "exit": done.returncode}
    if not done.stdout.strip():
        return [{**row, "said": done.stderr.strip().splitlines()[-1].replace(str(RUNS), "runs/bench")}]
    record = json.loads(done.stdout)
    codes = next((v for v in record["verified"] if v["check"] == "codes and scales read back"), {})
    row |= {"layers": codes.get("layers"), "codes equal": codes.get("passed", False)}
    subjects = list(dict.fromkeys(m["subject"] for m in record["measurements"]))
    found = []
    for subject in subjects:
        own = {m["name"]: m for m in record["measurements"] if m["subject"] == subject}
        runtime = own["bytes"]["detail"].get("runtime", "")
        lines = [v for v in record["verified"] if v.get("runtime") == runtime]
        figures = {key: own[key]["median"] for key in FIGURES if key in own}
        bounds = {v["check"]: v["tolerance"] for v in lines if "tolerance" in v}
        why = next((v["arithmetic"] for v in lines if "arithmetic" in v), "")
        agrees = bool(lines) and all(v["passed"] for v in lines)
        said = [v["said"] for v in lines if v.get("said")]
        found.append(
            {**row, "runtime": runtime, "agrees": agrees, **figures, "bounds": bounds, "why": why, "said": said}
        )
    return found


def run() -> dict[str, Any]:
    """Export everything, judge everything."""
    rates = [original()]
    rows = [row for name, form, options in EXPORTS for row in exported(name, form, options)]
    rates.append(original())
    plain = statistics.median(rates)
    judged = [row for row in rows if row.get("runtime")]
    lines = []
    for form in dict.fromkeys(form for _, form, _ in EXPORTS):
        mine = [row for row in judged if row["format"] == form]
        who = ", ".join(dict.fromkeys(row["runtime"] for row in mine if row["agrees"])) or "none"
        good = bool(mine) and all(row["agrees"] for row in mine)
        lines.append(line(f"{form}: verified in its runtime", who, "agrees", good))
    equal = sum(bool(row.get("codes equal")) for row in rows)
    lines.append(
        line(
            "exports whose codes and scales read back bit by bit", f"{equal} of {len(rows)}", "all", equal == len(rows)
        )
    )
    fastest = max(judged, key=lambda row: row.get("decode_tokens_per_s", 0.0))
    ratio = round(fastest.get("decode_tokens_per_s", 0.0) / plain, 2)
    what = f"decode of the fastest ({fastest['format']} in {fastest['runtime']}) over transformers in float32"
    lines.append(line(what, ratio, f">= {FASTER:g}", ratio >= FASTER))
    return {
        "lines": lines,
        "transformers_float32_decode_tokens_per_s": rates,
        "runtimes": {place.name: place.version for place in environments.places()},
        "rows": rows,
    }
