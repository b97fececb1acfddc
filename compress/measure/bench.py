"""Measure subjects side by side: size, latency, memory and quality, each through plain transformers.

Every subject is opened by fresh worker processes. Latency comes first, while the machine is quiet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.core.errors import ModelError, UsageError
from compress.core.types import Measurement
from compress.measure.client import Worker
from compress.measure.exported import exported
from compress.measure.latency import measure_latency
from compress.measure.lockstep import measure_quality, scorable
from compress.measure.settings import BenchSettings, Progress
from compress.measure.size import bits_per_weight, folder_bytes, locate, weight_files
from compress.measure.subject import Description


def run_bench(settings: BenchSettings, progress: Progress) -> tuple[list[Measurement], list[str]]:
    """Measurements of every subject, named as given, and sentences to print under the table.

    progress(what, done, total) is called before each step and once at its end. Subjects that cannot be
    compared fail before anything is timed. Raises UsageError, DataError, ModelError and CompressError.
    """
    _check_settings(settings)
    kinds = _describe(settings, progress)
    notes = _notes(kinds)
    measurements = [m for d in kinds for m in _sizes(d, kinds[0].parameters, settings)]
    if deaf := [d.subject for d in kinds if not d.reads_text]:
        return measurements, [
            *notes,
            f"{', '.join(deaf)}: token ids are not its input; only sizes were measured",
        ]
    if settings.latency:
        measurements += measure_latency(settings, kinds, notes, progress)
    if settings.quality:
        measurements += measure_quality(settings, kinds, notes, progress)
    return measurements, notes


def _check_settings(settings: BenchSettings) -> None:
    if not settings.subjects:
        raise UsageError("no subject was given to bench; name at least one model folder")
    if len(set(settings.subjects)) < len(settings.subjects):
        raise UsageError(f"a subject is named twice in {', '.join(settings.subjects)}; name each once")
    for name in ("prompt_tokens", "decode_tokens", "repeats", "rounds"):
        if (value := getattr(settings, name)) < 1:
            raise UsageError(f"{name} {value} measures nothing; give 1 or more")
    if settings.warmup < 0:
        raise UsageError(f"warmup {settings.warmup} is impossible; give 0 or more")
    if settings.quality:
        scorable(settings.data)


def _describe(settings: BenchSettings, progress: Progress) -> list[Description]:
    """What the subjects are. Raises ModelError when one is missing or cannot be compared to the first."""
    for subject in settings.subjects:
        if exported(subject) is None:
            locate(subject, settings.allow_pickle)
    kinds: list[Description] = []
    with Worker(settings.worker) as worker:
        for number, subject in enumerate(settings.subjects):
            progress(f"opening {subject}", number, len(settings.subjects))
            kinds.append(worker.describe(subject))
    progress("opening", len(kinds), len(kinds))
    first = kinds[0]
    for other in kinds[1:]:
        if settings.quality and other.vocabulary != first.vocabulary:
            raise ModelError(
                f"{other.subject} has a vocabulary of {other.vocabulary} tokens and {first.subject} one of "
                f"{first.vocabulary}; KL needs two models with the same tokenizer"
            )
        if other.kind != first.kind:
            raise ModelError(
                f"{first.subject} is of kind {first.kind}, {other.subject} of kind {other.kind}; "
                "compare models of one kind"
            )
    return kinds


def _notes(kinds: Sequence[Description]) -> list[str]:
    notes = [
        f"transformers decompresses {d.subject} on its first pass: its latency and memory here are those of "
        "dense weights; a server with kernels for the format gains more"
        for d in kinds
        if d.quantized == "compressed-tensors"
    ]
    if kinds[0].quantized:
        notes.append(f"the reference {kinds[0].subject} is itself quantized ({kinds[0].quantized})")
    return notes


def _sizes(kind: Description, parameters: int, settings: BenchSettings) -> list[Measurement]:
    """`bytes` and `bits_per_weight` of a subject's weight files."""
    if (export := exported(kind.subject)) is not None:
        return _rows(kind.subject, export.nbytes, parameters, {"runtime": export.runtime})
    found = locate(kind.subject, settings.allow_pickle)
    if found.local:
        place = Path(found.folder) / found.gguf_file if found.gguf_file else Path(found.folder)
    else:
        place = _cached(found.folder)
    files = weight_files(place)
    size = sum(file.stat().st_size for file in files)
    return _rows(kind.subject, size, parameters, {"folder_bytes": folder_bytes(place), "files": len(files)})


def _rows(subject: str, size: int, parameters: int, detail: dict[str, Any]) -> list[Measurement]:
    bits = bits_per_weight(size, parameters)
    return [
        Measurement(subject, "bytes", "bytes", float(size), detail={**detail, "parameters": parameters}),
        Measurement(subject, "bits_per_weight", "bits", bits, detail={"parameters": parameters}),
    ]


def _cached(model: str) -> Path:
    """The snapshot folder of a hub id, fetched if need be. Raises ModelError when it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's own errors, requests' and the system's
        said = " ".join(str(error).split())[:160]
        raise ModelError(f"{model} cannot be fetched from the hub ({said}); give a local folder") from None
