"""The folder of one export: written aside and renamed when it is whole; what export.json and verify.json say of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.core import registry
from compress.core.errors import ModelError, OutputError
from compress.core.files import atomic_write, read_pieces, storage_errors, sync_folder, write_json
from compress.core.fingerprint import file_sha256
from export.kinds import ExportFormat, Written
from export.source import Source

EXPORTS = "exports"
EXPORT, VERIFY = "export.json", "verify.json"
OWN = {EXPORT, VERIFY, "README.md"}


def home(source: Path, name: str) -> Path:
    """Where the export of an artifact in the format `name` lies."""
    return source / EXPORTS / name


def write(
    source: Source, name: str, form: ExportFormat, folder: Path, fill: Callable[[Path], Written], overwrite: bool
) -> Written:
    """Write an export into `folder`, which appears only when it is whole. fill: puts the format's own files there.

    Raises OutputError when something else lies there, StorageError when the disk is full.
    """
    check(folder, overwrite)
    aside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with storage_errors(folder):
            aside.mkdir(parents=True)
        for companion in source.companions():
            atomic_write(aside / companion, read_pieces(source.folder / companion))
        with storage_errors(folder):
            written = fill(aside)
        atomic_write(aside / "README.md", ["\n".join(_readme(source, name, form, aside, written)).encode() + b"\n"])
        write_json(aside / EXPORT, _card(source, name, folder, aside, written))
        with storage_errors(folder):
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():  # renamed and then deleted: a kill leaves a whole export, or none
                folder.replace(old)
            aside.replace(folder)
            sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return written


def check(folder: Path, overwrite: bool) -> None:
    """Raises OutputError when `folder` holds something that is no export, or an export that may not be replaced, or is
    where the program itself stands: it is replaced as a whole."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise OutputError(f"{folder} is the folder you are in, which is replaced as a whole; name another with --out")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / EXPORT).is_file():
        raise OutputError(f"{folder} holds something that is no export; move it, or export to another folder")
    if not overwrite:
        raise OutputError(f"{folder} is there already; pass --overwrite, or run compress verify {folder}")


def card(folder: Path) -> dict[str, Any]:
    """export.json of an export.

    Raises ModelError when it is none, or of a format that there is not, or when a file of it is missing.
    """
    path = folder / EXPORT
    if not path.is_file():
        raise ModelError(f"{folder} is no export of compress ({EXPORT} is missing); make one with compress export")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = dict(found["files"])
        _ = [found[key] for key in ("format", "artifact", "packed", "facts")]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{path} is damaged; run compress export again with --overwrite") from None
    if found["format"] not in registry.names("format"):
        raise ModelError(f"{path} names the format {found['format']!r}, which this version of compress does not have")
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing; run compress export again with --overwrite")
    return found


def changed(folder: Path, found: dict[str, Any]) -> list[str]:
    """Names of files that are not what export.json says they were."""
    return [name for name, sha in found["files"].items() if file_sha256(folder / name) != sha]


def artifact_of(folder: Path, found: dict[str, Any]) -> Path:
    """The artifact that an export was made from. Raises ModelError when it is not where it was."""
    where: Path = (folder / str(found["artifact"])).resolve()
    if not (where / "compress" / "manifest.json").is_file():
        raise ModelError(f"the artifact of {folder} is not in {where}; name it with --against")
    return where


def payload_bytes(folder: Path) -> int:
    """Bytes of everything that is served: weights, tokenizer, config; not what we say about it."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in OWN)
    return sum(file.stat().st_size for file in files)


def _card(source: Source, name: str, folder: Path, aside: Path, written: Written) -> dict[str, Any]:
    files = sorted(path for path in aside.rglob("*") if path.is_file() and path.name not in (EXPORT, VERIFY))
    return {
        "format": name,
        "model": source.name,
        "artifact": Path(os.path.relpath(source.folder.resolve(), folder.resolve())).as_posix(),
        "packed": list(written.packed),
        "facts": written.facts,
        "notes": list(written.notes),
        "files": {path.relative_to(aside).as_posix(): file_sha256(path) for path in files},
    }


def _readme(source: Source, name: str, form: ExportFormat, folder: Path, written: Written) -> list[str]:
    schemes = sorted({source.coded[layer].scheme.name for layer in written.packed})
    packed = f"{len(written.packed)} layers as {', '.join(schemes)}" if written.packed else "no packed layer"
    lines = [
        f"# {source.name}, {name}",
        "",
        f"{form.summary}: {packed}, the codes that compress solved. `verify.json` says what the runtime gave for it.",
        "",
        *form.readme(folder),
        "",
    ]
    return lines + [f"- {note}" for note in written.notes]
