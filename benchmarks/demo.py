"""The demo run of README and a side-by-side bench of its output; keeps the rendered reports."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.shared import REPORTS, RUNS, line
from calibrate.data import DataSettings
from compress.measure.settings import BenchSettings
from compress.pipeline.bench import Text, bench
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe
from compress.report import html, terminal
from compress.report import record as records


def run() -> dict[str, Any]:
    """`compress quantize --bits 4`, then `compress bench demo OUT`."""
    out = Path(os.path.relpath(RUNS / "demo-4bit"))  # reports name no folder of this machine
    shutil.rmtree(out, ignore_errors=True)
    made = quantize(Recipe.build(out=str(out)))
    shutil.copyfile(out / "report.html", REPORTS / "demo-4bit.html")
    shutil.copyfile(out / "report.txt", REPORTS / "demo-4bit.txt")
    text = Text(DataSettings(None, None, 64, 512, 16, 0))
    compared = bench(BenchSettings(subjects=("demo", str(out))), text, lambda *_: None, lambda _: None)
    (REPORTS / "demo-bench.html").write_text(html.render(compared), encoding="utf-8")
    (REPORTS / "demo-bench.txt").write_text(terminal.text(compared), encoding="utf-8")
    seconds = sum(made.stages.values())
    return {
        "lines": [
            line("compress quantize --bits 4 on the demo model, seconds", round(seconds), "< 600", seconds < 600)
        ],
        "quantize": records.to_json(made),
        "bench": records.to_json(compared),
    }
