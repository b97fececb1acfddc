"""The stage behind `compress verify`, and the end of `compress export`: an export in its runtimes, against the model
in memory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.core import device
from compress.core.errors import CompressError, MissingRuntimeError, RecipeError, UsageError, VerificationError
from compress.core.files import write_json
from compress.core.registry import load
from compress.core.types import Measurement, RunRecord
from compress.measure.quality import median_interval
from compress.pipeline import asked, heard, served
from compress.pipeline.expected import PROMPT, Expected, VerifySettings, arithmetic_of
from compress.pipeline.expected import expected as expected_of
from compress.pipeline.hooks import Hooks, Stages
from compress.pipeline.inputs import quiet_libraries
from compress.pipeline.static import static_lines
from export import environments, folder, judge
from export.client import RuntimeProcess
from export.judge import Bounds, Line
from export.kinds import ExportFormat
from export.source import Source

DECODE, REPEATS = 32, 3


@dataclass(frozen=True)
class Verified:
    """lines: of verify.json.

    measurements: speed, memory, agreement by runtime. missing: sentences on absent runtimes. notes: other sentences.
    """

    lines: list[Line]
    measurements: list[Measurement]
    missing: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether a runtime has judged the export and everything agrees."""
        return not self.missing and judge.passed(self.lines)


def verify(where: Path, source: Source, settings: VerifySettings, hooks: Hooks) -> Verified:
    """Judge the export in `where` and write its verify.json. Raises ModelError for what is no export of `source`."""
    told = folder.card(where)
    form: ExportFormat = load("format", told["format"])
    chosen, missing = _runtimes(where, form, settings)
    if settings.serve and chosen and not any(_asks(name) for name in chosen):
        raise UsageError(f"{', '.join(chosen)} has neither a server nor a client; leave --serve out")
    lines = static_lines(where, told, source, form, hooks)
    measurements: list[Measurement] = []
    notes: list[str] = []
    if chosen and judge.passed(lines):
        hooks.report("reference", 0, 1)
        expected = expected_of(source, told, chosen, settings)
        hooks.report("reference", 1, 1)
        notes += filter(None, [expected.note])
        for number, name in enumerate(chosen):
            hooks.report(f"running {name}", number, len(chosen))
            before = len(lines)
            try:
                found, figures = _judged(where, name, told, expected, settings)
                lines += found
                measurements += figures
                if settings.serve and environments.runtime(name).server is not None:
                    hooks.report(f"serving with {name}", number, len(chosen))
                    lines += _served(where, name, told, expected, settings)
            except CompressError as error:  # what it says as it refuses the file, or its last words
                runtime = f"{name} {environments.place(name).version}"
                lines.append({"check": "opens and runs", "runtime": runtime, "passed": False, "said": str(error)})
                continue
            if settings.serve and not any("client" in line for line in lines[before:]):
                notes.append(f"{name} was not asked: it has no client for a model that does what this one does")
        hooks.report("running", len(chosen), len(chosen))
    result = Verified(lines, measurements, missing, notes)
    write_json(where / folder.VERIFY, _saved(told, result))
    return result


def verify_folder(
    where: Path, against: Path | None, settings: VerifySettings, hooks: Hooks
) -> tuple[RunRecord, Verified]:
    """Judge an export that lies somewhere. against: its artifact, when that was moved."""
    stages = Stages()
    quiet_libraries()
    told = folder.card(where)
    source = Source(against or folder.artifact_of(where, told), settings.trust_remote_code)
    stages.done("open")
    found = verify(where, source, settings, hooks)
    stages.done("verify")
    return exported("verify", source, {where: found}, [], stages), found


def raise_if_wrong(where: Path, found: Verified, remedy: str = "") -> None:
    """Raises VerificationError naming the first line that does not agree, MissingRuntimeError's sentence when none
    judged. remedy: what else the command can do then."""
    for line in found.lines:
        if not line["passed"]:
            said = line.get("said") or ", ".join(
                f"{key} {line[key]:.4g}"
                for key in ("kl", "difference", "gap", "tolerance")
                if line.get(key) is not None
            )
            raise VerificationError(f"{where}: {line['check']} in {line['runtime']}: {said}; do not serve this file")
    if found.missing:
        raise VerificationError(f"{where} is written and not verified: {found.missing[0]}{remedy}")


