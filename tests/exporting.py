"""Tiny artifacts to export, made once; exports with and without planted faults; a runtime's own lines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from compress.core.registry import load
from compress.pipeline import verify as stage
from compress.pipeline.expected import VerifySettings, expected
from compress.pipeline.hooks import Hooks
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe
from export import folder
from export.source import Source
from tests import tiny

SETTINGS = VerifySettings(threads=1)


def artifact(name: str, base: Path, **settings: Any) -> Path:
    """The tiny model `name`, quantized into a folder under `base`; made once a folder."""
    source, out = base / name, base / f"{name}-out"
    if not (out / "compress" / "record.json").is_file():
        tiny.save_tiny(name, source)
        given = {"bits": 4, "group_size": 32, "samples": 4, "seq_len": 64, "eval_samples": 4} | settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize(Recipe.build(model=str(source), out=str(out), threads=1, generate=0, **given))
    return out


def write(out: Path, form: str, where: Path, kind: type[Source] = Source, **options: Any) -> Path:
    """An export of `out`, read through `kind`: a true one, or one with a planted fault."""
    source, chosen = kind(out), load("format", form)
    told = chosen.options(**options)
    assert chosen.refuses(source, told) is None
    folder.write(source, form, chosen, where, lambda place: chosen.write(source, place, told, lambda *_: None), True)
    return where


def judged(where: Path, out: Path, runtime: str) -> list[dict[str, Any]]:
    """What the runtime itself says of an export, whatever can be seen without it."""
    source, told = Source(out), folder.card(where)
    return stage._judged(where, runtime, told, expected(source, told, [runtime], SETTINGS), SETTINGS)[0]


def verified(where: Path, out: Path, *runtimes: str) -> stage.Verified:
    """All lines on an export."""
    return stage.verify(where, Source(out), VerifySettings(runtimes, 1), Hooks())
