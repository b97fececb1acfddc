"""The stage behind `compress export`: what cannot be held is refused, then each format is written, then each is
judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.core.artifact import parse_size
from compress.core.errors import RecipeError, UsageError
from compress.core.registry import load, names
from compress.core.types import RunRecord
from compress.pipeline.expected import VerifySettings
from compress.pipeline.hooks import Hooks, Stages
from compress.pipeline.inputs import convert_options, quiet_libraries
from compress.pipeline.limits import formats_of
from compress.pipeline.preflight import slower
from compress.pipeline.verify import Verified, exported, raise_if_wrong, verify
from compress.recipe import Recipe
from export import environments, folder
from export.kinds import ExportFormat
from export.source import Source

WEIGHTS = (".gguf", ".onnx", ".data", ".safetensors", ".bin")
"""Of files that hold weights."""


@dataclass(frozen=True)
class ExportSettings:
    """to: names of formats. options: of formats, `name` or `format.name` -> value. out: another place than OUT/exports.

    check: judge each export in its runtime.
    """

    to: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    out: Path | None = None
    check: bool = True
    overwrite: bool = False
    verify: VerifySettings = field(default_factory=VerifySettings)


@dataclass(frozen=True)
class Job:
    """One format to be written."""

    name: str
    form: ExportFormat
    options: Any
    where: Path


def export(artifact: Path, settings: ExportSettings, hooks: Hooks | None = None) -> tuple[RunRecord, list[Exception]]:
    """Write and judge exports of the artifact; the record, and what must end the command with an error.

    Raises RecipeError before anything is written for a format that cannot hold the artifact, UsageError for unknown
    names.
    """
    hooks, stages = hooks or Hooks(), Stages()
    quiet_libraries()
    source = Source(artifact, settings.verify.trust_remote_code)
    jobs = [_job(name, source, settings) for name in dict.fromkeys(map(environments.plain, settings.to))]
    _check(settings, jobs)
    refused = [f"{job.name}: {because}" for job in jobs if (because := job.form.refuses(source, job.options))]
    if refused:
        raise RecipeError(f"{artifact} cannot be exported to {'; '.join(refused)}")
    for job in jobs:
        folder.check(job.where, settings.overwrite)
    stages.done("open")
    notes: list[str] = []
    for job in jobs if settings.check else ():
        notes += slower(job.form, source, job.options, settings.verify.threads)
    for note in notes:
        hooks.say(note)
    stages.done("will it be faster here")
    found: dict[Path, Verified] = {}
    failures: list[Exception] = []
    for job in jobs:
        hooks.report(f"writing {job.name}", 0, 1)
        written = folder.write(
            source, job.name, job.form, job.where,
            lambda place, job=job: job.form.write(source, place, job.options, hooks.report),  # type: ignore[misc]
            settings.overwrite,
        )  # fmt: skip
        hooks.report(f"writing {job.name}", 1, 1)
        notes += [f"{job.name}: {note}" for note in written.notes]
        stages.done(f"write {job.name}")
        if settings.check:
            found[job.where] = verify(job.where, source, settings.verify, hooks)
            try:
                raise_if_wrong(job.where, found[job.where], ", or pass --no-verify")
            except Exception as error:
                failures.append(error)
            stages.done(f"verify {job.name}")
    if not settings.check:
        notes.append("nothing was verified (--no-verify); compress verify EXPORT does it later")
    return exported("export", source, {job.where: found.get(job.where) for job in jobs}, notes, stages), failures


def _job(name: str, source: Source, settings: ExportSettings) -> Job:
    form: ExportFormat = load("format", name)
    known = {f.name for f in dataclasses.fields(form.options)}
    given = {}
    for key, value in settings.options.items():
        of, _, option = key.rpartition(".")
        if of and of not in names("format"):
            raise UsageError(f"--option {key}: no format is called {of}; there is {', '.join(names('format'))}")
        if of == name or (not of and option in known):
            given[option] = value
    taken = convert_options(form.options, given, name)
    where = settings.out if settings.out is not None else folder.home(source.folder, name)
    if settings.out is not None and len(settings.to) > 1:
        where = settings.out / name
    return Job(name, form, taken, where)


def _check(settings: ExportSettings, jobs: list[Job]) -> None:
    """Raises UsageError for no format at all, for an option that none of them takes, and for runtimes that open none of
    one."""
    if not jobs:
        raise UsageError(f"no format is named; --to takes {', '.join(names('format'))}")
    known = {job.name: [field.name for field in dataclasses.fields(job.form.options)] for job in jobs}
    for key in settings.options:
        of, _, option = key.rpartition(".")
        if of and of not in known:
            raise UsageError(f"--option {key}: {of} is not among --to ({', '.join(known)})")
        if not of and not any(option in taken for taken in known.values()):
            there = "; ".join(f"{name} takes {', '.join(taken) or 'none'}" for name, taken in known.items())
            raise UsageError(f"--option {key} is no option of these formats: {there}")
    asked = [environments.place(name).name for name in settings.verify.runtimes]
    for job in jobs if asked else ():
        if not set(asked) & set(job.form.runtimes):
            raise UsageError(f"{', '.join(asked)} does not open {job.name}; {', '.join(job.form.runtimes)} would")


def and_exports(record: RunRecord, recipe: Recipe, hooks: Hooks) -> tuple[RunRecord, list[Exception]]:
    """The record of a quantized model with the exports that `--to` asks for; those that are there are judged again."""
    artifact = Path(record.artifact or "")
    settings = ExportSettings(
        formats_of(recipe),
        check=recipe.verify,
        overwrite=True,
        verify=VerifySettings((), recipe.threads, recipe.trust_remote_code),
    )
    made, failures = export(artifact, settings, hooks)
    over = _over(artifact, settings.to, parse_size(recipe.max_bytes)) if recipe.max_bytes else []
    return replace(
        record,
        measurements=(*record.measurements, *made.measurements),
        verified=(*record.verified, *made.verified),
        notes=(*record.notes, *over, *made.notes),
        stages={**record.stages, **made.stages},
    ), failures


def _over(artifact: Path, formats: Sequence[str], limit: int) -> list[str]:
    """Sentences on exports whose weights take more than the budget, of formats that do not know that before."""
    found = []
    for name in formats:
        files = [file for file in folder.home(artifact, name).rglob("*") if file.suffix in WEIGHTS]
        size = sum(file.stat().st_size for file in files)
        if size > limit:
            found.append(
                f"{name} takes {size:,} bytes, {size - limit:,} more than --max-bytes: it stores codes and what is "
                f"kept otherwise than {artifact.name}, for which the plan was made"
            )
    return found
