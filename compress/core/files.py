"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compress.core.errors import StorageError


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write chunks to `path` through a temporary file: after a crash the old or the new file is there, never half.

    Raises StorageError with the remedy when the disk is full or refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb", buffering=0) as file:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view[: 1 << 26]) :]
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written: {error.strerror}; free some space and run the same command again, it resumes"
        ) from None


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
