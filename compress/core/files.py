"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compress.core.errors import StorageError

PART = ".compress-part"
"""Ending of the hidden temporary file that a write goes through; what a kill leaves of it is swept up."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write chunks to `path` through a temporary file: after a crash the old or the new file is there, never half.

    Raises StorageError with the remedy when the disk is full or refuses; what making a chunk raises passes through.
    """
    temporary = path.with_name(f".{path.name}{PART}")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            for chunk in chunks:
                with storage_errors(path):
                    _write_all(handle, memoryview(chunk))
            with storage_errors(path):
                os.fsync(handle)
        finally:
            os.close(handle)
        with storage_errors(path):
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def _write_all(handle: int, view: memoryview) -> None:
    while view:
        view = view[os.write(handle, view[: 1 << 26]) :]


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder itself is gone or read-only: the first error is the one to tell
        path.unlink(missing_ok=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Inside, an OSError becomes a StorageError that names `path`, the cause and what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            remedy = "free some space and run the same command again"
        elif error.errno in _DENIED:
            remedy = "make the folder writable, or write somewhere else"
        else:
            remedy = "mend that and run the same command again"
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; {remedy}") from None


def sweep(folder: Path) -> None:
    """Delete the temporary files that killed writes left anywhere in `folder`."""
    for path in folder.rglob(f".*{PART}"):
        _remove(path)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Some file systems cannot; then there is nothing to do."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically, keys in the order given."""
    atomic_write(path, [json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"])


def read_pieces(path: Path, size: int = 1 << 22) -> Iterator[bytes]:
    """The bytes of a file, `size` at a time."""
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece
