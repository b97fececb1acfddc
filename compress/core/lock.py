"""One process at a time in one folder: a lock of the operating system, which is gone when the process is."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.core.errors import OutputError

_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


@contextmanager
def hold(folder: Path, wait: bool = False) -> Iterator[None]:
    """Inside, no other process (and no other thread that asks) holds `folder`, which must exist.

    wait: queue up for it. Without, raises OutputError when it is taken. A kill frees it at once, so no stale lock
    file is ever left behind. A file system that cannot lock (some network ones) is used unlocked.
    """
    handle = _open(folder)
    try:
        _lock(handle, wait)
    except OSError as error:
        if error.errno in _TAKEN:
            os.close(handle)
            raise OutputError(
                f"another run of compress is working in {folder}; wait until it ends, or choose another --out"
            ) from None
    try:
        yield
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _open(folder: Path) -> int:
        return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)

    def _lock(handle: int, wait: bool) -> None:
        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _open(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY)

    def _lock(handle: int, wait: bool) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
