"""Atomic writes: the old file or the new one, a sentence when the disk refuses, nothing left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.core.errors import StorageError
from compress.core.files import PART, atomic_write, read_pieces, sweep, write_json


def test_chunks_become_one_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    atomic_write(path, [b"one", memoryview(b"two"), b""])
    assert path.read_bytes() == b"onetwo"
    atomic_write(path, [])
    assert path.read_bytes() == b""
    assert [p.name for p in path.parent.iterdir()] == ["b.bin"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "free some space"),
        (errno.EROFS, "make the folder writable"),
        (errno.EIO, "mend that"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
def test_a_refusal_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as full:
        full.setattr(os, call, refuse)
        with pytest.raises(StorageError) as refused:
            atomic_write(path, [b"new"])
    assert str(path) in str(refused.value)
    assert os.strerror(number) in str(refused.value)
    assert remedy in str(refused.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interruption_and_a_producer_that_fails_pass_through(tmp_path: Path) -> None:
    def chunks(error: BaseException) -> Iterator[bytes]:
        yield b"half"
        raise error

    for error in (KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "gone"), ValueError("wrong")):
        with pytest.raises(type(error)):
            atomic_write(tmp_path / "file", chunks(error))
        assert list(tmp_path.iterdir()) == []


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:3]))
    atomic_write(tmp_path / "file", [b"0123456789"])
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_sweep_deletes_parts_only(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (f".a{PART}", f"deep/.b{PART}", ".hidden", "a.tmp", f"mine{PART}"):
        (tmp_path / name).write_bytes(b"x")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".hidden", "a.tmp", f"mine{PART}"]


def test_json_is_readable_and_pieces_are_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": "ü", "a": [1]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": "ü",\n  "a": [\n    1\n  ]\n}\n'
    assert list(read_pieces(tmp_path / "x.json", 7)) == [text.encode()[i : i + 7] for i in range(0, len(text) + 1, 7)]
