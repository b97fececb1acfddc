"""The stage behind `compress verify`, and the end of `compress export`: an export in its runtimes, against the model
in memory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core import device
from compress.core.errors import CompressError, MissingRuntimeError, VerificationError
from compress.core.files import write_json
from compress.core.fingerprint import file_sha256
from compress.core.numerics.affine import dequantize
from compress.core.registry import load
from compress.core.types import Measurement, RunRecord
from compress.measure.quality import median_interval
from compress.pipeline import heard, served
from compress.pipeline.hooks import Hooks, Stages
from compress.pipeline.inputs import load_tokenizer, longest_sequence, quiet_libraries
from compress.pipeline.judge import kind_of
from compress.pipeline.probe import read_probe, texts_of
from export import environments, folder, judge
from export.client import RuntimeProcess
from export.judge import Bounds, Line
from export.kinds import ExportFormat
from export.reference import Reference
from export.runtimes._kind import Arithmetic
from export.source import Source

PROMPT, DECODE, REPEATS = 16, 32, 3
CHAT = [{"role": "user", "content": "Name three fruits, please."}]


@dataclass(frozen=True)
class VerifySettings:
    """runtimes: which to judge in; empty: the format's first, and others that are installed. threads 0: the cores."""

    runtimes: tuple[str, ...] = ()
    threads: int = 0
    trust_remote_code: bool = False


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


@dataclass(frozen=True)
class Expected:
    """What the reference gives on the probe. rounded: the same by arithmetic, where that is not float32."""

    inputs: list[dict[str, Tensor]]
    exact: list[Tensor]
    rounded: dict[Arithmetic, list[Tensor]]
    prompt: list[int]
    written: list[int]
    chosen: Tensor
    decoder: bool
    texts: list[str]
    ids: list[list[int]]
    chat: list[int] | None
    follow: heard.Follow | None = None
    rows: served.Rows | None = None
    note: str = ""
    config: Any = None

    @property
    def over_tokens(self) -> bool:
        """Whether outputs are distributions over tokens."""
        return self.decoder or self.follow is not None


def verify(where: Path, source: Source, settings: VerifySettings, hooks: Hooks) -> Verified:
    """Judge the export in `where` and write its verify.json. Raises ModelError for what is no export of `source`."""
    told = folder.card(where)
    form: ExportFormat = load("format", told["format"])
    chosen, missing = _runtimes(form, settings)
    lines = _static(where, told, source, form, hooks)
    measurements: list[Measurement] = []
    notes: list[str] = []
    if chosen and judge.passed(lines):
        hooks.report("reference", 0, 1)
        expected = _expected(source, told, chosen, settings)
        hooks.report("reference", 1, 1)
        notes += filter(None, [expected.note])
        for number, name in enumerate(chosen):
            hooks.report(f"running {name}", number, len(chosen))
            found, figures = _judged(where, name, told, expected, settings)
            lines += found
            measurements += figures
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


def raise_if_wrong(where: Path, found: Verified) -> None:
    """Raises VerificationError naming the first line that does not agree, MissingRuntimeError's sentence when none
    judged."""
    for line in found.lines:
        if not line["passed"]:
            said = line.get("said") or ", ".join(
                f"{key} {line[key]:.4g}"
                for key in ("kl", "difference", "gap", "tolerance")
                if line.get(key) is not None
            )
            raise VerificationError(f"{where}: {line['check']} in {line['runtime']}: {said}; do not serve this file")
    if found.missing:
        raise VerificationError(f"{where} is written and not verified: {found.missing[0]}, or pass --no-verify")


def exported(
    command: str, source: Source, found: Mapping[Path, Verified | None], notes: Sequence[str], stages: Stages
) -> RunRecord:
    """The record of exports and how they were judged; None: not at all."""
    measurements: list[Measurement] = []
    lines: list[Line] = []
    said = list(notes)
    for place, judged in found.items():
        if judged is None or not judged.measurements:
            measurements.append(Measurement(str(place), "bytes", "bytes", float(folder.payload_bytes(place))))
        if judged is not None:
            measurements += judged.measurements
            lines += [{"export": place.name, **line} for line in judged.lines]
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


def _runtimes(form: ExportFormat, settings: VerifySettings) -> tuple[list[str], list[str]]:
    wanted = [environments.plain(name) for name in settings.runtimes] or list(form.runtimes)
    places = [environments.place(name) for name in wanted]
    there = [place.name for place in places if place.interpreter is not None]
    needed = places if settings.runtimes else [] if there else places[:1]
    missing = [str(MissingRuntimeError(p.name, p.install)) for p in needed if p.interpreter is None]
    return there, missing


def _static(where: Path, told: dict[str, Any], source: Source, form: ExportFormat, hooks: Hooks) -> list[Line]:
    """What can be said without a runtime: files as they were written, companions byte by byte, codes read back."""
    changed = folder.changed(where, told)
    lines: list[Line] = [{
        "check": "files as they were written", "runtime": "sha256", "files": len(told["files"]), "passed": not changed,
        **({"said": f"{changed[0]} changed since"} if changed else {}),
    }]  # fmt: skip
    names = source.companions()
    other = [n for n in names if not (where / n).is_file() or file_sha256(where / n) != file_sha256(source.folder / n)]
    lines.append({
        "check": "tokenizer, template and settings as in the artifact", "runtime": "sha256", "files": len(names),
        "passed": not other, **({"said": f"{other[0]} is missing or differs"} if other else {}),
    })  # fmt: skip
    count, wrong = 0, ""
    try:
        for name, weight in form.read_back(where, source):
            hooks.report("reading codes back", count, len(told["packed"]))
            count += name in source.coded
            if not wrong and not _same(weight, name, source):
                wrong = f"{name} is not what {'its codes stand for' if name in source.coded else 'the artifact has'}"
    except (CompressError, LookupError, OSError, ValueError) as error:  # what a damaged file makes readers raise
        wrong = wrong or f"they cannot be read ({type(error).__name__}: {error})"
    if count != len(told["packed"]):
        wrong = wrong or f"{count} layers could be read, {len(told['packed'])} were written"
    line = {"check": "codes and scales read back", "runtime": told["format"], "layers": count, "passed": not wrong}
    lines.append({**line, **({"said": wrong} if wrong else {})})
    return [*lines, *([_kept(where, told, source, form)] if form.kept is not None else [])]


