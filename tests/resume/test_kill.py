"""kill -9 at every step that changes the output folder, the same command again: every file must come out the same."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.resume.conftest import Ask, contents

SHARDED = {"max_shard_size": "40KB"}


def survey(ask: Ask, cwd: Path, model: Path, **settings: Any) -> tuple[list[str], dict[str, str]]:
    """The points of an unbroken run, and what it leaves."""
    reply = ask(cwd, model=str(model), **settings)
    assert reply["error"] is None
    return reply["points"], contents(cwd / "out")


def kill_and_resume(ask: Ask, cwd: Path, model: Path, points: list[str], kill: int, **settings: Any) -> dict[str, str]:
    """Die at one point, run again; what is there then."""
    first = ask(cwd, kill=kill, model=str(model), **settings)
    assert first["signal"] == signal.SIGKILL, f"did not die {points[kill]}: {first['error']}"
    again = ask(cwd, model=str(model), **settings)
    assert again["error"] is None, f"killed {points[kill]}, then: {again['error']}"
    found = contents(cwd / "out")
    shutil.rmtree(cwd)
    return found


def test_every_point_of_a_decoder(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    points, expected = survey(ask, tmp_path / "whole", models["llama"])
    lines = [point for point in points if point.startswith("after line")]
    assert lines == [f"after line {kind}" for kind in ("outside", *["block"] * 3, "measured", "writing", "finished")]
    assert not any(name.startswith("compress/work") for name in expected)
    steps = [n for n, point in enumerate(points) if "line" in point]
    torn = [n for n in steps if points[n].startswith("middle")]
    files = [n for n in range(len(points)) if n not in steps]
    for kill in sorted({*steps, *files[::4], *files[-3:]} - set(torn[1::2])):
        found = kill_and_resume(ask, tmp_path / "killed", models["llama"], points, kill)
        assert found == expected, f"killed {points[kill]}"


@pytest.mark.parametrize("settings", [{"bits": 4}, {"bits": 8, "activations": "static"}], ids=["mixed", "static"])
def test_every_line_of_an_encoder(ask: Ask, models: dict[str, Path], tmp_path: Path, settings: dict[str, Any]) -> None:
    # the plan of a mixed model is finished by a line of the journal; grids of inputs are in the blocks' files
    points, expected = survey(ask, tmp_path / "whole", models["bert"], **settings)
    kills = [n for n, point in enumerate(points) if point.startswith("after line")]
    assert [points[n] for n in kills].count("after line damage") == (1 if settings["bits"] == 4 else 0)
    for kill in kills[:-1]:
        found = kill_and_resume(ask, tmp_path / "killed", models["bert"], points, kill, **settings)
        assert found == expected, f"killed {points[kill]}"


def test_tuned_blocks_are_tuned_again_to_the_same_bytes(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    settings = {"bits": 3, "effort": "best", "options": {"tune.epochs": 8}}
    points, expected = survey(ask, tmp_path / "whole", models["llama"], **settings)
    assert json.loads(expected["compress/record.json"])["blocks"][2]["tuned_error"] > 0
    kills = [n for n, point in enumerate(points) if point in ("before line block", "after line block")]
    assert len(kills) == 6
    for kill in kills[1:5]:
        found = kill_and_resume(ask, tmp_path / "killed", models["llama"], points, kill, **settings)
        assert found == expected, f"killed {points[kill]}"


def test_every_block_of_an_encoder_decoder(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    # the encoder's last state must outlive the encoder: every decoder block reads it
    points, expected = survey(ask, tmp_path / "whole", models["t5"])
    kills = [n for n, point in enumerate(points) if point.startswith("after line")]
    assert sum(points[n] == "after line block" for n in kills) == 5
    for kill in kills:
        found = kill_and_resume(ask, tmp_path / "killed", models["t5"], points, kill)
        assert found == expected, f"killed {points[kill]}"


def test_blocks_that_are_rotated_and_scaled(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    settings = {"reparam": "rotate,awq", "bits": 3}
    points, expected = survey(ask, tmp_path / "whole", models["llama"], **settings)
    kill = [n for n, point in enumerate(points) if point == "after line block"][1]
    found = kill_and_resume(ask, tmp_path / "killed", models["llama"], points, kill, **settings)
    assert found == expected


def test_in_the_middle_of_assembling_shards(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    # gpt2's weights cannot be packed: dense shards, and shards of codes beside them
    points, expected = survey(ask, tmp_path / "whole", models["gpt2"], **SHARDED)
    assert sum(name.startswith("model-") for name in expected) > 2
    assert sum(name.startswith("compress/codes-") for name in expected) > 1
    start = points.index("after line writing")
    kills = [n for n in range(start, len(points)) if "model" in points[n] or "codes" in points[n]]
    assert len(kills) > 8
    for kill in kills[::2]:
        found = kill_and_resume(ask, tmp_path / "killed", models["gpt2"], points, kill, **SHARDED)
        assert found == expected, f"killed {points[kill]}"


def test_killed_again_and_again(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    _, expected = survey(ask, tmp_path / "whole", models["llama"])
    cwd = tmp_path / "killed"
    deaths = 0
    while (reply := ask(cwd, kill=18, model=str(models["llama"])))["signal"]:
        deaths += 1
        assert deaths < 60
    assert reply["error"] is None
    assert deaths > 3
    assert contents(cwd / "out") == expected


def test_the_same_command_in_two_folders(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    _, one = survey(ask, tmp_path / "one", models["llama"])
    _, two = survey(ask, tmp_path / "two", models["llama"])
    assert one == two
    assert sum(name.endswith(".safetensors") for name in one) == 1


def test_a_finished_run_is_returned_and_nothing_is_written(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    survey(ask, tmp_path, models["llama"])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    reply = ask(tmp_path, model=str(models["llama"]))
    assert reply["error"] is None
    assert reply["points"] == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"bits": 3}, "--bits: 4 -> 3"), ({"seed": 1}, "--seed: 0 -> 1"), ({"threads": 2}, "threads: 1 -> 2")],
)
def test_another_setting_is_refused_by_name(
    ask: Ask, models: dict[str, Path], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    points, _ = survey(ask, tmp_path / "whole", models["llama"])
    cwd = tmp_path / "half"
    ask(cwd, kill=points.index("after line block"), model=str(models["llama"]))
    before = {path: path.read_bytes() for path in (cwd / "out").rglob("*") if path.is_file()}
    reply = ask(cwd, model=str(models["llama"]), **change)
    assert reply["error"].startswith("OutputError")
    assert named in reply["error"]
    assert "--overwrite" in reply["error"]
    assert {path: path.read_bytes() for path in (cwd / "out").rglob("*") if path.is_file()} == before


def test_another_model_is_refused_by_file(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    points, _ = survey(ask, tmp_path / "whole", models["llama"])
    model = shutil.copytree(models["llama"], tmp_path / "model")
    ask(tmp_path, kill=points.index("after line block"), model=str(model))
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-4] ^= 1  # the lowest mantissa bit of one weight
    (model / "model.safetensors").write_bytes(data)
    assert "model file model.safetensors" in ask(tmp_path, model=str(model))["error"]


def test_overwrite_starts_over_and_keeps_what_is_not_ours(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    llama, gpt2 = models["llama"], models["gpt2"]
    _, expected = survey(ask, tmp_path / "whole", llama)
    survey(ask, tmp_path / "other", gpt2, **SHARDED)
    (tmp_path / "other" / "out" / "notes.md").write_text("mine", encoding="utf-8")
    reply = ask(tmp_path / "other", overwrite=True, model=str(llama))
    assert reply["error"] is None
    kept = tmp_path / "other" / "out" / "notes.md"
    assert kept.read_text(encoding="utf-8") == "mine"
    kept.unlink()
    found = contents(tmp_path / "other" / "out")
    differ = {name for name in found | expected if found.get(name) != expected.get(name)}
    assert differ == {"compress/manifest.json"}  # it listed notes.md
    # and killed in the middle of deleting, it goes on deleting
    clearing = [n for n, point in enumerate(reply["points"]) if point.startswith("before unlink model-")]
    assert clearing
    survey(ask, tmp_path / "again", gpt2, **SHARDED)
    assert ask(tmp_path / "again", kill=clearing[1], overwrite=True, model=str(llama))["signal"] == signal.SIGKILL
    assert ask(tmp_path / "again", model=str(llama))["error"] is None
    assert contents(tmp_path / "again" / "out") == expected


def test_work_files_that_are_gone_are_named(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    points, _ = survey(ask, tmp_path / "whole", models["llama"])
    ask(tmp_path, kill=points.index("after line measured"), model=str(models["llama"]))
    (tmp_path / "out" / "compress" / "work" / "block-00001.safetensors").unlink()
    reply = ask(tmp_path, model=str(models["llama"]))
    assert "block-00001.safetensors" in reply["error"]
    assert "--overwrite" in reply["error"]


def test_the_journal_of_a_run_reads_well(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    survey(ask, tmp_path, models["llama"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "compress" / "journal.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds == ["start", "outside", "block", "block", "block", "measured", "writing", "finished"]
    assert [line["block"] for line in lines if line["kind"] == "block"] == [0, 1, 2]
