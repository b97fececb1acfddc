"""Where text comes from: a file, a folder, a hub name, or the text every Python carries."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrate import arrow, columns, formats
from calibrate.formats import Row
from compress.core.errors import DataError

BUILT_IN = "built-in (Python reference topics)"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]*){0,2}")
SUFFIXES = (*formats.PARSERS, *arrow.BUILDERS)
PLAIN = (".txt", ".text", ".md", ".markdown")
MAX_FILES = 20_000
LOCAL_CHARS = 64_000_000  # of a table on this disk, at least this much is looked at


@dataclass(frozen=True)
class Request:
    """What to read. chars: how many characters are plenty for the samples asked for."""

    data: str | None
    text_column: str | None
    chars: int


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, and what the card says of them."""

    documents: tuple[str, ...]
    source: str
    kind: str
    format: str
    encoding: str = ""
    column: str = ""
    rows: int = 0
    files: int = 0
    warnings: tuple[str, ...] = field(default=())


def load(request: Request, tokenizer: Any) -> Corpus:
    """Every document that `request.data` names, in an order that is the same on every machine.

    The tokenizer is used for its chat template only. Raises DataError when nothing is there to read.
    """
    if request.data is None:
        return _built_in()
    name = request.data
    if not name.strip():
        raise DataError("--data is empty; give a file, a folder or a hub name, or leave it out")
    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / mark).is_file() for mark in arrow.SAVED):
            return _from_table(arrow.read_saved(path, name, _plenty(request)), "arrow", request, tokenizer)
        return _from_folder(path, request, tokenizer)
    if path.is_file():
        return _from_file(path, name, request, tokenizer)
    hub = HUB_NAME.fullmatch(name) and path.suffix.lower() not in SUFFIXES and not name.startswith(".")
    if path.exists() or not hub:
        raise missing(path, name)
    return _from_table(arrow.read_hub(name, request.chars), "hub", request, tokenizer)


def missing(path: Path, name: str) -> DataError:
    """What to say when `path`, which the user typed as `name`, is no file and no folder."""
    if path.exists():
        return DataError(f"{name} is neither a file nor a folder; give one of those, or a hub name")
    return DataError(f"there is no file or folder {name}; {_suggest(path)}")


def _plenty(request: Request) -> int:
    return max(LOCAL_CHARS, request.chars)


