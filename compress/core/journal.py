"""Append-only progress of one run in one output folder; what makes `kill -9` and a rerun end in the same bytes.

A line is written only after the files that it speaks of are on disk (fsync, rename). A torn last line, the trace of
a kill in the middle of a write, is dropped. Another run's journal is refused by the name of the setting that differs.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from compress.core.errors import OutputError, StorageError
from compress.core.fingerprint import Fingerprint, differences

JOURNAL = Path("compress") / "journal.jsonl"
WORK = Path("compress") / "work"


class Journal:
    """The journal of one output folder. `lines` holds what earlier runs of the same command have finished."""

    def __init__(self, out: Path, lines: list[dict[str, Any]]) -> None:
        self.out = out
        self.lines = lines

    @classmethod
    def open(cls, out: Path, fingerprint: Fingerprint, overwrite: bool = False) -> Journal:
        """Begin, or resume, the run `fingerprint` in `out`.

        Raises OutputError when the folder holds anything else, or a run with other settings.
        """
        claim(out, overwrite)
        path = out / JOURNAL
        lines = _read(path)
        if lines:
            changed = differences(lines[0].get("fingerprint", {}), fingerprint)
            if changed:
                raise OutputError(
                    f"{out} was begun with other settings ({'; '.join(changed[:3])}); "
                    "choose another --out, or pass --overwrite to start over"
                )
            _truncate_torn_line(path, lines)
            return cls(out, lines)
        journal = cls(out, [])
        (out / WORK).mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        journal.append("start", fingerprint=fingerprint)
        return journal

    def append(self, kind: str, **fields: Any) -> None:
        """Write one line and make it durable. Raises StorageError when the disk refuses."""
        line = {"kind": kind, **fields}
        try:
            with (self.out / JOURNAL).open("ab") as file:
                file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"{self.out / JOURNAL} cannot be written: {error.strerror}; free some space and run the same command "
                "again, it resumes"
            ) from None
        self.lines.append(line)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind, oldest first."""
        return [line for line in self.lines if line["kind"] == kind]

    def last(self, kind: str) -> dict[str, Any] | None:
        """The newest line of one kind."""
        return next((line for line in reversed(self.lines) if line["kind"] == kind), None)


def claim(out: Path, overwrite: bool = False) -> None:
    """Make sure that `out` is new, empty or ours. Raises OutputError otherwise; nothing foreign is ever deleted."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; choose another --out")
    ours = (out / JOURNAL).is_file()
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise OutputError(f"{out} holds files that are not of a run of compress; choose another --out")
    if ours and overwrite:
        shutil.rmtree(out)
    try:
        (out / WORK.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be created: {error.strerror}; choose another --out") from None


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for raw in path.read_bytes().split(b"\n")[:-1]:
        try:
            line = json.loads(raw)
        except ValueError:
            break
        if not isinstance(line, dict) or "kind" not in line:
            break
        lines.append(line)
    return lines


def _truncate_torn_line(path: Path, lines: list[dict[str, Any]]) -> None:
    whole = b"".join(raw + b"\n" for raw in path.read_bytes().split(b"\n")[: len(lines)])
    if path.stat().st_size != len(whole):
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(whole)
        temporary.replace(path)