def exported(
    command: str, source: Source, found: Mapping[Path, Verified | None], notes: Sequence[str], stages: Stages
) -> RunRecord:
    """The record of exports and how they were judged; None: not at all."""
    measurements: list[Measurement] = []
    lines: list[Line] = []
    said = list(notes)
    for place, judged in found.items():
        if judged is None or not judged.measurements:
            about = {"export": str(place), "format": folder.card(place)["format"]}
            size = float(folder.payload_bytes(place))
            measurements.append(Measurement(str(place), "bytes", "bytes", size, detail=about))
        if judged is not None:
            measurements += judged.measurements
            form = folder.card(place)["format"]
            lines += [{"export": form, "where": str(place), **line} for line in judged.lines]
            said += [*judged.missing, *judged.notes]
    return RunRecord(
        command=command,
        model={"name": source.name, "architecture": source.structure.architecture},
        artifact=str(source.folder),
        measurements=tuple(measurements),
        verified=tuple(lines),
        notes=tuple(said),
        stages=stages.seconds,
        environment=device.environment(),
        reproduce=shlex.join(["compress", command, *(str(place) for place in found)]),
    )


def _runtimes(where: Path, form: ExportFormat, settings: VerifySettings) -> tuple[list[str], list[str]]:
    """Those that judge the export, and sentences on those that should and are not there."""
    asked = [environments.place(name).name for name in settings.runtimes]
    wanted = [name for name in asked if name in form.runtimes]
    if asked and not wanted:
        raise UsageError(f"{', '.join(asked)} does not open {where}; {', '.join(form.runtimes)} would")
    wanted = wanted or list(form.runtimes)
    refused = {name: because for name in wanted if (because := environments.refuses(name, where)) is not None}
    if settings.runtimes and refused:
        name, because = next(iter(refused.items()))
        raise RecipeError(f"{name} does not open {where}: {because}")
    places = [environments.place(name) for name in wanted if name not in refused]
    there = [place.name for place in places if place.interpreter is not None]
    if not places and refused:  # nobody is left to judge it
        return [], [f"{name} does not open it: {because}" for name, because in refused.items()][:1]
    needed = places if settings.runtimes else [] if there else places[:1]
    missing = [str(MissingRuntimeError(p.name, p.install)) for p in needed if p.interpreter is None]
    return there, missing or ([] if places else [f"{name} does not open it: {why}" for name, why in refused.items()])


def _judged(
    where: Path, name: str, told: dict[str, Any], expected: Expected, settings: VerifySettings
) -> tuple[list[Line], list[Measurement]]:
    arithmetic = arithmetic_of(name, told)
    with RuntimeProcess.open(name, where, settings.threads, settings.trust_remote_code) as process:
        if process.normalised and expected.decoder:
            expected = expected.normalised()
        allowed = expected.allowed(arithmetic)
        runtime = f"{name} {process.version}"
        timed = process.latency(PROMPT, DECODE if expected.decoder else 1, REPEATS)
        memory = process.rss()
        lines = _lines(process, expected, allowed)
        scored: list[Measurement] = []
        if expected.rows is not None:
            line, scored = served.judged(process, expected.rows, expected.config, f"{where} in {name}")
            lines.append(line)
        if environments.runtime(name).client:  # last: it may give up what is open
            allowed_there = expected.allowed_reading(arithmetic)
            lines += asked.by_client(process, expected.asked, expected.reading, allowed_there)
    lines = [{**line, "runtime": runtime} for line in lines]
    lines[0] = {**lines[0], "arithmetic": allowed.why, **{f"arithmetic_{k}": v for k, v in allowed.plain.items()}}
    about = {"export": str(where), "format": told["format"], "runtime": runtime}
    return lines, [*_figures(f"{where} in {name}", about, lines, timed, memory), *scored]


