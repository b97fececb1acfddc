"""Append-only progress of one run in one output folder; what makes `kill -9` and a rerun end in the same bytes.

A line is written only after the files that it speaks of are on disk (fsync, rename). A torn last line, the trace of
a kill in the middle of a write, is dropped. Another run's journal is refused by the name of the setting that differs.
Kinds of lines, in this order: `start` (the fingerprint), `scaled` for each block, `outside`, `damage` (of mixed
plans), `timed` (what operators take), `banked` and `scored` or `swapped` (a profile, block by block), `judged` (plans
on text), `stable` and `planned` (within a budget), `block` for each block, `measured`, `void` (a plan that lost too
much, whose lines count no longer), `settled` (what a training run has tried out), `writing` (the files about to be
written beside `compress/`), `answered` for each model that wrote answers, `finished`. Starting over (`--overwrite`)
replaces the journal by one `cleared` line that names what is to be deleted, so a kill in the middle of deleting is
finished too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from compress.core.errors import OutputError
from compress.core.files import PART, atomic_write, storage_errors, sweep
from compress.core.fingerprint import Fingerprint, differences
from compress.core.lock import hold

JOURNAL = Path("compress") / "journal.jsonl"
WORK = Path("compress") / "work"
_MANIFEST = Path("compress") / "manifest.json"
_OWN = ("report.html", "report.txt", "compress/record.json", "compress/plan.json", "compress/profile.json")
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "compress/codes*.safetensors*", "compress/work/*")


class Journal:
    """The journal of one output folder. `lines` holds what earlier runs of the same command have finished.

    A context manager: the folder is locked until it is closed.
    """

    def __init__(self, out: Path, lines: list[dict[str, Any]]) -> None:
        self.out = out
        self.lines = lines
        self._held = ExitStack()

    @classmethod
    def open(cls, out: Path, fingerprint: Fingerprint, overwrite: bool = False) -> Journal:
        """Begin, or resume, the run `fingerprint` in `out`, and hold the folder.

        Raises OutputError when the folder holds anything else, a run with other settings, or is in use.
        """
        claim(out)
        journal = cls(out, [])
        journal._held.enter_context(hold(out / JOURNAL.parent))
        try:
            journal._begin(json.loads(json.dumps(fingerprint)), overwrite)
        except BaseException:
            journal.close()
            raise
        return journal

    def _begin(self, fingerprint: Fingerprint, overwrite: bool) -> None:
        path = self.out / JOURNAL
        sweep(self.out)
        there = path.is_file()
        self.lines = _read(path)
        if there and not self.lines and not overwrite:
            raise OutputError(f"{path} is damaged; choose another --out, or pass --overwrite to start over")
        if there and overwrite and self._kind(0) != "cleared":
            self._replace([{"kind": "cleared", "files": _files_of(self.out, self.lines)}])
        if self._kind(0) == "cleared":
            _clear(self.out, self.lines[0]["files"])
            self.lines = []
        if self.lines:
            if changed := differences(self.lines[0].get("fingerprint", {}), fingerprint):
                raise OutputError(
                    f"{self.out} was begun with other settings ({'; '.join(changed[:3])}); "
                    "choose another --out, or pass --overwrite to start over"
                )
            _truncate_torn_line(path, self.lines)
            return
        with storage_errors(self.out / WORK):
            (self.out / WORK).mkdir(parents=True, exist_ok=True)
        self._replace([{"kind": "start", "fingerprint": fingerprint}])

    def _kind(self, number: int) -> str | None:
        return str(self.lines[number]["kind"]) if len(self.lines) > number else None

    def _replace(self, lines: list[dict[str, Any]]) -> None:
        atomic_write(self.out / JOURNAL, [_encode(line) for line in lines])
        self.lines = lines

    def append(self, kind: str, **fields: Any) -> None:
        """Write one line and make it durable. Raises StorageError when the disk refuses."""
        line = {"kind": kind, **fields}
        path = self.out / JOURNAL
        with storage_errors(path), path.open("ab", buffering=0) as file:
            before = file.tell()
            data = _encode(line)
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)  # half a line would be glued to the next one
                raise
        self.lines.append(line)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind that count, oldest first: those after the last `void` line that names the kind."""
        ends = [n for n, line in enumerate(self.lines) if line["kind"] == "void" and kind in line["kinds"]]
        return [line for line in self.lines[ends[-1] if ends else 0 :] if line["kind"] == kind]

    def last(self, kind: str) -> dict[str, Any] | None:
        """The newest line of one kind that counts."""
        found = self.of(kind)
        return found[-1] if found else None

    def abandon(self) -> None:
        """Delete what this run has written, and the folder where nothing else is in it: it cannot be done as asked, and
        another may begin in its place."""
        self._replace([{"kind": "cleared", "files": _files_of(self.out, self.lines)}])
        _clear(self.out, self.lines[0]["files"])
        (self.out / JOURNAL).unlink()
        for folder in (self.out / WORK, self.out / JOURNAL.parent, self.out):
            with suppress(OSError):
                folder.rmdir()

    def close(self) -> None:
        """Let go of the folder. May be called again."""
        self._held.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def claim(out: Path) -> None:
    """Make sure that `out` is new, empty or ours. Raises OutputError otherwise; nothing foreign is ever touched."""
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out} is a file; choose another --out")
        if out.is_dir() and not (out / JOURNAL).is_file() and not _unborn(out):
            raise OutputError(f"{out} holds files that are not of a run of compress; choose another --out")
        (out / JOURNAL.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be created: {error.strerror}; choose another --out") from None


def _unborn(out: Path) -> bool:
    """Empty, or left by a kill before the first line: our folders with nothing in them."""
    ours = {JOURNAL.parent, WORK, JOURNAL.with_name(f".{JOURNAL.name}{PART}"), JOURNAL.with_name(".lock")}
    return all(path.relative_to(out) in ours for path in out.rglob("*"))


def _files_of(out: Path, lines: Iterable[dict[str, Any]]) -> list[str]:
    """What a run has written into `out`, by its manifest and journal, as far as it got."""
    named = {str(name) for line in lines if line["kind"] == "writing" for name in line.get("files", [])}
    with suppress(OSError, ValueError, KeyError, TypeError):  # not written yet
        named |= set(json.loads((out / _MANIFEST).read_text(encoding="utf-8"))["files"])
    return sorted(named)


def _clear(out: Path, files: Iterable[str]) -> None:
    """Delete the files of a run, and folders that are empty then; whatever else lies in `out` stays."""
    inside = [name for name in files if not Path(name).is_absolute() and ".." not in Path(name).parts]
    found = {out / name for name in (*inside, *_OWN, str(_MANIFEST))}
    found |= {path for pattern in _WEIGHTS for path in out.glob(pattern)}
    with storage_errors(out):
        for path in sorted(found):
            ours = path.parent == out / WORK and path.is_dir() and not path.is_symlink()
            if ours:  # checkpoints of training, a model not yet moved out
                shutil.rmtree(path)
            elif path != out / JOURNAL:
                path.unlink(missing_ok=True)
        for folder in sorted({out / Path(name).parent for name in inside} - {out, out / JOURNAL.parent}):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _encode(line: dict[str, Any]) -> bytes:
    # keys in the order given: what is read back must print like what was written
    return json.dumps(line).encode() + b"\n"


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
    raw = path.read_bytes()
    whole = b"".join(line + b"\n" for line in raw.split(b"\n")[: len(lines)])
    if raw != whole:
        atomic_write(path, [whole])