def _suggest(path: Path) -> str:
    """Names in the folder that look like the missing one."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else "check the path given to --data"


def _unreadable(path: Path, name: str) -> DataError:
    said = f"ends in {path.suffix}" if path.suffix else "has no suffix"
    return DataError(f"{name} {said}; data can be {', '.join(SUFFIXES)}, a folder of these, or a hub name")


def _read(path: Path, name: str, request: Request) -> formats.TextFile:
    """Rows of one file of any kind."""
    if path.suffix.lower() in arrow.BUILDERS:
        table = arrow.read_file(path, name, _plenty(request))
        return formats.TextFile(table.rows, "", table.note)
    return formats.read(path, name)


def _from_file(path: Path, name: str, request: Request, tokenizer: Any) -> Corpus:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise _unreadable(path, name)
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty; give a file with text in it")
    read = _read(path, name, request)
    notes = [read.note] if read.note else []
    documents, column, more = _texts(read.rows, name, request, tokenizer)
    return Corpus(tuple(documents), name, "file", suffix[1:], read.encoding, column, len(read.rows), 1, (*notes, *more))


def _texts(rows: list[Row], name: str, request: Request, tokenizer: Any) -> tuple[list[str], str, list[str]]:
    """`(documents, column, warnings)` of the rows of one source."""
    if not rows:
        raise DataError(f"{name} holds no text; give a file with text in it")
    if Path(name).suffix.lower() in PLAIN:
        if request.text_column is not None:
            raise DataError(f"{name} is plain text and has no column {request.text_column!r}; leave out --text-column")
        return [str(row["text"]) for row in rows], "", []
    reading = columns.choose(rows, request.text_column, name)
    documents, warnings = columns.documents(rows, reading, tokenizer)
    if not documents:
        raise DataError(f"{name} holds no text in column {reading.label}; name another with --text-column")
    return documents, reading.label, warnings


def _from_table(table: arrow.Table, form: str, request: Request, tokenizer: Any) -> Corpus:
    name = str(request.data)
    documents, column, warnings = _texts(table.rows, name, request, tokenizer)
    notes = (table.note, *warnings) if table.note else tuple(warnings)
    source = f"{name} ({table.split})" if table.split and ":" not in name else name
    return Corpus(tuple(documents), source, form, form, "", column, len(table.rows), 0, notes)


def _from_folder(path: Path, request: Request, tokenizer: Any) -> Corpus:
    """Every readable file below `path`, sorted by relative name; a text file is one document."""
    name = str(request.data)
    found = sorted(
        (p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path))),
        key=lambda p: p.relative_to(path).as_posix(),
    )
    usable = [p for p in found if p.suffix.lower() in SUFFIXES and p.stat().st_size]
    if not usable:
        held = Counter(p.suffix or "no suffix" for p in found).most_common(3)
        what = ", ".join(f"{n} x {suffix}" for suffix, n in held) or "no files"
        raise DataError(f"the folder {name} holds nothing readable ({what}); data can be {', '.join(SUFFIXES)}")
    gathered = _Gathered()
    for file in usable[:MAX_FILES]:
        if gathered.chars >= _plenty(request):
            break
        gathered.add(file, file.relative_to(path).as_posix(), request, tokenizer)
    return gathered.corpus(name, len(usable), len(found))


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


@dataclass
class _Gathered:
    """What the files of a folder have given so far."""

    documents: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    formats: dict[str, int] = field(default_factory=dict)
    encodings: dict[str, int] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    files: int = 0
    chars: int = 0

    def add(self, file: Path, label: str, request: Request, tokenizer: Any) -> None:
        """One file. A text file in an unknown encoding is set aside by name; anything else wrong raises."""
        self.files += 1
        suffix = file.suffix.lower()
        plain = suffix in PLAIN
        try:
            read = _read(file, label, request)
        except DataError as error:
            if not plain:
                raise
            self.refused.append(str(error))
            return
        if not read.rows:
            return
        wanted = None if plain else request.text_column
        texts, column, said = _texts(read.rows, label, Request(request.data, wanted, 0), tokenizer)
        for counts, value in (
            (self.formats, suffix[1:]),
            (self.encodings, read.encoding),
            (self.columns, column),
        ):
            counts[value] = counts.get(value, 0) + 1
        self.documents += texts
        self.rows += len(read.rows)
        self.chars += sum(map(len, texts))
        self.warnings += [*([read.note] if read.note else []), *(f"{label}: {sentence}" for sentence in said)]

    def corpus(self, name: str, usable: int, found: int) -> Corpus:
        """The folder's corpus. Raises the first refusal when over a tenth of the files were refused."""
        if len(self.refused) * 10 > self.files:
            raise DataError(self.refused[0])
        warnings = list(self.warnings)
        if self.refused:
            warnings.append(f"{len(self.refused)} of {self.files} files were left out; the first: {self.refused[0]}.")
        if self.files < usable:
            warnings.append(f"Only the first {self.files} of {usable} files were read.")
        if found > usable:
            warnings.append(f"{found - usable} of {found} files are empty or of another kind and were left out.")
        if not self.documents:
            raise DataError(f"the folder {name} holds no text; give files with text in them")
        return Corpus(
            documents=tuple(self.documents),
            source=name,
            kind="folder",
            format=_counted(self.formats),
            encoding=_counted(self.encodings),
            column=_counted(self.columns),
            rows=self.rows,
            files=self.files,
            warnings=tuple(warnings),
        )


def _counted(values: dict[str, int]) -> str:
    """`utf-8 (2223), cp1252 (2)`, or the bare name when there is one."""
    named = {value: count for value, count in values.items() if value}
    return next(iter(named), "") if len(named) < 2 else ", ".join(f"{v} ({n})" for v, n in named.items())


def _built_in() -> Corpus:
    """Python's own reference topics: technical prose under the PSF licence, one document a topic."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise DataError(
            "this Python has no pydoc_data.topics, which is the built-in text; give your own with --data"
        ) from None
    documents = tuple(text for text in (_prose(topics[key]) for key in sorted(topics)) if text)
    version = f"python {sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(documents, BUILT_IN, "built-in", version, "utf-8", "", len(documents), 0)


def _prose(text: str) -> str:
    """Without the underlines of titles, rules of tables, marks of emphasis, runs of blank lines."""
    text = re.sub(r"^[ \t]*[+|]?([*=\-~^#+\"'])\1{2,}[-=+| \t]*$\n?", "", text, flags=re.M)
    text = re.sub(r"(?<![\w*])\*{1,2}(\w[\w .,-]*?)\*{1,2}(?![\w*])", r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
