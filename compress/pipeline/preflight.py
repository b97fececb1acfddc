"""Will it be faster here? A runtime's own operators, timed on this machine before any work."""

from __future__ import annotations

from typing import Any

from compress.core.errors import CompressError
from export import environments
from export.client import RuntimeProcess
from export.kinds import ExportFormat
from export.source import Source

EVEN = 1.05
"""Speed-ups below this are none: medians of a busy machine differ by as much."""


def probes(name: str, threads: int = 0) -> list[dict[str, Any]]:
    """Rows {what, rows, speedup} of a runtime that is installed and can be probed; empty otherwise."""
    if environments.runtime(name).probe is None or environments.place(name).interpreter is None:
        return []
    with RuntimeProcess(name, threads) as process:
        found = process.probe()
    return [{**row, "speedup": row["plain_seconds"] / row["seconds"]} for row in found]


def slower(form: ExportFormat, source: Source, options: Any, threads: int = 0) -> list[str]:
    """Sentences on what will not be faster than float32 on this machine; a runtime that cannot be probed says none."""
    if form.operators is None:
        return []
    wanted = form.operators(source, options)
    try:
        found = [row for row in probes(form.runtimes[0], threads) if row["what"] in wanted]
    except CompressError:
        return []
    return [
        f"{row['what']} will not be faster than float32 in {form.runtimes[0]} on this machine for "
        f"{'one token at a time' if row['rows'] == 1 else str(row['rows']) + ' tokens at once'}: "
        f"{row['speedup']:.2f} times its speed"
        for row in found
        if row["speedup"] < EVEN
    ]
