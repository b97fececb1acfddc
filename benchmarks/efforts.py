"""Acceptance 8 of issue D: plain GPTQ and the three efforts at the same bits, on three models.

Held-out loss, g64 asymmetric, embeddings kept: KL to the original in nats a token; of the classifier, whose KL is that
of a few rows of 419, 1 - cosine of the last hidden states. And what it took: minutes of one processor, and of the run
(other programs run beside it). "best, same text" is `--effort best` on the calibration text of `balanced`; `best` as it
is takes more of the user's text, as `fast` takes less.

Every cell is a run of the program in a folder of its own below runs/bench/efforts: what is finished is not run again,
what was interrupted goes on where it was. `python -m benchmarks efforts` does all that is missing, in the order of
CELLS; `python -m benchmarks.efforts 3 SmolLM2-135M best` only the cells of these bits, subjects and efforts (`none`: no
cell), and reports those that there are. Delete the folder to measure anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inputs._making import INPUTS
from benchmarks.shared import REPORTS, RUNS, bbc, line, render, save

PLACE = RUNS / "efforts"
PLAIN, FAST, BALANCED, SAME, BEST = "plain GPTQ", "fast", "balanced", "best, same text", "best"
EFFORTS: dict[str, tuple[str, ...]] = {
    PLAIN: ("--option", "classic=true"),
    FAST: ("--effort", "fast"),
    BALANCED: (),
    SAME: ("--effort", "best", "--samples", "64"),
    BEST: ("--effort", "best"),
}
"""As options of `compress quantize`."""
BITS = (3, 4, 2)
WORKERS = 2


@dataclass(frozen=True)
class Subject:
    """A model below runs/inputs, empty for the demo; its text or rows, empty for BBC news; what it is judged by."""

    model: str = ""
    data: str = ""
    figure: str = "kl"


SUBJECTS = {
    "SmolLM2-135M": Subject(),
    "BBC topics (MiniLM)": Subject("bbc-topics", "bbc/bbc.csv", "hidden_cosine"),
    "Whisper tiny.en": Subject("whisper", "speech"),
}
CELLS = [(name, bits, effort) for bits in BITS for name in SUBJECTS for effort in EFFORTS]


def command(name: str, bits: int, effort: str, out: Path) -> list[str]:
    """The command line of one cell."""
    subject = SUBJECTS[name]
    model = [str(INPUTS / subject.model)] if subject.model else []
    data = str(INPUTS / subject.data if subject.data else bbc())
    words = ["quantize", *model, "--data", data, "--out", str(out), "--bits", str(bits), "--group-size", "64"]
    same = ["--asymmetric", "--uniform", "--activations", "none", "--embeddings", "keep"]
    rest = ["--generate", "0", "--no-verify", "--threads", "1", "--json"]
    return [sys.executable, "-m", "compress.cli", *words, *same, *rest, *EFFORTS[effort]]


def label_of(name: str, bits: int, effort: str) -> str:
    """What the folder of a cell is called."""
    return f"{list(SUBJECTS).index(name)}-{bits}-{list(EFFORTS).index(effort)}"


def measure(name: str, bits: int, effort: str) -> dict[str, Any]:
    """One cell: as it was measured before, or now."""
    label = label_of(name, bits, effort)
    kept, out = PLACE / f"{label}.json", PLACE / label
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    PLACE.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"subject": name, "bits": bits, "effort": effort, "options": list(EFFORTS[effort])}
    row["resumed"] = out.exists()  # what it took before is in no figure then
    said, complained = out.with_suffix(".stdout"), out.with_suffix(".stderr")
    with said.open("wb") as one, complained.open("wb") as two:
        process = subprocess.Popen(command(name, bits, effort, out), stdout=one, stderr=two)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}, {bits} bit, {effort}: {complained.read_text(errors='replace').strip()}")
    record = json.loads(said.read_text(encoding="utf-8"))
    row |= {"minutes": round(sum(record["stages"].values()) / 60, 2), "bytes": 0, "figures": {}}
    row["processor_minutes"] = round((used.ru_utime + used.ru_stime) / 60, 2)
    for m in record["measurements"]:
        if m["subject"] != "original" and m["name"] == "bytes":
            row["bytes"] = m["median"]
        elif m["subject"] != "original" and m["name"] != "bits_per_weight":
            row["figures"][m["name"]] = {key: m[key] for key in ("median", "low", "high", "n")}
    tuned = [b for b in record["blocks"] if b["solved_error"]]
    row["blocks"] = [[b["block"], b["solved_error"], b["tuned_error"]] for b in tuned]
    row["calibration"] = record["data"].get("calibration", {}).get("tokens")
    partial = kept.with_suffix(".part")
    partial.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, kept)
    shutil.rmtree(out, ignore_errors=True)
    said.unlink()
    complained.unlink()
    print("   " + shown(row), flush=True)
    return row


def loss_of(row: Mapping[str, Any]) -> list[float | None]:
    """What the model lost: value and the ends of its interval."""
    figure = SUBJECTS[row["subject"]].figure
    found = row["figures"][figure]
    if figure == "kl":
        return [found["median"], found["low"], found["high"]]
    return [None if found[end] is None else 1 - found[end] for end in ("median", "high", "low")]


def shown(row: Mapping[str, Any]) -> str:
    """One line: the loss with its interval, minutes, bytes."""
    value, low, high = loss_of(row)
    what = "KL" if SUBJECTS[row["subject"]].figure == "kl" else "1 - cosine"
    spread = f"[{low:.5f}, {high:.5f}]" if low is not None else ""
    head = f"{row['subject']:<20} {row['bits']} bit {row['effort']:<16} {what} {value:.5f} {spread}"
    return f"{head}, {row['processor_minutes']:.1f} processor minutes, {row['bytes'] / 1e6:.2f} MB"


def held(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for every bound of which both sides have been measured."""
    loss = {(r["subject"], r["bits"], r["effort"]): loss_of(r)[0] or 0.0 for r in rows}
    size = {(r["subject"], r["bits"], r["effort"]): r["bytes"] for r in rows}
    lines = []
    for name in SUBJECTS:
        for bits in BITS:
            for of, against in ((BALANCED, PLAIN), (SAME, BALANCED), (BEST, BALANCED)):
                bound = {3: 0.5 if of == BALANCED else 0.85, 4: 1.0}.get(bits)
                one, other = (name, bits, of), (name, bits, against)
                if one not in loss or other not in loss:
                    continue
                ratio = loss[one] / loss[other]
                said = "stated" if bound is None else f"<= {bound:g}"
                met = bound is None or ratio <= bound
                lines.append(line(f"{name}, {bits} bit: loss of {of} / {against}", round(ratio, 3), said, met))
                lines[-1]["met"] = lines[-1]["met"] and abs(size[one] - size[other]) < 0.001 * size[other]
    for row in rows:
        what = f"{row['subject']}, {row['bits']} bit, {row['effort']}: minutes of one processor"
        lines.append(line(what, row["processor_minutes"], "stated", True))
    return lines


