"""`inspect --data` and `--like` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Run

SMALL = ("--samples", "6", "--seq-len", "32")


@pytest.fixture
def texts() -> tuple[Path, Path]:
    """Two files in the working directory, of different words."""
    for name, words in (("mine.jsonl", "river market window"), ("prod.jsonl", "engine garden minute school")):
        lines = [json.dumps({"text": f"{words} {n} " * 6}) for n in range(30)]
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Path("mine.jsonl"), Path("prod.jsonl")


def test_only_the_text_is_looked_at(run: Run, llama: Path, texts: tuple[Path, Path]) -> None:
    ended = run("inspect", llama, "--data", texts[0], "--like", texts[1], *SMALL)
    assert ended.code == 0, ended.err
    for said in ("Is the calibration text fit?", "Its tokens covered", "Distance to it", "Next: compress quantize"):
        assert said in ended.out
    assert "parameters" in ended.out
    assert "shapes (out x in)" not in ended.out
    line = ended.out.partition("Next: compress quantize ")[2].splitlines()[0]
    assert "--data mine.jsonl --like prod.jsonl --samples 6 --seq-len 32 --out llama-4bit" in line
    assert sorted(path.name for path in Path().iterdir()) == ["mine.jsonl", "prod.jsonl"]  # nothing is written


def test_json_has_every_figure(run: Run, llama: Path, texts: tuple[Path, Path]) -> None:
    ended = run("inspect", llama, "--like", texts[1], *SMALL, "--json")
    assert (ended.code, ended.err) == (0, "")
    record = json.loads(ended.out)
    assert record["command"] == "inspect"
    found = record["data"]["fit"]["text"]
    assert found["sequences"] == 6
    assert 0 < found["distance"]["excess"] <= found["distance"]["between"] < 1
    assert record["data"]["like"]["source"] == "prod.jsonl"
    assert record["data"]["kind"] == "built-in"


def test_what_does_not_go_together(run: Run, llama: Path, texts: tuple[Path, Path]) -> None:
    ended = run("inspect", llama, "--like", texts[1], "--data", texts[1])
    assert ended.code == 3
    assert "--like prod.jsonl is the calibration data itself" in ended.sentence
    ended = run("inspect", llama, "--samples", "3")
    assert ended.code == 2
    assert ended.sentence == "compress: --samples is about calibration text; give a model, and --data or --like"
    Path("plan.json").write_text("{}", encoding="utf-8")
    assert run("inspect", "plan.json", "--data", texts[0]).code == 2
    ended = run("inspect", llama, "--data", texts[0], "--like", "prod.json")
    assert ended.code == 3
    assert "did you mean prod.jsonl" in ended.sentence
    ended = run("sensitivity", llama, "--data", texts[0], "--like", texts[0], "--out", "out", "-q")
    assert ended.code == 3
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", ["quantize", "sensitivity", "inspect"])
def test_help_names_it(run: Run, verb: str) -> None:
    assert "--like DATA" in " ".join(run(verb, "--help").out.split())
