"""`compress sensitivity` on tiny models: expected from one pass backward against measured, resumed, refused, shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from compress.core.errors import ModelError, OutputError, RecipeError
from compress.core.types import RunRecord
from compress.pipeline import profiling
from compress.pipeline.sensitivity import sensitivity
from compress.plan import profile
from compress.recipe import SensitivityRecipe
from compress.report import html, terminal
from tests.killed import killed_after
from tests.rebuild import write_text
from tests.tiny import save_tiny

Key = tuple[str, str]


def source(name: str, folder: Path) -> Path:
    """A tiny model with a text beside it."""
    write_text(folder / "text.txt")
    return save_tiny(name, folder / name)


def profiled(model: Path, out: Path, **settings: Any) -> RunRecord:
    """The record of a run on the text beside the model."""
    data = str(model.parent / "text.txt")
    small = {"samples": 48, "seq_len": 32, "threads": 1}
    return sensitivity(
        SensitivityRecipe.build(**{"model": str(model), "out": str(out), "data": data, **small, **settings})
    )


def values(record: RunRecord) -> dict[Key, float]:
    """(layer, scheme) -> cost."""
    return {(row["layer"], row["scheme"]): row["value"] for row in record.sensitivity["layers"]}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("llama", "nats per token"),
        ("gpt2", "nats per token"),
        ("bert", "nats per token"),
        ("bert-classifier", "nats per answer"),
        ("bart", "nats per token"),
        ("mpnet", "1 - cosine per token"),
    ],
)
def test_what_is_expected_is_what_is_measured(tmp_path: Path, name: str, unit: str) -> None:
    model = source(name, tmp_path)
    schemes = ["int4-g16-sym", "int3-g16-sym"]
    expected, measured = (
        profiled(model, tmp_path / metric, metric=metric, schemes=schemes) for metric in ("gradient", "kl")
    )
    assert expected.sensitivity["unit"] == measured.sensitivity["unit"] == unit
    found, wanted = values(expected), values(measured)
    assert found.keys() == wanted.keys()
    for scheme in schemes:
        keys = [key for key in wanted if key[1] == scheme]
        one, other = (np.array([values[key] for key in keys]) for values in (found, wanted))
        assert spearmanr(one, other)[0] > 0.85, scheme
        assert 1 / 1.5 < one.sum() / other.sum() < 1.5, scheme
    table = next(key for key in wanted if key[1] == "int8-row-sym" and key[0] != "lm_head")
    assert found[table] == pytest.approx(wanted[table], rel=0.75)  # bart's is met at both ends


def test_one_text_by_hand() -> None:
    rows = [{"layer": "a", "scheme": "int4-g32-sym", "bits": 4.5, "error": 0.1}]
    found = profiling.costs(rows, {("a", "int4-g32-sym"): [2.0, 4.0, 6.0]}, np.array([10.0, 10.0, 20.0]), None)
    assert found[0].value == pytest.approx(12 / 40)
    assert found[0].low < found[0].value < found[0].high
    assert profiling.costs(rows, {}, np.ones(3), {"a": "proj"})[0].value == 0.0  # no text reaches it


def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = source("bart", tmp_path)
    profiled(model, tmp_path / "whole", samples=8)
    wanted = (tmp_path / "whole" / profile.PLACE).read_bytes()
    lines = len((tmp_path / "whole" / "compress" / "journal.jsonl").read_text().splitlines())
    assert lines > 12
    out = tmp_path / "cut"
    deaths = killed_after(monkeypatch, ("banked", "scored", "outside"), lambda: profiled(model, out, samples=8))
    assert len(deaths) > 8
    assert (out / profile.PLACE).read_bytes() == wanted
    assert sorted(p.name for p in (out / "compress").iterdir()) == ["journal.jsonl", "profile.json", "record.json"]
    assert values(profiled(model, out, samples=8)) == values(profiled(model, tmp_path / "whole", samples=8))


def test_files_of_an_interrupted_run_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = source("llama", tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(profiling.Profiling, "backward", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            profiled(model, tmp_path / "out", samples=8)
    next((tmp_path / "out" / "compress" / "work").glob("bank-00001*")).unlink()
    with pytest.raises(OutputError, match=r"bank-00001.safetensors of the interrupted run is gone; pass --overwrite"):
        profiled(model, tmp_path / "out", samples=8)


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    model = source("llama", tmp_path)
    with pytest.raises(RecipeError, match="a layer that is kept loses nothing"):
        profiled(model, tmp_path / "a", schemes=["bfloat16"])
    with pytest.raises(RecipeError, match="int4-g48-sym"):
        profiled(model, tmp_path / "b", schemes=["int4-g48-sym"])
    with pytest.raises(RecipeError, match="'int4' is not understood"):
        profiled(model, tmp_path / "c", schemes=["int4"])
    with pytest.raises(ModelError, match="cannot be asked what its layers cost"):
        profiled(save_tiny("whisper", tmp_path / "whisper"), tmp_path / "d", data=None)
    profiled(model, tmp_path / "e", samples=8, schemes=["int4-g32-sym"])
    with pytest.raises(OutputError, match="--schemes"):
        profiled(model, tmp_path / "e", samples=8, schemes=["int3-g32-sym"])


def test_profile_is_read_back(tmp_path: Path) -> None:
    record = profiled(source("llama", tmp_path), tmp_path / "out", samples=8, schemes=["q4_1", "int4-g32-asym"])
    found = profile.read(tmp_path / "out" / profile.PLACE)
    assert {(s.layer, s.scheme): s.value for s in found.sensitivities} == values(record)
    assert found.unit == "nats per token"
    assert found.mark["--schemes"] == ["q4_1", "int4-g32-asym"]
    assert any(name.startswith("model file") for name in found.mark)
    assert all(s.low <= s.value <= s.high for s in found.sensitivities)
    place = tmp_path / "out" / profile.PLACE
    place.write_text(place.read_text()[:200])
    with pytest.raises(Exception, match="holds no profile, or was cut"):
        profile.read(place)
    with pytest.raises(Exception, match="run compress sensitivity first"):
        profile.read(tmp_path / "none.json")


def test_reports_show_the_heat(tmp_path: Path) -> None:
    record = profiled(source("llama", tmp_path), tmp_path / "out", samples=8)
    said = terminal.text(record, 100)
    assert "What each layer costs, nats per token, expected, the dearest 20 of 23" in said
    assert "self_attn.v_proj" in said
    assert "all together" in said
    page = html.render(record)
    assert '"type": "heatmap"' in page or '"type":"heatmap"' in page
    assert json.loads((tmp_path / "out" / "compress" / "record.json").read_text())["command"] == "sensitivity"
