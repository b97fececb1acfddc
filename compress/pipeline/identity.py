"""What tells one run from another: the folder it writes to, its fingerprint, and the manifest it leaves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import compress
from compress.core import artifact
from compress.core.files import write_json
from compress.core.fingerprint import Fingerprint, file_sha256
from compress.recipe import Recipe, TuneRecipe

ELSEWHERE = {"model", "out", "data", "like", "threads", "generate", "verify", "to", "plan"}
"""Settings that change no byte, or that a fingerprint holds by what they stand for: hashes, the number used."""


def default_out(name: str, suffix: str) -> str:
    """`smollm2-135m-instruct-folded-4bit` for a model's name and `4bit`."""
    plain = "".join(c if c.isalnum() else "-" for c in name.rpartition("/")[2].lower())
    return "-".join([part for part in plain.split("-") if part] + [suffix])


def fingerprint(
    recipe: Recipe | TuneRecipe, files: Iterable[Path], threads: int, environment: dict[str, Any]
) -> Fingerprint:
    """Settings, model files by hash, versions: every input that can change a byte of the result, but the data."""
    settings = recipe.model_dump(exclude=ELSEWHERE)
    found: Fingerprint = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    for path in sorted(files):
        found[f"model file {path.name}"] = file_sha256(path)
    found["threads"] = threads
    found["versions"] = {name: environment["packages"].get(name) for name in ("torch", "transformers")}
    found["compress"] = compress.__version__
    return found


def model_files(folder: Path, weights: Iterable[Path], trusted: bool) -> set[Path]:
    """What a model is read from. trusted: its code is run too."""
    return {*weights, folder / "config.json", *(folder.glob("*.py") if trusted else ())}


def write_manifest(
    out: Path, form: str, model: str, recipe: Recipe | TuneRecipe, mark: Fingerprint, environment: dict[str, Any]
) -> None:
    """compress/manifest.json: where the artifact came from and the sha256 of every file of it."""
    manifest = {
        "format": form,
        "compress": compress.__version__,
        "model": model,
        "fingerprint": mark,
        "recipe": recipe.model_dump(exclude={"out"}),
        "environment": {k: environment[k] for k in ("python", "packages", "cpu", "threads")},
        "files": artifact.hashes(out),
    }
    write_json(out / artifact.MANIFEST, manifest)
