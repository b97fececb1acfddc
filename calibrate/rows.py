"""Labelled rows: tables and CoNLL files of any kind, or a folder with one sub-folder of texts for each class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibrate import arrow, conll, formats, sources
from calibrate.choose import Choice, chosen, splits_of
from calibrate.encodings import decode
from calibrate.formats import Row
from compress.core.errors import DataError

PLENTY = 1 << 31  # characters: labelled data is read whole
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test"}  # fmt: skip
"""File names that say which split a file is."""
SHARD = re.compile(r"-\d+-of-\d+$")
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

    def only(self, numbers: Sequence[int]) -> Table:
        """The same with some of the rows."""
        return replace(self, rows=[self.rows[n] for n in numbers], given=[self.given[n] for n in numbers])


@dataclass(frozen=True)
class Reading:
    """What is read of the files. tagged: text files are words with tags. audio: columns of sound are read too, as
    {"bytes", "path"}. splits: (part, name) of the splits that were asked for."""

    tagged: bool = False
    audio: bool = False
    splits: tuple[tuple[str, str], ...] = ()


def read_rows(data: str, reading: Reading | None = None, choice: Choice | None = None, seed: int = 0) -> Table:
    """Every row that `data` names: a file, a folder of files, a `save_to_disk` folder or a hub name.

    choice: which of the rows, `seed` for those that are drawn. Raises DataError in one sentence.
    """
    choice = choice or Choice()
    table = _read(data, replace(reading or Reading(), splits=tuple(splits_of(choice.split))))
    numbers = chosen(table.rows, choice, seed, table.source)
    if len(numbers) == len(table.rows):
        return table
    said = f"{len(numbers)} of {len(table.rows)} rows of {table.source} were chosen by --filter and --select."
    return replace(table.only(numbers), notes=(*table.notes, said))


def _read(data: str, reading: Reading) -> Table:
    if not data.strip():
        raise DataError("--data is empty; give a file, a folder or a hub name")
    path = Path(data).expanduser()
    if path.is_dir():
        if any((path / mark).is_file() for mark in arrow.SAVED):
            wanted: list[tuple[str | None, str]] = [*reading.splits] or [(None, "")]
            read = [(part, arrow.read_saved(path, data, PLENTY, name, reading.audio)) for part, name in wanted]
            return _joined(read, data, "arrow")
        return _folder(path, data, reading)
    if path.is_file():
        if reading.splits:
            raise DataError(f"{data} is one file and has no splits; leave out --split, or give the folder that holds "
                            "a file for each")  # fmt: skip
        rows, encoding, note = _file(path, data, reading)
        if not rows:
            raise DataError(f"{data} holds no rows; give a file with rows in it")
        return Table(rows, [""] * len(rows), data, path.suffix[1:].lower(), encoding, (note,) if note else ())
    if path.exists() or path.suffix.lower() in _suffixes(reading.tagged) or not sources.HUB_NAME.fullmatch(data):
        raise sources.missing(path, data)
    repo = ":".join([*data.split(":"), ""][:2])
    names: list[tuple[str | None, str]] = [(part, f"{repo}:{name}") for part, name in reading.splits] or [(None, data)]
    return _joined([(part, arrow.read_hub(name, PLENTY, reading.audio)) for part, name in names], data, "hub")


def _suffixes(tagged: bool) -> tuple[str, ...]:
    return (*dict.fromkeys((*sources.SUFFIXES, *(conll.SUFFIXES if tagged else conll.NAMED))),)


def _joined(read: Sequence[tuple[str | None, arrow.Table]], data: str, form: str) -> Table:
    """One table of those of the splits that were asked for, each with the part that it is; None: nobody asked."""
    rows = [row for _, table in read for row in table.rows]
    if not rows:
        raise DataError(f"{data} holds no rows; give a set with rows in it")
    notes = [table.note for _, table in read if table.note]
    for part, table in read:
        if part is None and (unread := [name for name in table.splits if name != table.split]):
            notes.append(f"Only the split {table.split} of {data} was read, not {', '.join(unread[:6])}; see --split.")
    given = [part or "" for part, table in read for _ in table.rows]
    return Table(rows, given, data, form, notes=tuple(notes))


def _file(path: Path, name: str, reading: Reading) -> tuple[list[Row], str, str]:
    """(rows, encoding, note) of one file."""
    tagged, suffix = reading.tagged, path.suffix.lower()
    if suffix not in _suffixes(tagged):
        raise DataError(f"{name} ends in {suffix or 'nothing'}; labelled data can be {', '.join(_suffixes(tagged))}")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty; give a file with rows in it")
    if suffix in arrow.BUILDERS:
        table = arrow.read_file(path, name, PLENTY, reading.audio)
        return table.rows, "", table.note
    if suffix in (conll.SUFFIXES if tagged else conll.NAMED):
        text, encoding = decode(path.read_bytes(), name, partial=False)
        return list(conll.parse(text, name)), encoding, ""
    read = formats.read(path, name)
    return read.rows, read.encoding, read.note


def _below(folder: Path, row: Row) -> Row:
    name = row.get("file_name")
    return {**row, "file_name": (folder / name).as_posix()} if isinstance(name, str) and name else row


def _folder(path: Path, data: str, reading: Reading) -> Table:
    tagged, splits = reading.tagged, reading.splits
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
    # train/sport/001.txt, train/metadata.csv, train.csv
    above = {f: f.relative_to(path).parts[0] if classes or f.stem == METADATA else stem_of(f) for f in files}
    parts = {name: part for part, name in splits}
    there = list(dict.fromkeys(above.values()))
    if absent := next((name for name in parts if name not in there), None):
        raise DataError(f"the folder {data} has no split {absent!r}; there is {', '.join(there[:20])}")
    rows: list[Row] = []
    given: list[str] = []
    encodings: set[str] = set()
    notes: list[str] = []
    for file in files:
        if splits and above[file] not in parts:
            continue
        found, encoding, note = _file(file, file.relative_to(path).as_posix(), reading)
        if file.stem == METADATA:
            found = [_below(file.parent.relative_to(path), row) for row in found]
        rows += [{**row, "label": file.parent.name} for row in found] if classes else found
        part = parts[above[file]] if splits else SPLITS.get(above[file].lower(), "")
        given += [part] * len(found)
        encodings |= {encoding} - {""}
        notes += [note] if note else []
    form = ", ".join(sorted({p.suffix[1:].lower() for p in files}))
    return Table(rows, given, data, form, ", ".join(sorted(encodings)), tuple(notes))


def stem_of(file: Path) -> str:
    """The name of the split that a file is: train.csv, and train-00000-of-00002.parquet of a hub, are `train`."""
    return SHARD.sub("", file.stem)
