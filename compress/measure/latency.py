"""Latency and memory: each subject alone in a fresh process, in alternating rounds.

A B B A ...: a slow minute of the machine does not fall on one subject, and nobody always comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from compress.core.device import load_average, usable_cores
from compress.core.errors import UsageError
from compress.core.types import Measurement
from compress.measure.client import Worker
from compress.measure.quality import median_interval
from compress.measure.settings import BenchSettings, Progress
from compress.measure.subject import DECODER, Description

BUSY = 0.5  # load average per core from which a note says that latency was not measured in quiet


def measure_latency(
    settings: BenchSettings, kinds: Sequence[Description], notes: list[str], progress: Progress
) -> list[Measurement]:
    """Prefill and decode rates, step latency and peak memory of every subject; sentences go to `notes`.

    Raises UsageError when decode_tokens do not fit a subject, and what its worker raises.
    """
    settings = _fit_prompt(settings, kinds, notes)
    if (load := load_average()) is not None and load > BUSY * usable_cores():
        notes.append(f"the load average was {load} on {usable_cores()} cores: latency was not measured in quiet")
    runs: dict[str, list[dict[str, Any]]] = {d.subject: [] for d in kinds}
    total = settings.rounds * len(kinds)
    for number in range(total):
        # every second round runs backwards, so that nobody always comes right after the same one
        order = kinds if (number // len(kinds)) % 2 == 0 else kinds[::-1]
        subject = order[number % len(kinds)].subject
        progress(f"latency of {subject}", number, total)
        before = load_average()
        with Worker.open(subject, settings.worker) as worker:
            run = worker.latency(settings.prompt_tokens, settings.decode_tokens, settings.repeats, settings.warmup)
            runs[subject].append({**run, "rss": worker.rss(), "load_average": before})
    progress("latency", total, total)
    return [m for d in kinds for m in _timings(d, runs[d.subject], settings)]


def _fit_prompt(settings: BenchSettings, kinds: Sequence[Description], notes: list[str]) -> BenchSettings:
    """Fewer prompt tokens where a subject has too few positions. Raises UsageError when none are left."""
    most = min((d.positions for d in kinds if d.positions is not None), default=None)
    decode = settings.decode_tokens if kinds[0].kind == DECODER else 0
    if most is None or settings.prompt_tokens + decode <= most:
        return settings
    if most - decode < 1:
        raise UsageError(f"decode_tokens {decode} do not fit {most} positions; give fewer than {most}")
    notes.append(f"prompts were cut from {settings.prompt_tokens} to {most - decode} tokens to fit {most} positions")
    return replace(settings, prompt_tokens=most - decode)


def _timings(kind: Description, runs: Sequence[dict[str, Any]], settings: BenchSettings) -> list[Measurement]:
    """Medians over all runs of all rounds; a run counts once, for its steps are not independent."""
    prefill = [seconds for run in runs for seconds in run["prefill_seconds"]]
    steps = [row for run in runs for row in run["step_seconds"]]
    detail: dict[str, Any] = {
        "threads": runs[0]["threads"],
        "dtype": settings.dtype,
        "prompt_tokens": settings.prompt_tokens,
        "warmup": settings.warmup,
        "repeats": settings.repeats,
        "rounds": len(runs),
        "load_average": [run["load_average"] for run in runs],
        "interval": "order statistics of the median, 95 %",
    }

    def row(name: str, unit: str, samples: Sequence[float], extra: dict[str, Any]) -> Measurement:
        median, low, high = median_interval(samples)
        return Measurement(kind.subject, name, unit, median, low, high, len(samples), {**detail, **extra})

    rates = [settings.prompt_tokens / seconds for seconds in prefill]
    rows = [row("prefill_tokens_per_s", "tokens/s", rates, {})]
    if kind.kind == DECODER:
        extra: dict[str, Any] = {"decode_tokens": settings.decode_tokens}
        every = [1000 * seconds for step in steps for seconds in step]
        rows.append(row("decode_tokens_per_s", "tokens/s", [len(s) / math.fsum(s) for s in steps], extra))
        what = {"of": "one decode step with KV cache, median of each run", "p95": percentile(every, 0.95)}
        rows.append(row("latency_ms", "ms", [1000 * median_interval(s)[0] for s in steps], {**extra, **what}))
    else:
        every = [1000 * seconds for seconds in prefill]
        what = {"of": "one forward pass, batch 1", "p95": percentile(every, 0.95)}
        rows.append(row("latency_ms", "ms", every, what))
    memory = [float(run["rss"]["peak"]) for run in runs]
    about = {
        "of": "a fresh process that loads the model and runs it",
        "baseline_bytes": [run["rss"]["baseline"] for run in runs],
        "load_seconds": [run["rss"]["load_seconds"] for run in runs],
    }
    rows.append(row("peak_rss_bytes", "bytes", memory, about))
    return rows


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest of `samples` that a fraction `q` of them does not exceed: nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]