def _kept(where: Path, told: dict[str, Any], source: Source, form: ExportFormat) -> Line:
    """Weights that stayed float, and grids of inputs, as they lie in the file."""
    assert form.kept is not None
    count, wrong = 0, ""
    for name, found, expected in form.kept(where, source):
        count += 1
        if not wrong and not (found.shape == expected.shape and torch.equal(found, expected)):
            wrong = f"{name} is not that of the artifact"
    line = {"check": "kept weights read back", "runtime": told["format"], "tensors": count, "passed": not wrong}
    return {**line, **({"said": wrong} if wrong else {})}


def _same(weight: Tensor, name: str, source: Source) -> bool:
    """Whether a weight that was read back is the artifact's: bit by bit, kept ones in the dtype they were given."""
    if name in source.coded:
        return torch.equal(weight, dequantize(source.codes(name)))
    kept = source.weight(name)
    return any(torch.equal(weight, kept.to(dtype).float()) for dtype in (torch.float32, torch.float16, torch.bfloat16))


def _expected(source: Source, told: dict[str, Any], runtimes: Sequence[str], settings: VerifySettings) -> Expected:
    """Run the reference: the whole model in memory, for as long as this takes."""
    device.set_threads(settings.threads)
    limit = min(longest_sequence(source.checkpoint.config), told["facts"].get("longest", 1 << 20))
    sequences = read_probe(source.folder, limit)
    kind = kind_of(source.model)
    decoder = kind == "causal"
    inputs = [{"input_ids": ids[None]} for ids in sequences]
    if kind == "seq2seq":
        inputs = heard.inputs_of(source.folder, source.checkpoint.config, sequences)
    elif not decoder:
        inputs = [{**given, "attention_mask": torch.ones_like(given["input_ids"])} for given in inputs]
        inputs.append(_padded(sequences[:2]))
    tokenizer = load_tokenizer(source.folder, settings.trust_remote_code)
    texts = texts_of(tokenizer, sequences, told["facts"].get("unlike", ()))
    reference = Reference(source, told["packed"], load("format", told["format"]).acts)
    exact = [reference.run(given) for given in inputs]
    kinds = {arithmetic_of(name, told) for name in runtimes}
    rounded = {kind: [reference.run(given, kind) for given in inputs] for kind in kinds if _rounds(kind)}
    prompt = sequences[0][:PROMPT].tolist()
    written, chosen = reference.greedy(prompt, judge.GREEDY) if decoder else ([], torch.empty(0))
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    chat = None
    if getattr(tokenizer, "chat_template", None):
        filled = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
        chat = list(tokenizer(filled, add_special_tokens=False)["input_ids"])
    follow = heard.follower(reference, inputs[0], source.folder) if kind == "seq2seq" else None
    rows, note = (None, "") if decoder else served.rows_of(source, reference)
    scored = {"follow": follow, "rows": rows, "note": note, "config": source.checkpoint.config}
    return Expected(inputs, exact, rounded, prompt, written, chosen, decoder, texts, ids, chat, **scored)


def arithmetic_of(runtime: str, told: Mapping[str, Any]) -> Arithmetic:
    """How a runtime computes this export; what the file itself decides is among its facts."""
    kind = environments.runtime(runtime).formats[told["format"]]
    return replace(kind, **told["facts"].get("arithmetic", {}))


def _rounds(kind: Arithmetic) -> bool:
    return kind.dtype != "float32" or bool(kind.coded or kind.dense or kind.integers)


def _padded(sequences: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sequences of different lengths as one batch: whether the mask is heeded shows only here."""
    ids = [sequences[0], sequences[-1][: max(1, len(sequences[-1]) // 2)]]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in ids], batch_first=True)
    return {"input_ids": batch, "attention_mask": mask}


def _judged(
    where: Path, name: str, told: dict[str, Any], expected: Expected, settings: VerifySettings
) -> tuple[list[Line], list[Measurement]]:
    arithmetic = arithmetic_of(name, told)
    allowed = judge.bounds(expected.exact, expected.rounded.get(arithmetic), arithmetic)
    with RuntimeProcess.open(name, where, settings.threads) as process:
        runtime = f"{name} {process.version}"
        timed = process.latency(PROMPT, DECODE if expected.decoder else 1, REPEATS)
        memory = process.rss()
        lines = _lines(process, expected, allowed)
        scored: list[Measurement] = []
        if expected.rows is not None:
            line, scored = served.judged(process, expected.rows, expected.config, f"{where} in {name}")
            lines.append(line)
    lines = [{**line, "runtime": runtime} for line in lines]
    lines[0] = {**lines[0], "arithmetic": allowed.why, **{f"arithmetic_{k}": v for k, v in allowed.plain.items()}}
    return lines, [*_figures(f"{where} in {name}", where, lines, timed, memory), *scored]


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
        made = process.chat(CHAT)
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
    subject: str, where: Path, lines: Sequence[Line], timed: dict[str, Any], memory: dict[str, Any]
) -> list[Measurement]:
    detail = {"export": str(where), "threads": timed["threads"], "repeats": REPEATS}
    size = folder.payload_bytes(where)
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
