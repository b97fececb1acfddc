"""The stage behind `compress bench`: held-out text for the reference's tokenizer, figures from fresh processes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from calibrate.data import DataSettings, prepare
from compress.core import device
from compress.core.opening import DEMO, resolve
from compress.core.types import RunRecord
from compress.measure.bench import run_bench
from compress.measure.settings import BenchSettings
from compress.pipeline.inputs import load_tokenizer, quiet_libraries
from compress.pipeline.scores import held_out, task_scores
from compress.pipeline.stream import Report
from compress.recipe import Recipe


@dataclass(frozen=True)
class Text:
    """Which text to judge on. rows: where rows of a task are looked for first; None: text it is."""

    settings: DataSettings
    rows: Recipe | None = None


def bench(settings: BenchSettings, text: Text | None, report: Report, say: Callable[[str], None]) -> RunRecord:
    """Measure every subject. The first may be `demo`. Raises the errors of compress.core.errors.

    Models of a task are judged by its figures, where there are rows for it: those of --data, else the first one's own.
    """
    started = time.perf_counter()
    quiet_libraries()
    names = list(settings.subjects)
    opened = resolve(names[0], settings.allow_pickle, say)
    subjects = (str(opened.folder) if names[0] == DEMO else names[0], *names[1:])
    settings = replace(settings, subjects=subjects)
    card: dict[str, object] = {}
    rows = held_out(text.rows, opened) if text is not None and settings.quality and text.rows is not None else None
    if rows is not None:
        settings, card = replace(settings, quality=False), rows.labelled.card
    elif text is not None and settings.quality:
        tokenizer = load_tokenizer(opened.folder, settings.trust_remote_code)
        prepared = prepare(text.settings, tokenizer, vocabulary_size(tokenizer, opened.folder))
        settings = replace(settings, data=prepared.heldout)
        card = prepared.card
    measurements, notes = run_bench(settings, report)
    if rows is not None:
        folders = [(name, opened.folder if name == subjects[0] else Path(name)) for name in subjects]
        measurements += task_scores(folders, rows, settings.trust_remote_code, report)
        notes = [*notes, *rows.labelled.notes]
    shown = {subjects[0]: names[0]}
    measurements = [replace(m, subject=shown.get(m.subject, m.subject)) for m in measurements]
    return RunRecord(
        command="bench",
        model={"name": opened.name},
        artifact=None,
        data=card,
        measurements=tuple(measurements),
        notes=(*opened.notes, *notes, *[str(w) for w in card.get("warnings", [])]),  # type: ignore[attr-defined]
        stages={"bench": time.perf_counter() - started},
        environment=device.environment(),
        reproduce=shlex.join(["compress", "bench", *names]),
    )


def vocabulary_size(tokenizer: object, folder: object) -> int:
    """Rows of the model's embedding, by its config."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", 0) or len(tokenizer))  # type: ignore[arg-type]