def needed() -> None:
    """Raises SystemExit where an input has not been made."""
    used = [part for s in SUBJECTS.values() for part in (s.model, s.data) if part]
    if missing := [name for name in used if not (INPUTS / name).exists()]:
        raise SystemExit(f"{missing[0]} has not been made; run: make inputs")


def run() -> dict[str, Any]:
    """Every cell that is missing, then the lines."""
    needed()
    with ThreadPoolExecutor(WORKERS) as pool:
        rows = list(pool.map(measure, *zip(*CELLS, strict=True)))
    return {"lines": held(rows), "rows": rows}


def chosen(words: Sequence[str]) -> list[tuple[str, int, str]]:
    """The cells whose subject, bits and effort are among `words`, where those name any."""
    kinds = ([*SUBJECTS], [str(bits) for bits in BITS], [*EFFORTS])
    if unknown := [word for word in words if word != "none" and not any(word in kind for kind in kinds)]:
        known = ", ".join(word for kind in kinds for word in kind)
        raise SystemExit(f"no cell is called {unknown[0]!r}; there are {known}, none")
    wanted = [{word for word in words if word in kind} or set(kind) for kind in kinds]
    cells = [c for c in CELLS if c[0] in wanted[0] and str(c[1]) in wanted[1] and c[2] in wanted[2]]
    return [] if "none" in words else cells


def main(words: Sequence[str]) -> None:
    """Measure some cells, one after the other; report all that there are."""
    needed()
    for cell in chosen(words):
        measure(*cell)
    rows = [measure(*cell) for cell in CELLS if (PLACE / f"{label_of(*cell)}.json").is_file()]
    save("efforts", {"lines": held(rows), "rows": rows})
    render(REPORTS)


if __name__ == "__main__":
    main(sys.argv[1:])
