"""The suite of task models: what it runs, and when it says that a bound is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import tasks


def figure(value: float) -> dict[str, Any]:
    return {"median": value, "low": value - 0.01, "high": value + 0.01, "n": 400}


def row(setting: str, change: float, before: float = 0.97) -> dict[str, Any]:
    figures = {"original_accuracy": figure(before), "accuracy": figure(before + change)}
    figures |= {"accuracy_change": figure(change)}
    size = {"original": 90_000_000, "compressed": 30_000_000}
    return {"subject": "topics", "setting": setting, "bytes": size, "figures": figures}


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> tasks.Subject:
    lost = {"eight": {"accuracy": 0.005}, "four": {"accuracy": 0.015}}
    subject = tasks.Subject("m", "d", ("accuracy",), ("--task", "t"), least={"accuracy": 0.96}, lost=lost)
    monkeypatch.setattr(tasks, "SUBJECTS", {"topics": subject})
    monkeypatch.setattr(tasks, "SETTINGS", {"eight": ("--bits", "8"), "four": ("--bits", "4")})
    return subject


@pytest.mark.parametrize(("eight", "four", "met"), [
    (-0.005, -0.0149, [True, True, True]), (-0.0051, 0.02, [True, False, True]), (0.1, -0.0151, [True, True, False])
])  # fmt: skip
def test_a_bound_is_held_by_the_change_and_a_gain_is_no_loss(
    topics: tasks.Subject, eight: float, four: float, met: list[bool]
) -> None:
    lines = tasks.held([row("eight", eight), row("four", four)])
    assert [found["met"] for found in lines] == met
    assert [found["bound"] for found in lines] == [">= 0.96", "0.005 worse", "0.015 worse"]
    assert ("MISSED" in tasks.shown(topics, row("eight", eight))) is not met[1]


def test_fewer_errors_are_better() -> None:
    assert tasks.worse("wer", 0.02) == 0.02
    assert tasks.worse("accuracy", 0.02) == -0.02


def test_a_weak_original_and_a_refused_run_are_missed(topics: tasks.Subject) -> None:
    refused = {"subject": "topics", "setting": "four", "refused": "compress: no such option"}
    lines = tasks.held([row("eight", 0.0, before=0.9599), refused])
    assert [(found["value"], found["met"]) for found in lines] == [
        ("0.9599", False), ("+0.0000 [-0.0100, +0.0100]", True), ("refused", False)
    ]  # fmt: skip
    assert not tasks.held([refused])[0]["met"], "an original that was never seen has not reached its bound"
    assert tasks.shown(topics, refused).endswith("compress: no such option")


def test_the_command_is_the_subject_with_the_options_of_the_setting(topics: tasks.Subject) -> None:
    words = tasks.command(topics, "four", Path("out"))
    assert words[3:5] == ["quantize", str(tasks.INPUTS / "m")]
    assert words[words.index("--task") + 1] == "t"
    assert words[words.index("--bits") + 1] == "4"
    assert "--json" in words


def test_every_bound_is_of_a_setting_and_a_metric_that_there_is() -> None:
    for subject in tasks.SUBJECTS.values():
        assert set(subject.lost) <= set(tasks.SETTINGS)
        assert {metric for lost in subject.lost.values() for metric in lost} <= set(subject.metrics)
