"""The names of `import compress`: the same stages as the commands, called from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import compress
from compress.core.errors import DataError, UsageError
from tests.integration.test_tune import figure, write_topics
from tests.rebuild import write_text
from tests.tiny import save_tiny


def test_tune_then_quantize(tmp_path: Path) -> None:
    bert, data = save_tiny("bert", tmp_path / "bert"), write_topics(tmp_path / "t.csv", 60)
    seen: list[str] = []
    out = str(tmp_path / "out")
    record = compress.tune(str(bert), str(data), out, method="lora", progress=lambda stage, *_: seen.append(stage))
    assert record.command == "tune"
    assert list(dict.fromkeys(seen)) == ["tokenizing", "training", "testing"]
    again = compress.tune(compress.TuneRecipe.build(model=str(bert), data=str(data), out=out, method="lora"))
    assert again.measurements == record.measurements
    recipe = compress.Recipe.build(model=out, out=str(tmp_path / "small"), bits=8, samples=4, seq_len=64, threads=1)
    small = compress.quantize(recipe)
    assert figure(small, "accuracy", "original") == figure(record, "accuracy", out)


def test_what_layers_cost(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    model, out = str(save_tiny("llama", tmp_path / "llama")), str(tmp_path / "out")
    seen: list[str] = []
    record = compress.sensitivity(
        model, out, str(tmp_path / "text.txt"), ["int4-g32-sym"], progress=lambda stage, *_: seen.append(stage)
    )
    assert list(dict.fromkeys(seen)) == ["solving", "judging"]
    recipe = compress.SensitivityRecipe.build(
        model=model, out=out, data=str(tmp_path / "text.txt"), schemes=["int4-g32-sym"]
    )
    assert compress.sensitivity(recipe).sensitivity["layers"] == record.sensitivity["layers"]


def test_refusals_are_errors_of_ours(tmp_path: Path) -> None:
    bert = save_tiny("bert", tmp_path / "bert")
    with pytest.raises(DataError, match="--data is empty"):
        compress.tune(str(bert), out=str(tmp_path / "out"))
    with pytest.raises(UsageError, match="no tuning method is called 'lorra'"):
        compress.tune(str(bert), "x.csv", str(tmp_path / "out"), method="lorra")
    with pytest.raises(AttributeError, match="no attribute 'tun'; it has Recipe, SensitivityRecipe, TuneRecipe, bench"):
        compress.tun  # noqa: B018