def _served(where: Path, name: str, told: dict[str, Any], expected: Expected, settings: VerifySettings) -> list[Line]:
    """What a client of the runtime's server says; no line where it serves no such model."""
    given = {"port": settings.port, "threads": settings.threads, "trusted": settings.trust_remote_code}
    arithmetic, pooling = arithmetic_of(name, told), told["facts"].get("pooling")
    if expected.asked:
        return asked.by_server(where, name, expected.asked[0], expected.allowed(arithmetic), given)
    if expected.reading is None or pooling is None:
        return []
    allowed = expected.allowed_reading(arithmetic)
    return asked.embedded_by_server(where, name, expected.reading, pooling, allowed, given)


def _asks(name: str) -> bool:
    """Whether a runtime can be asked as its users ask it."""
    kind = environments.runtime(name)
    return kind.client or kind.server is not None


def _lines(process: RuntimeProcess, expected: Expected, allowed: Bounds) -> list[Line]:
    found = [process.run(given) for given in expected.inputs]
    compare = judge.distributions if expected.over_tokens else judge.values
    lines = compare(_seen(expected.exact, expected.inputs), _seen(found, expected.inputs), allowed, "outputs")
    if expected.decoder:
        written = process.greedy(expected.prompt, judge.GREEDY)
        lines.append(judge.greedy(expected.written, expected.chosen, written, allowed))
    if expected.follow is not None:
        lines.append(heard.written_line(process, expected.inputs[0], expected.follow, allowed))
    lines += filter(None, [judge.same_ids(expected.ids, process.tokenize(expected.texts), "tokenizer")])
    if expected.chat is not None:
        made = process.chat(asked.CHAT)
        lines += filter(None, [judge.same_ids([expected.chat], None if made is None else [made], "chat template")])
    return lines


def _seen(outputs: Sequence[Tensor], inputs: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Outputs without those of padding, which nobody reads."""
    found = []
    for output, given in zip(outputs, inputs, strict=True):
        mask = given.get("attention_mask")
        by_token = mask is not None and output.shape[:2] == mask.shape and "decoder_input_ids" not in given
        found.append(output[mask.bool()] if by_token and mask is not None else output)
    return found


def _figures(
    subject: str, about: dict[str, str], lines: Sequence[Line], timed: dict[str, Any], memory: dict[str, Any]
) -> list[Measurement]:
    detail = {**about, "threads": timed["threads"], "repeats": REPEATS}
    size = folder.payload_bytes(Path(about["export"]))
    found = [Measurement(subject, "bytes", "bytes", float(size), detail=detail)]
    names = {"kl": ("runtime_kl", "nats/token"), "difference": ("runtime_difference", "logit")}
    for line in lines:
        for key, (name, unit) in names.items():
            if line.get(key) is not None:
                found.append(
                    Measurement(subject, name, unit, float(line[key]), detail={"tolerance": line["tolerance"]})
                )
        if "top1_agreement" in line:
            n = line["positions"]
            found.append(Measurement(subject, "runtime_top1", "", line["top1_agreement"], n=n))
        if line["check"] == "greedy tokens":
            found.append(Measurement(subject, "runtime_greedy", "tokens", float(line["equal"]), n=line["of"]))
    prefill = [PROMPT / seconds for seconds in timed["prefill_seconds"]]
    found.append(_rate(subject, "prefill_tokens_per_s", prefill, detail))
    if timed["step_seconds"] and timed["step_seconds"][0]:
        decode = [len(steps) / sum(steps) for steps in timed["step_seconds"]]
        found.append(_rate(subject, "decode_tokens_per_s", decode, detail))
    found.append(Measurement(subject, "peak_rss_bytes", "bytes", float(memory["peak"]), detail=detail))
    return found


def _rate(subject: str, name: str, samples: Sequence[float], detail: dict[str, Any]) -> Measurement:
    median, low, high = median_interval(samples)
    return Measurement(subject, name, "tokens/s", median, low, high, len(samples), detail)


def _saved(told: dict[str, Any], found: Verified) -> dict[str, Any]:
    return {
        "format": told["format"],
        "passed": found.passed,
        "missing": found.missing,
        "lines": found.lines,
        "measurements": [vars(replace(m)) for m in found.measurements],
    }
