"""Tiny artifacts to export, made once; their exports, with and without a planted fault; and how these are judged.

Runtimes of our own environment are called instead of started, so that a judgement takes a second and not ten.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from transformers import AutoTokenizer

from compress.core import child
from compress.core.errors import CompressError, VerificationError
from compress.core.registry import load
from compress.core.types import RunRecord
from compress.pipeline import answered
from compress.pipeline import verify as stage
from compress.pipeline.expected import Expected, VerifySettings, expected
from compress.pipeline.export import ExportSettings, export
from compress.pipeline.hooks import Hooks
from compress.pipeline.quantize import quantize
from compress.pipeline.static import static_lines
from compress.pipeline.verify import Verified, raise_if_wrong
from compress.recipe import Recipe
from export import environments, folder
from export.client import RuntimeProcess
from export.judge import Line
from export.kinds import ExportFormat
from export.runtimes._worker import Server
from export.source import Source
from tests import tiny, writing
from tests.faults import plant

SETTINGS = VerifySettings(threads=1)
HEARS, HEARD = {"whisper"}, 12
"""Models that are given sounds to calibrate on, and how many."""
QUICK = {"samples": 4, "seq_len": 64, "eval_samples": 4, "generate": 0, "threads": 1, "verify": False}


@dataclass(frozen=True)
class Subject:
    """A tiny model at a scheme. model: its name in tests.tiny. scheme: what people call it. settings: of Recipe."""

    model: str
    scheme: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


SCHEMES: dict[str, dict[str, Any]] = {
    "4 bit": {"bits": 4, "group_size": 32, "mixed": False},
    "4 bit symmetric": {"bits": 4, "group_size": 32, "symmetric": True, "mixed": False},
    "8 bit rows": {"bits": 8, "group_size": -1, "activations": "none"},
    "W8A8 dynamic": {"bits": 8, "activations": "dynamic"},
    "W8A8 static": {"bits": 8, "activations": "static"},
    "NF4": {"scheme": "nf4"},
    "Q4_0": {"scheme": "q4_0"},
}


def subject(model: str, scheme: str) -> Subject:
    """A tiny model at one of the schemes."""
    return Subject(model, scheme, {"method": "rtn", **SCHEMES[scheme]})


class InProcess(RuntimeProcess):
    """The worker of a runtime, called instead of started; runtimes that live elsewhere are started."""

    def __init__(self, name: str, threads: int = 0, patience: float | None = None, trusted: bool = False) -> None:
        del patience
        self._server = Server(name)
        self.runtime, self.kind, self.vocabulary, self.normalised = name, "", 0, False
        self.threads = int(self.ask("settings", {"values": {"threads": threads, "trust_remote_code": trusted}}))
        self.version = str(self.ask("version", {}))

    @classmethod
    def open(cls, name: str, folder: Path, threads: int = 0, trusted: bool = False) -> RuntimeProcess:
        """An export, open here or in a process of its own."""
        if environments.place(name).how != "own":
            return RuntimeProcess.open(name, folder, threads, trusted)
        opened = super().open(name, folder, threads, trusted)
        return opened

    def ask(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        """The worker's reply, as it comes out of a pipe."""
        reply = self._server.handle({"verb": verb, "arguments": json.loads(json.dumps(arguments))})
        if "error" in reply:
            raise child._error(reply["error"], self.runtime)
        result = reply["result"]
        return torch.from_numpy(result.copy()) if hasattr(result, "dtype") else json.loads(json.dumps(result))

    def close(self, at_once: bool = False) -> None:
        """Nothing was started."""

    def __enter__(self) -> Self:
        return self


@contextmanager
def in_process() -> Iterator[None]:
    """Runtimes of our own environment run in this process."""
    with patch.object(stage, "RuntimeProcess", InProcess):
        yield


# ---- making


