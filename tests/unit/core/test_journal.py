"""Which folders a run may enter, who holds them, and what starting over deletes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compress.core.errors import OutputError, StorageError
from compress.core.journal import JOURNAL, WORK, Journal
from compress.core.lock import hold

PRINT = {"--bits": 4}


def test_a_new_an_empty_and_a_half_born_folder_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "born" / WORK).mkdir(parents=True)
    (tmp_path / "born" / "compress" / ".journal.jsonl.compress-part").write_bytes(b'{"kind": "st')
    for name in ("new/deep", "empty", "born"):
        with Journal.open(tmp_path / name, PRINT) as journal:
            assert [line["kind"] for line in journal.lines] == ["start"]
        assert sorted(p.name for p in (tmp_path / name).rglob("*")) == ["compress", "journal.jsonl", "work"]


@pytest.mark.parametrize("name", ["thesis.txt", "compress/notes.md", ".git/HEAD", "compress/work/mine"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path, name: str, overwrite: bool) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="choose another --out"):
        Journal.open(tmp_path / "out", PRINT, overwrite)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("file", "file/below"):
        with pytest.raises(OutputError, match="choose another --out"):
            Journal.open(tmp_path / name, PRINT)


def test_a_damaged_first_line_asks_for_overwrite(tmp_path: Path) -> None:
    Journal.open(tmp_path, PRINT).close()
    (tmp_path / JOURNAL).write_bytes(b"\x00" * 80)
    with pytest.raises(OutputError, match="--overwrite"):
        Journal.open(tmp_path, PRINT)
    with Journal.open(tmp_path, PRINT, overwrite=True) as journal:
        assert [line["kind"] for line in journal.lines] == ["start"]


def test_overwrite_deletes_what_the_run_wrote_and_nothing_outside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Journal.open(out, PRINT) as journal:
        journal.append("writing", files=["tokenizer.json", "1_Pooling/config.json", "../precious", "/precious"])
    (out / "1_Pooling").mkdir()
    ours = ["tokenizer.json", "1_Pooling/config.json", "model-00001-of-00002.safetensors", "report.html"]
    ours += ["compress/codes.safetensors", "compress/work/block-00000.safetensors", "compress/plan.json"]
    for name in [*ours, "notes.md", "../precious"]:
        (out / name).write_text("x", encoding="utf-8")
    with Journal.open(out, {"--bits": 3}, overwrite=True) as journal:
        assert journal.lines == [{"kind": "start", "fingerprint": {"--bits": 3}}]
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["out/compress/journal.jsonl", "out/notes.md", "precious"]
    assert not (out / "1_Pooling").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "out", PRINT):
        with pytest.raises(OutputError, match="another run of compress"):
            Journal.open(tmp_path / "out", PRINT)
        Journal.open(tmp_path / "other", PRINT).close()
    Journal.open(tmp_path / "out", PRINT).close()


def test_a_refused_run_lets_go(tmp_path: Path) -> None:
    Journal.open(tmp_path, PRINT).close()
    with pytest.raises(OutputError, match="--bits: 4 -> 3"):
        Journal.open(tmp_path, {"--bits": 3})
    Journal.open(tmp_path, PRINT).close()


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom compress.core.journal import Journal\n"
        f"journal = Journal.open(Path({str(tmp_path)!r}), {PRINT!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert ended.returncode != 0
    Journal.open(tmp_path, PRINT).close()


def test_waiting_for_a_folder(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with hold(tmp_path, wait=True):
            order.append("second")

    with hold(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.05)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.open(tmp_path, PRINT) as journal:
        before = (tmp_path / JOURNAL).read_bytes()

        def refuse(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as full:
            full.setattr(os, "fsync", refuse)
            with pytest.raises(StorageError, match="No space left"):
                journal.append("block", block=0)
        assert (tmp_path / JOURNAL).read_bytes() == before
        assert journal.of("block") == []
        journal.append("block", block=0)
        assert journal.last("block") == {"kind": "block", "block": 0}


def test_overwrite_deletes_folders_of_work_but_follows_no_link(tmp_path: Path) -> None:
    """Training keeps its checkpoints in folders below compress/work."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    Journal.open(out, PRINT).close()
    (out / WORK / "training" / "checkpoint-3").mkdir(parents=True)
    (out / WORK / "training" / "checkpoint-3" / "trained.safetensors").write_bytes(b"x")
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine", encoding="utf-8")
    (out / WORK / "link").symlink_to(elsewhere)
    with Journal.open(out, {"--bits": 8}, overwrite=True) as journal:
        assert [line["kind"] for line in journal.lines] == ["start"]
    assert list((out / WORK).iterdir()) == []
    assert (elsewhere / "mine.txt").is_file()


def test_lines_before_a_void_one_that_names_their_kind_count_no_longer(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "out", PRINT) as journal:
        for kind in ("planned", "block", "block", "measured"):
            journal.append(kind)
        journal.append("void", kinds=["block", "measured"])
        assert (len(journal.of("block")), journal.last("measured")) == (0, None)
        journal.append("block", again=True)
    with Journal.open(tmp_path / "out", PRINT) as journal:
        assert journal.of("block") == [{"kind": "block", "again": True}]
        assert journal.last("planned") == {"kind": "planned"}
