"""Acceptance 10: `compress --help` is quick and imports no torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.shared import line

PROBE = (
    "import sys; sys.argv = ['compress', '--help']\n"
    "from compress.cli import main\n"
    "try: main()\n"
    "except SystemExit: pass\n"
    "sys.stderr.write(' '.join(m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules))"
)


def run() -> dict[str, Any]:
    """Median wall seconds of fifteen runs after a warm-up."""
    command = [sys.executable, "-m", "compress.cli", "--help"]
    times = []
    for _ in range(16):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    median = statistics.median(times[1:])
    imported = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True).stderr
    return {
        "lines": [
            line("compress --help, seconds", round(median, 3), "< 0.3", median < 0.3),
            line("heavy modules imported by --help", imported or "none", "none", not imported),
        ],
        "times": times,
    }
