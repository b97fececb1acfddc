"""What both models write for held-out rows, each whole in a process of its own, and the task's figures of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compress.core.journal import Journal
from compress.core.types import RunRecord
from compress.core.writing import WritingTask
from compress.measure.client import Worker
from compress.measure.subject import WorkerSettings
from compress.pipeline.finish import WHOLE_BYTES
from compress.pipeline.store import Store
from compress.pipeline.stream import Report
from compress.pipeline.task_text import TaskText, compared
from compress.recipe import Recipe


def with_answers(record: RunRecord, text: TaskText, store: Store, journal: Journal, report: Report) -> RunRecord:
    """For tasks that write, the record with the figures of original and artifact, and their change paired by row.

    Above WHOLE_BYTES no model is loaded whole: a note says that the figures are those of forced targets.
    """
    size = store.checkpoint.parameters * 4
    if not text.rows or not isinstance(text.task, WritingTask):
        return record
    if size > WHOLE_BYTES:
        said = (f"the model takes {size / 1e9:.1f} GB in float32, so no answers were written: perplexity, KL and "
                "agreement are those of the next token after the right ones")  # fmt: skip
        return replace(record, notes=(*record.notes, said))
    out = Path(record.artifact or "")
    folders = (store.checkpoint.folder, out)
    counts = []
    for number, folder in enumerate(folders):
        line = next((found for found in journal.of("answered") if found["subject"] == number), None)
        if line is None:
            answers = _written(folder, text, Recipe(**record.recipe), report, (number, len(folders)))
            journal.append("answered", subject=number, answers=answers)
        else:
            answers = line["answers"]
        counts.append(text.task.counts(answers, text.rows, text.context))
    return replace(record, measurements=(*compared(text.task, counts, str(out)), *record.measurements))


def _written(folder: Path, text: TaskText, recipe: Recipe, report: Report, turn: tuple[int, int]) -> list[str]:
    """The answers of one model, row by row. turn: which model this is, of how many."""
    settings = WorkerSettings(threads=recipe.threads, trust_remote_code=recipe.trust_remote_code)
    task, context, total = text.task, text.context, len(text.rows)
    answers: list[str] = []
    with Worker(settings) as worker:
        worker.open_task(str(folder), task.name, context)
        while len(answers) < total:
            report("writing answers", turn[0] * total + len(answers), turn[1] * total)
            answers += worker.answers(text.rows[len(answers) :][: task.score_batch])
    report("writing answers", (turn[0] + 1) * total, turn[1] * total)
    return answers
