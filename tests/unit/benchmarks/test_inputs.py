"""Inputs: whole or not there, not made twice, found by file name."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.inputs import __main__ as program
from benchmarks.inputs import _making


def test_an_input_that_broke_off_is_not_there_and_is_made_anew(tmp_path: Path) -> None:
    def breaks(folder: Path) -> None:
        (folder / "half.csv").write_text("id,te", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _making.once(tmp_path / "rows", breaks)
    assert not (tmp_path / "rows").exists()
    made = _making.once(tmp_path / "rows", lambda folder: (folder / "whole.csv").touch())
    assert [path.name for path in made.iterdir()] == ["whole.csv"]
    assert _making.once(made, breaks) == made, "what is there is not made again"
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_a_model_is_tuned_once_for_each_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    code = 0

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        Path(words[words.index("--out") + 1]).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(words, code, "{}", "compress: the loss is nan at step 3\n")

    monkeypatch.setattr(_making.subprocess, "run", run)
    out, model, data = tmp_path / "tuned", tmp_path / "bert", tmp_path / "rows.csv"
    for options in (("--epochs", "2"), ("--epochs", "2"), ("--epochs", "3")):
        assert _making.tuned(out, model, data, options) == out
    assert [words[words.index("--epochs") + 1] for words in calls] == ["2", "3"]
    code = 3
    with pytest.raises(SystemExit, match="the loss is nan at step 3"):
        _making.tuned(tmp_path / "other", model, data, ())
    code = 0
    _making.tuned(tmp_path / "other", model, data, ())
    assert len(calls) == 4, "a run that failed is no model that is there"


def test_every_module_is_an_input_and_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(program.__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py") if not path.name.startswith("_")}
    assert set(program.names()) == files
    assert program.main(["no-such"]) == 2
    assert "no input is called 'no-such'; there is bbc, " in capsys.readouterr().out


def test_an_input_that_cannot_be_made_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(folder: Path) -> Path:
        raise SystemExit("espeak-ng is not installed")

    monkeypatch.setattr(program, "INPUTS", tmp_path)
    monkeypatch.setattr("benchmarks.inputs.bbc.make", make)
    monkeypatch.setattr("benchmarks.inputs.tweets.make", lambda folder: folder / "tweets")
    assert program.main(["bbc", "tweets"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("espeak-ng is not installed")
    assert second.endswith(str(tmp_path / "tweets"))
    assert program.main(["tweets"]) == 0
