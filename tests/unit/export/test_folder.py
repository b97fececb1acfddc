"""The folder of an export: whole or not there, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.core.errors import ModelError, OutputError
from export import folder
from export.kinds import Written

SOURCE: Any = SimpleNamespace(folder=Path("artifact"), name="model", coded={}, companions=list)
FORM: Any = SimpleNamespace(summary="a format", readme=lambda _: [])


def _write(where: Path, text: str, overwrite: bool = False) -> None:
    def fill(place: Path) -> Written:
        if not text:
            raise ValueError("nothing to write")
        (place / "file").write_text(text)
        return Written(())

    folder.write(SOURCE, "format", FORM, where, fill, overwrite)


def test_an_export_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    where = tmp_path / "export"
    _write(where, "one")
    with pytest.raises(OutputError, match="pass --overwrite"):
        _write(where, "two")
    with pytest.raises(ValueError, match="nothing to write"):
        _write(where, "", overwrite=True)
    assert (where / "file").read_text() == "one"
    _write(where, "two", overwrite=True)
    assert (where / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_where_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("something")
    with pytest.raises(OutputError, match="is no export"):
        _write(tmp_path / "file", "one")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for place in (Path(), here.parent):
        with pytest.raises(OutputError, match="is the folder you are in"):
            _write(place, "one")
    _write(Path("inside"), "one")
    assert json.loads((here / "inside" / folder.EXPORT).read_text())["format"] == "format"


def test_an_export_of_another_version_is_named(tmp_path: Path) -> None:
    told = {"format": "gif", "artifact": "..", "packed": [], "facts": {}, "files": {}}
    (tmp_path / folder.EXPORT).write_text(json.dumps(told))
    with pytest.raises(ModelError, match="the format 'gif', which this version"):
        folder.card(tmp_path)
