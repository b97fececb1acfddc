"""Text files to rows: txt, md, jsonl, json, csv, tsv. Every refusal names the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.encodings import decode
from compress.core.errors import DataError

Row = dict[str, Any]

HEAD_BYTES = 256 * 2**20  # of a line-by-line file, only the head is read
WHOLE_BYTES = 2**30  # json and csv cannot be cut, so larger ones are refused
CELL_CHARS = 2**27  # csv refuses cells above 131,072 characters unless told


@dataclass(frozen=True)
class TextFile:
    """The rows of one file. encoding: as found. note: a sentence when something was left out, else empty."""

    rows: list[Row]
    encoding: str
    note: str = ""


def read(path: Path, name: str) -> TextFile:
    """The rows of the text file at `path`, called `name` in errors and on the card.

    .txt and .md give one row with the whole text as `text`. Raises DataError naming the line that is wrong.
    """
    parse, whole = PARSERS[path.suffix.lower()]
    size = path.stat().st_size
    if whole and size > WHOLE_BYTES:
        raise DataError(
            f"{name} has {size / 2**30:.1f} GiB and a {path.suffix} file is read whole, up to 1 GiB; "
            "convert it to .parquet or .jsonl, or give a part of it"
        )
    cut = size > HEAD_BYTES and not whole
    try:
        with path.open("rb") as file:
            raw = file.read(HEAD_BYTES if cut else -1)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}; check its permissions") from None
    text, encoding = decode(raw, name, partial=cut)
    note = ""
    if cut:
        text = text[: text.rfind("\n") + 1] or text
        note = f"{name} has {size / 2**20:.0f} MiB; only its first {HEAD_BYTES // 2**20} MiB were read"
    return TextFile(list(parse(text, name)), encoding, note)


def _plain(text: str, name: str) -> Iterator[Row]:  # noqa: ARG001 - all parsers are called alike
    if text.strip():
        yield {"text": text}


def _json_row(value: Any) -> Row:
    """One record as a row: a bare string is text, a bare list of turns is a chat."""
    if isinstance(value, dict):
        return value
    return {"messages": value} if isinstance(value, list) else {"text": value}


def _jsonl(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _json_row(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"line {number} of {name} is not JSON ({_said(error)}); every line must hold one record"
                ) from None
            except RecursionError:
                raise DataError(f"line {number} of {name} is nested too deeply; flatten it") from None


def _json(text: str, name: str) -> Iterator[Row]:
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{name} is nested too deeply; flatten it") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text.strip():  # records line by line under the name .json
            yield from _jsonl(text, name)
            return
        raise DataError(f"line {error.lineno} of {name} is not JSON ({_said(error)}); correct it") from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        if len(lists) == len(value) > 1 and len({len(v) for v in lists}) == 1:  # columns of equal length
            value = [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
        elif len(lists) == 1 and not _is_turns(lists[0]):  # {"data": [...], "version": ...}
            value = lists[0]
    yield from (_json_row(v) for v in (value if isinstance(value, list) else [value]))


def _said(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


def _is_turns(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict) and bool({"role", "from"} & value[0].keys())


def _csv(text: str, name: str) -> Iterator[Row]:
    header = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count) if not name.lower().endswith(".tsv") else "\t"
    before = csv.field_size_limit(CELL_CHARS)
    try:
        yield from _csv_rows(text, name, delimiter)
    finally:
        csv.field_size_limit(before)


def _csv_rows(text: str, name: str, delimiter: str) -> Iterator[Row]:
    lines = io.StringIO(text)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            said = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
            raise DataError(
                f"the row that starts at line {start} of {name} is broken: {said}; "
                'write a quote inside a quoted cell as ""'
            ) from None
        if not cells:
            continue
        if not columns:
            columns = [cell.strip() or f"column{i + 1}" for i, cell in enumerate(cells)]
            continue
        if len(cells) > len(columns):
            raise DataError(
                f"the row that starts at line {start} of {name} has {len(cells)} cells and the header "
                f"{len(columns)}; put cells that contain {delimiter!r} or line breaks in quotes"
            )
        yield dict(zip(columns, cells, strict=False))


Parser = Callable[[str, str], Iterator[Row]]
# suffix -> parser, and whether the file must be read whole
PARSERS: dict[str, tuple[Parser, bool]] = {
    ".txt": (_plain, False),
    ".text": (_plain, False),
    ".md": (_plain, False),
    ".markdown": (_plain, False),
    ".jsonl": (_jsonl, False),
    ".ndjson": (_jsonl, False),
    ".json": (_json, True),
    ".csv": (_csv, True),
    ".tsv": (_csv, True),
}
