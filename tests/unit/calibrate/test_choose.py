"""Which rows are used: splits by name, filters, numbers and slices of rows; refusals name what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from calibrate.choose import Choice, chosen, splits_of
from calibrate.rows import read_rows
from compress.core.errors import CompressError, DataError, RecipeError

ROWS: list[dict[str, Any]] = [
    {"text": "Good Film", "lang": "en", "stars": 5, "ok": True, "words": ["a", "b"]},
    {"text": "bad film", "lang": "de", "stars": 1.0, "ok": False, "words": ["c"]},
    {"text": "a=b", "lang": "", "stars": None, "ok": True, "words": []},
    {"text": "fin", "lang": "fr", "stars": float("nan"), "ok": None, "words": ["a"]},
]


def numbers(*filters: str, select: str = "", seed: int = 0) -> list[int]:
    return chosen(ROWS, Choice(filters=filters, select=select), seed, "x")


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("lang=en", [0]),
        ("lang!=en", [1, 2, 3]),
        ("lang=", [2]),
        ("lang!=", [0, 1, 3]),
        ("text~FILM", [0, 1]),
        ("text~a=b", [2]),
        ("text=a=b", [2]),
        ("stars=1", [1]),
        ("stars=5.0", [0]),
        ("stars!=", [0, 1]),
        ("ok=true", [0, 2]),
        ("words~a b", [0]),
        (" lang = en ", [0]),
    ],
)
def test_conditions(condition: str, kept: list[int]) -> None:
    assert numbers(condition) == kept


def test_all_conditions_hold_and_selection_comes_after() -> None:
    assert numbers("text~film", "lang!=de") == [0]
    assert numbers("lang!=", select=":2") == [0, 1]
    assert numbers("lang!=", select="1:9") == [1, 3]
    assert numbers("lang!=", select="2:") == [3]
    assert numbers(select="99") == [0, 1, 2, 3]


def test_a_number_of_rows_is_drawn_by_the_seed() -> None:
    rows = [{"n": n} for n in range(200)]
    first = chosen(rows, Choice(select="40"), 3, "x")
    assert len(set(first)) == 40
    assert first == sorted(first) == chosen(rows, Choice(select="40"), 3, "x")
    assert first != chosen(rows, Choice(select="40"), 4, "x")
    assert max(first) > 100  # not the first ones


@pytest.mark.parametrize(
    ("choice", "kind", "said"),
    [
        (Choice(filters=("stars",)), RecipeError, "must look like column=value, column!=value or column~text"),
        (Choice(filters=("len(x)=1",)), DataError, r"no column 'len\(x\)' .* the columns are: text, lang, stars"),
        (Choice(filters=("lang=it",)), DataError, "--filter 'lang=it' leaves none of the 4 rows of x; loosen it"),
        (Choice(select="some"), RecipeError, "--select 'some' must be a number of rows like 500, or a slice"),
        (Choice(select="7:9"), DataError, "--select 7:9 leaves none of the 4 rows of x"),
        (Choice(select="0"), DataError, "--select 0 leaves none"),
    ],
)
def test_refusals(choice: Choice, kind: type[CompressError], said: str) -> None:
    with pytest.raises(kind, match=said):
        chosen(ROWS, choice, 0, "x")


def test_split_names() -> None:
    assert splits_of("") == []
    assert splits_of("train") == [("", "train")]
    assert splits_of("train=a, test=b") == [("train", "a"), ("test", "b")]
    for wrong in ("train=a,dev=b", "test=a", "train=a,train=b", "train="):
        with pytest.raises(RecipeError, match="--split"):
            splits_of(wrong)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A `save_to_disk` folder of three splits, ten rows each."""
    made = {name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(10)], "label": ["a"] * 10})
            for name in ("train", "validation", "other")}  # fmt: skip
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_splits_of_a_saved_set(saved: str) -> None:
    table = read_rows(saved)
    assert len(table.rows) == 10
    assert "Only the split train of" in table.notes[0]
    assert "not validation, other; see --split" in table.notes[0]
    table = read_rows(saved, choice=Choice(split="train=train,test=validation"))
    assert table.given == ["train"] * 10 + ["test"] * 10
    assert table.rows[10]["text"] == "validation 0"
    table = read_rows(saved, choice=Choice(split="other", filters=("text~ 3",)))
    assert [row["text"] for row in table.rows] == ["other 3"]
    assert table.given == [""]
    assert table.notes == (f"1 of 10 rows of {saved} were chosen by --filter and --select.",)
    with pytest.raises(DataError, match="has no split 'dev'; there is train, validation, other"):
        read_rows(saved, choice=Choice(split="dev"))


def test_splits_of_a_folder_of_files(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "held"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},a\n", encoding="utf-8")
    table = read_rows(str(tmp_path), choice=Choice(split="train=train,test=held"))
    assert sorted(table.given) == ["test", "train", "train"]
    assert read_rows(str(tmp_path), choice=Choice(split="held")).given == [""]
    with pytest.raises(DataError, match="has no split 'test'; there is held, train"):
        read_rows(str(tmp_path), choice=Choice(split="train=train,test=test"))
    with pytest.raises(DataError, match="is one file and has no splits; leave out --split"):
        read_rows(str(tmp_path / "held.csv"), choice=Choice(split="train"))
