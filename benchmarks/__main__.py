"""Run the suites and write what they measured to reports/: JSON as measured, text and HTML as rendered."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from benchmarks.shared import REPORTS, render, save
from compress.core.device import share_cores

SUITES = (
    "startup", "quality", "speed", "memory", "exactness", "resume", "peft_methods", "demo", "tasks", "onnx", "exports",
    "formats", "sensitivity", "calibration", "plans", "drops", "latency", "candidates", "efforts",
)  # fmt: skip


def main(names: list[str]) -> int:
    """Run the named suites (all by default); exit 1 when a bound is missed."""
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"no suite is called {unknown[0]!r}; there is {', '.join(SUITES)}")
        return 2
    share_cores()
    missed = False
    for name in names or SUITES:
        started = time.perf_counter()
        print(f"== {name}", flush=True)
        result = importlib.import_module(f"benchmarks.{name}").run()
        result["seconds"] = round(time.perf_counter() - started, 1)
        save(name, result)
        for line in result["lines"]:
            missed = missed or not line["met"]
            print(f"   {'met   ' if line['met'] else 'MISSED'} {line['what']}: {line['value']} (bound {line['bound']})")
    render(Path(REPORTS))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
