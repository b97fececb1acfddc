"""The suite of efforts: cells are not run twice, and bounds are held by figures at the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import efforts


def row(effort: str, kl: float, bits: int = 3, size: int = 1000, name: str = "Whisper tiny.en") -> dict[str, Any]:
    figures = {"kl": {"median": kl, "low": None, "high": None, "n": 1}}
    return {
        "subject": name,
        "bits": bits,
        "effort": effort,
        "bytes": size,
        "figures": figures,
        "processor_minutes": 2.5,
    }


def test_bounds_are_ratios_at_the_same_bytes() -> None:
    rows = [row(efforts.PLAIN, 1.0), row(efforts.BALANCED, 0.5), row(efforts.SAME, 0.43), row(efforts.BEST, 0.3)]
    lines = {line["what"].rpartition("loss of ")[2]: line for line in efforts.held(rows) if "loss of" in line["what"]}
    assert (lines["balanced / plain GPTQ"]["value"], lines["balanced / plain GPTQ"]["met"]) == (0.5, True)
    assert (lines["best, same text / balanced"]["value"], lines["best, same text / balanced"]["met"]) == (0.86, False)
    assert lines["best / balanced"]["bound"] == "<= 0.85"
    assert lines["best / balanced"]["met"]
    rows[-1] = row(efforts.BEST, 0.3, size=1100)
    assert not next(line for line in efforts.held(rows) if "loss of best / " in line["what"])["met"]
    four = [row(efforts.BALANCED, 0.5, 4), row(efforts.BEST, 0.51, 4)]
    assert [(line["bound"], line["met"]) for line in efforts.held(four)[:1]] == [("<= 1", False)]
    two = [row(efforts.BALANCED, 0.5, 2), row(efforts.BEST, 0.9, 2)]
    assert [(line["bound"], line["met"]) for line in efforts.held(two)[:1]] == [("stated", True)]


def test_classifiers_are_judged_by_the_direction_of_their_states() -> None:
    found = row(efforts.BEST, 0.5, name="BBC topics (MiniLM)")
    found["figures"]["hidden_cosine"] = {"median": 0.75, "low": 0.5, "high": 1.0, "n": 9}
    assert efforts.loss_of(found) == [0.25, 0.0, 0.5]
    assert efforts.loss_of(row(efforts.BEST, 0.5)) == [0.5, None, None]


def test_a_cell_that_was_measured_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efforts, "PLACE", tmp_path)
    kept = row(efforts.BEST, 0.1)
    (tmp_path / "2-3-4.json").write_text(json.dumps(kept))
    assert efforts.measure("Whisper tiny.en", 3, efforts.BEST) == kept


def test_cells_differ_in_the_effort_alone() -> None:
    words = [efforts.command("Whisper tiny.en", 3, effort, Path("out")) for effort in efforts.EFFORTS]
    shared = words[list(efforts.EFFORTS).index(efforts.BALANCED)]
    assert all(each[: len(shared)] == shared for each in words)
    assert len(efforts.CELLS) == len(set(efforts.CELLS)) == 45
    assert [bits for _, bits, _ in efforts.CELLS[:15]] == [3] * 15


def test_cells_are_chosen_by_what_they_are_called() -> None:
    assert efforts.chosen(["3", "Whisper tiny.en", "best", "fast"]) == [
        ("Whisper tiny.en", 3, "fast"),
        ("Whisper tiny.en", 3, "best"),
    ]
    assert len(efforts.chosen(["4"])) == 15
    assert efforts.chosen(["none"]) == []
    with pytest.raises(SystemExit, match="no cell is called '5'"):
        efforts.chosen(["5"])