def artifact(name: str, base: Path, **settings: Any) -> Path:
    """The tiny model `name`, quantized into a folder under `base`; made once a folder."""
    source, out = base / name, base / f"{name}-out"
    if not (out / "compress" / "record.json").is_file():
        (writing.save_listener if name in HEARS else tiny.save_tiny)(name, source)
        if name in HEARS:
            sounds = base / f"{name}-speech"
            settings = {"data": str(sounds if sounds.is_dir() else writing.write_speech(sounds, HEARD)), **settings}
        AutoTokenizer.from_pretrained(source).save_pretrained(source)  # as the class of the model has it
        given = QUICK | ({} if {"scheme", "activations"} & set(settings) else {"bits": 4, "group_size": 32}) | settings
        with warnings.catch_warnings(), patch.object(answered, "WHOLE_BYTES", 0):  # answers take two more processes
            warnings.simplefilter("ignore")
            quantize(Recipe.build(model=str(source), out=str(out), **given))
    return out


def written(
    out: Path, form: str, runtime: str = "", where: Path | None = None, **options: str
) -> tuple[Path, RunRecord]:
    """An export as `compress export` makes it, judged in `runtime`, or not at all."""
    verify = VerifySettings((runtime,) if runtime else (), threads=1)
    record, failures = export(out, ExportSettings((form,), options, where, bool(runtime), True, verify), Hooks())
    assert [str(failure) for failure in failures] == []
    return where or folder.home(out, form), record


# ---- judging


def verified(where: Path, out: Path, *runtimes: str) -> Verified:
    """All lines on an export; runtimes: those to judge it in, else the format's."""
    return stage.verify(where, Source(out), VerifySettings(runtimes, 1), Hooks())


def agrees(where: Path, found: Verified) -> bool:
    """Whether an export stands: what `compress verify` would exit with."""
    try:
        raise_if_wrong(where, found)
    except VerificationError:
        return False
    return True


def static(where: Path, out: Path) -> list[Line]:
    """What can be said without a runtime: hashes, companions, codes read back."""
    told = folder.card(where)
    return static_lines(where, told, Source(out), load("format", told["format"]), Hooks())


def judged(where: Path, out: Path, runtime: str) -> list[Line]:
    """What the runtime itself says of an export, whatever can be seen without it."""
    told = folder.card(where)
    packed, facts = tuple(told["packed"]), json.dumps(told["facts"], sort_keys=True)
    return stage._judged(where, runtime, told, _expected(out, told["format"], packed, facts, runtime), SETTINGS)[0]


@cache
def _expected(out: Path, form: str, packed: tuple[str, ...], facts: str, runtime: str) -> Expected:
    return expected(Source(out), {"format": form, "packed": packed, "facts": json.loads(facts)}, [runtime], SETTINGS)


def wrong(lines: list[Line]) -> list[str]:
    """The checks that did not pass."""
    return [str(line["check"]) for line in lines if not line["passed"]]


class Bench:
    """Artifacts and exports of subjects, each made once."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._written: dict[Path, Path | CompressError] = {}

    def artifact(self, of: Subject) -> Path:
        """The artifact of a subject."""
        return artifact(of.model, self.base / of.scheme.replace(" ", "-"), **of.settings)

    @cached_property
    def _sources(self) -> dict[Subject, Source]:
        return {}

    def source(self, of: Subject) -> Source:
        """The same as exporters read it."""
        if of not in self._sources:
            self._sources[of] = Source(self.artifact(of))
        return self._sources[of]

    def refusal(self, form: str, of: Subject) -> str | None:
        """Why a format does not hold a subject; None where it does. Raises what `refuses` raises for what is absent."""
        chosen: ExportFormat = load("format", form)
        return chosen.refuses(self.source(of), chosen.options())

    def export(self, form: str, of: Subject, fault: str = "") -> Path:
        """The export of a subject, or of a copy of it with a fault. Raises what the exporter raises."""
        where = self.base / "exports" / f"{of.model}-{of.scheme}-{form}-{fault or 'true'}".replace(" ", "-")
        if where not in self._written:
            out = self.artifact(of)
            if fault:
                out = plant(fault, self.source(of), where.with_name(f"{where.name}-artifact"))
            try:
                self._written[where] = written(out, form, where=where)[0]
            except CompressError as error:
                self._written[where] = error
        found = self._written[where]
        if isinstance(found, CompressError):
            raise found
        return found
