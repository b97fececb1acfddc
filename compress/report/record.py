"""RunRecord as JSON and back: the `--json` contract and OUT/compress/record.json.

JSON has no NaN: a figure that is not a finite number is written as null and read back as NaN where a number
is required. Values of the free-form dictionaries come back as plain JSON (tuples as lists, paths as strings).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compress.core.errors import DataError, InputError, StorageError
from compress.core.types import BlockResult, LayerResult, Measurement, RunRecord

RECORD_VERSION = 1
_SURROGATE = re.compile("[\ud800-\udfff]")
_ADAPTER = TypeAdapter(RunRecord)
# Where null stands for "not a number": required float fields of the lists.
_FLOATS = {
    key: tuple(f.name for f in dataclasses.fields(kind) if f.type == "float")
    for key, kind in (("layers", LayerResult), ("blocks", BlockResult), ("measurements", Measurement))
}
_CONTRACT = ("command", "model", "artifact", "plan", "measurements", "verified", "environment")


def to_json(record: RunRecord) -> dict[str, Any]:
    """The record as plain JSON data, the keys of the `--json` contract first; NaN and infinities are null."""
    fields = {f.name: plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    ordered = {key: fields.pop(key) for key in _CONTRACT}
    return {**ordered, **fields, "record_version": RECORD_VERSION}


def from_json(data: dict[str, Any]) -> RunRecord:
    """The inverse of `to_json`; keys it does not know are ignored, missing ones take their defaults.

    Raises DataError when a field has the wrong type, or when a newer version wrote the record.
    """
    if not isinstance(data, dict):
        raise DataError(
            f"a record must be a JSON object, this is a {type(data).__name__}; give the record.json of a run"
        )
    version = data.get("record_version", RECORD_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= RECORD_VERSION:
        raise DataError(
            f"record version {version!r} is not known here (newest: {RECORD_VERSION}); "
            "open it with the version of compress that wrote it"
        )
    stages = data.get("stages")
    if isinstance(stages, dict):
        data = {
            **data,
            "stages": {key: math.nan if value is None else value for key, value in stages.items()},
        }
    prepared = {**data, **{key: _numbers(data[key], names) for key, names in _FLOATS.items() if key in data}}
    try:
        return _ADAPTER.validate_python(prepared)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        given = repr(first["input"])[:80]
        what = "is missing" if first["type"] == "missing" else f"holds {given}: {first['msg'].lower()}"
        raise DataError(
            f"{where} {what}; this is not a run's record.json, or it was edited: run the command again"
        ) from None


def dumps(record: RunRecord) -> str:
    """The record as JSON text, indented, ending in a newline."""
    return json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(record: RunRecord, path: str | Path) -> None:
    """Writes the record by temporary file, fsync and rename. Raises StorageError when the disk refuses."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(dumps(record))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{target} cannot be written: {error.strerror or error}; free space or fix permissions"
        ) from None


def read(path: str | Path) -> RunRecord:
    """The record at `path`. Raises InputError when there is none, DataError when it holds no record."""
    target = Path(path)
    try:
        text = target.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{target} does not exist; give the output folder of a run, or its compress/record.json"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{target} is not UTF-8 text (byte {error.start}); give the record.json of a run") from None
    except OSError as error:
        raise InputError(f"{target} cannot be read: {error.strerror or error}; give the record.json of a run") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        said = (
            f"line {error.lineno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else "nested or written oddly"
        )
        raise DataError(f"{target} is not JSON ({said}); the file was cut or edited, run the command again") from None
    try:
        return from_json(data)
    except DataError as error:
        raise DataError(f"{target}: {error}") from None


def plain(value: Any) -> Any:
    """`value` as JSON data: dataclasses and mappings to dicts, sequences to lists, array scalars to numbers.

    Floats that JSON cannot hold become None; lone surrogates become U+FFFD; anything else becomes its text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    item = getattr(value, "item", None)  # numpy and torch scalars
    if callable(item) and getattr(value, "size", None) is not None and getattr(value, "ndim", 1) == 0:
        return plain(item())
    return plain(str(value))


def _numbers(rows: Any, names: tuple[str, ...]) -> Any:
    """`rows` with null replaced by NaN in the fields `names`; anything else is left for validation."""
    if not isinstance(rows, list | tuple):
        return rows
    return [
        {**row, **{name: math.nan for name in names if name in row and row[name] is None}}
        if isinstance(row, dict)
        else row
        for row in rows
    ]
