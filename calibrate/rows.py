"""Labelled rows: tables and CoNLL files of any kind, or a folder with one sub-folder of texts for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibrate import arrow, conll, formats, sources
from calibrate.encodings import decode
from calibrate.formats import Row
from compress.core.errors import DataError

PLENTY = 1 << 31  # characters: labelled data is read whole
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test"}  # fmt: skip
"""File names that say which split a file is."""
METADATA = "metadata"
"""The table of a folder of sound files in the layout of `datasets`; its column `file_name` is relative to it."""


@dataclass(frozen=True)
class Table:
    """Rows in a fixed order. given: the rows' split where the source names one, "" elsewhere."""

    rows: list[Row]
    given: list[str]
    source: str
    format: str
    encoding: str = ""
    notes: tuple[str, ...] = ()


def read_rows(data: str, tagged: bool = False, audio: bool = False) -> Table:
    """Every row that `data` names: a file, a folder of files, a `save_to_disk` folder or a hub name.

    tagged: text files are words with tags. audio: columns of sound are read too, as {"bytes", "path"}. Raises DataError
    in one sentence.
    """
    if not data.strip():
        raise DataError("--data is empty; give a file, a folder or a hub name")
    path = Path(data).expanduser()
    if path.is_dir():
        if any((path / mark).is_file() for mark in arrow.SAVED):
            return _table(arrow.read_saved(path, data, PLENTY, audio), data, "arrow")
        return _folder(path, data, tagged, audio)
    if path.is_file():
        rows, encoding, note = _file(path, data, tagged, audio)
        if not rows:
            raise DataError(f"{data} holds no rows; give a file with rows in it")
        return Table(rows, [""] * len(rows), data, path.suffix[1:].lower(), encoding, (note,) if note else ())
    if path.exists() or path.suffix.lower() in _suffixes(tagged) or not sources.HUB_NAME.fullmatch(data):
        raise sources.missing(path, data)
    return _table(arrow.read_hub(data, PLENTY, audio), data, "hub")


def _suffixes(tagged: bool) -> tuple[str, ...]:
    return (*dict.fromkeys((*sources.SUFFIXES, *(conll.SUFFIXES if tagged else conll.NAMED))),)


def _table(table: arrow.Table, data: str, form: str) -> Table:
    if not table.rows:
        raise DataError(f"{data} holds no rows; give a set with rows in it")
    return Table(table.rows, [""] * len(table.rows), data, form, notes=(table.note,) if table.note else ())


def _file(path: Path, name: str, tagged: bool, audio: bool) -> tuple[list[Row], str, str]:
    """(rows, encoding, note) of one file."""
    suffix = path.suffix.lower()
    if suffix not in _suffixes(tagged):
        raise DataError(f"{name} ends in {suffix or 'nothing'}; labelled data can be {', '.join(_suffixes(tagged))}")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty; give a file with rows in it")
    if suffix in arrow.BUILDERS:
        table = arrow.read_file(path, name, PLENTY, audio)
        return table.rows, "", table.note
    if suffix in (conll.SUFFIXES if tagged else conll.NAMED):
        text, encoding = decode(path.read_bytes(), name, partial=False)
        return list(conll.parse(text, name)), encoding, ""
    read = formats.read(path, name)
    return read.rows, read.encoding, read.note


def _below(folder: Path, row: Row) -> Row:
    name = row.get("file_name")
    return {**row, "file_name": (folder / name).as_posix()} if isinstance(name, str) and name else row


def _folder(path: Path, data: str, tagged: bool, audio: bool) -> Table:
    files = sorted(
        (p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _suffixes(tagged) and p.stat().st_size),
        key=lambda p: p.relative_to(path).as_posix(),
    )
    if not files:
        raise DataError(f"the folder {data} holds nothing readable; data can be {', '.join(_suffixes(tagged))}")
    classes = not tagged and all(p.suffix.lower() in sources.PLAIN for p in files)
    if classes and any(p.parent == path for p in files):
        raise DataError(
            f"the folder {data} holds texts without labels; put those of each class into a sub-folder named after it"
        )
    rows: list[Row] = []
    given: list[str] = []
    encodings: set[str] = set()
    notes: list[str] = []
    for file in files:
        found, encoding, note = _file(file, file.relative_to(path).as_posix(), tagged, audio)
        media = file.stem == METADATA
        if media:
            found = [_below(file.parent.relative_to(path), row) for row in found]
        rows += [{**row, "label": file.parent.name} for row in found] if classes else found
        # train/sport/001.txt, train/metadata.csv, train.csv
        above = file.relative_to(path).parts[0] if classes or media else file.stem
        given += [SPLITS.get(above.lower(), "")] * len(found)
        encodings |= {encoding} - {""}
        notes += [note] if note else []
    form = ", ".join(sorted({p.suffix[1:].lower() for p in files}))
    return Table(rows, given, data, form, ", ".join(sorted(encodings)), tuple(notes))
