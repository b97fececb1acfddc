"""Tables of speech: audio folders in the layout of `datasets`, and sound inside parquet files, never decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from calibrate.rows import Reading, read_rows
from compress.core.errors import DataError


def metadata(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name},say {name}" for name in names]
    (folder / "metadata.csv").write_text("\n".join(["file_name,transcription", *lines]), encoding="utf-8")


def test_a_folder_with_its_table(tmp_path: Path) -> None:
    metadata(tmp_path, ["a.wav", "clips/b.wav"])
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    table = read_rows(str(tmp_path))
    assert [row["file_name"] for row in table.rows] == ["a.wav", "clips/b.wav"]
    assert table.given == ["", ""]


def test_folders_of_splits_name_them_and_their_files(tmp_path: Path) -> None:
    metadata(tmp_path / "train", ["a.wav", "b.wav"])
    metadata(tmp_path / "test", ["a.wav"])
    table = read_rows(str(tmp_path))
    assert list(zip(table.given, [row["file_name"] for row in table.rows], strict=True)) == [
        ("test", "test/a.wav"),
        ("train", "train/a.wav"),
        ("train", "train/b.wav"),
    ]


def test_a_table_by_another_name_is_left_as_it_is(tmp_path: Path) -> None:
    metadata(tmp_path / "x", ["a.wav"])
    (tmp_path / "x" / "metadata.csv").rename(tmp_path / "x" / "train.csv")
    table = read_rows(str(tmp_path))
    assert (table.rows[0]["file_name"], table.given) == ("a.wav", ["train"])


@pytest.fixture
def sounds(tmp_path: Path) -> datasets.Dataset:
    rows = {"audio": [{"bytes": bytes([n]) * 50, "path": None} for n in range(3)], "text": ["a", "b", "c"]}
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": plain, "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(rows, features=features).cast_column("audio", datasets.Audio())


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_sound_stays_bytes_where_it_is_asked_for(form: str, sounds: Any, tmp_path: Path) -> None:
    target = tmp_path / ("set.parquet" if form == "parquet" else "set")
    if form == "parquet":
        sounds.to_parquet(target)
    else:
        sounds.save_to_disk(target)
    heard = read_rows(str(target), Reading(audio=True))
    assert [row["audio"]["bytes"] for row in heard.rows] == [bytes([n]) * 50 for n in range(3)]
    assert read_rows(str(target)).rows == [{"text": "a"}, {"text": "b"}, {"text": "c"}]


def test_a_folder_of_sound_alone(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="holds nothing readable"):
        read_rows(str(tmp_path), Reading(audio=True))
