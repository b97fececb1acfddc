"""kill -9 while tuning, the same command again: the same model, byte for byte, and the same scores."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from tests.integration.test_tune import write_topics
from tests.resume.conftest import Ask, contents


def settings_of(model: Path, data: Path) -> dict[str, Any]:
    return {"verb": "tune", "model": str(model), "data": str(data), "epochs": 3, "batch_size": 8, "threads": 1,
            "learning_rate": 1e-3, "patience": 0}  # fmt: skip


def test_kills_while_training(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_topics(tmp_path / "topics.csv", 60)
    settings = settings_of(models["bert"], data)
    whole = ask(tmp_path / "whole", **settings)
    assert whole["error"] is None
    expected = contents(tmp_path / "whole" / "out")
    assert {"model.safetensors", "config.json", "compress/task.json", "compress/record.json"} <= expected.keys()
    points: list[str] = whole["points"]
    steps = [n for n, point in enumerate(points) if point.startswith("step")]
    assert len(steps) == 3 * 6  # 42 training rows in batches of 8, three times
    rest = [n for n in range(len(points)) if n not in steps]
    for kill in sorted({steps[1], steps[7], steps[-1], *rest[:: max(1, len(rest) // 10)], rest[-1]}):
        cwd = tmp_path / "killed"
        first = ask(cwd, kill=kill, **settings)
        assert first["signal"] == signal.SIGKILL, f"did not die {points[kill]}: {first['error']}"
        again = ask(cwd, **settings)
        assert again["error"] is None, f"killed {points[kill]}, then: {again['error']}"
        assert contents(cwd / "out") == expected, f"killed {points[kill]}"
        shutil.rmtree(cwd)


def test_a_checkpoint_cut_short_is_not_used(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_topics(tmp_path / "topics.csv", 60)
    settings = settings_of(models["bert"], data)
    assert ask(tmp_path / "whole", **settings)["error"] is None
    points = ask(tmp_path / "count", **settings)["points"]
    steps = [n for n, point in enumerate(points) if point.startswith("step")]
    cwd = tmp_path / "killed"
    assert ask(cwd, kill=steps[13], **settings)["signal"] == signal.SIGKILL  # in the third epoch
    newest = max((cwd / "out" / "compress" / "work" / "training").glob("checkpoint-*"), key=lambda p: p.name)
    state = newest / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:50])
    assert ask(cwd, **settings)["error"] is None
    assert contents(cwd / "out") == contents(tmp_path / "whole" / "out")
