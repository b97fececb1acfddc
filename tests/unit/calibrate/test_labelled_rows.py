"""Labelled data as users have it, and its division."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate import conll
from calibrate.divide import LEAST, divide
from calibrate.rows import Reading, read_rows
from compress.core.errors import DataError

CONLL = "-DOCSTART- O\n\nEU\tB-org\nrejects\tO\n\n# text = x\nGerman NNP B-misc\ncall NN O\n\t\nend O\n"


def test_conll_lines() -> None:
    rows = list(conll.parse(CONLL, "x.conll"))
    assert rows == [
        {"words": ["EU", "rejects"], "tags": ["B-org", "O"]},
        {"words": ["German", "call"], "tags": ["B-misc", "O"]},
        {"words": ["end"], "tags": ["O"]},
    ]


def test_a_line_without_a_tag_is_named() -> None:
    with pytest.raises(DataError, match=r"line 2 of x is 'b'; it must hold a word and its tag"):
        list(conll.parse("a O\nb\n", "x"))


def test_a_text_file_is_conll_for_taggers_only(tmp_path: Path) -> None:
    file = tmp_path / "ner.txt"
    file.write_text("a\tO\nb\tB-x\n\nc\tO\n", encoding="utf-8")
    assert len(read_rows(str(file), Reading(tagged=True)).rows) == 2
    assert len(read_rows(str(file)).rows) == 1


def test_chinese_csv_in_gb18030_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = "text,label\n" + "".join(f"这是第{n}条关于足球比赛的新闻报道，内容很长,体育\n" for n in range(20))
    for name, encoding in (("a.csv", "gb18030"), ("b.csv", "utf-8-sig")):
        (tmp_path / name).write_text(text, encoding=encoding)
        table = read_rows(str(tmp_path / name))
        assert list(table.rows[0]) == ["text", "label"]
        assert table.rows[3]["label"] == "体育"


def test_a_folder_of_classes_and_a_folder_of_splits(tmp_path: Path) -> None:
    for label in ("sport", "tech"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        (tmp_path / "classes" / label / "test.txt").write_text(f"about {label}", encoding="utf-8")
    table = read_rows(str(tmp_path / "classes"))
    assert [row["label"] for row in table.rows] == ["sport", "tech"]
    assert table.given == ["", ""]
    (tmp_path / "splits").mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / "splits" / f"{name}.csv").write_text(f"text,label\n{name} text,a\n", encoding="utf-8")
    table = read_rows(str(tmp_path / "splits"))
    assert dict(zip([row["text"] for row in table.rows], table.given, strict=True)) == {
        "train text": "train", "dev text": "validation", "test text": "test"
    }  # fmt: skip


def test_texts_without_class_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    with pytest.raises(DataError, match="sub-folder named after it"):
        read_rows(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.xlsx", "x", "ends in .xlsx; labelled data can be"),
        ("a.csv", 'text,label\n"open,a\nb,c\n', "line 2 of .* a quote is opened and never closed"),
    ],
)
def test_files_that_hold_no_rows(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_rows(str(tmp_path / name))


def test_a_missing_file_suggests_another(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"did you mean reviews\.csv"):
        read_rows(str(tmp_path / "review.csv"))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abc")), min_size=1, max_size=120), st.integers(0, 9))
def test_no_text_is_in_two_parts(pairs: list[tuple[int, str]], seed: int) -> None:
    texts, strata = [f"text {n}" for n, _ in pairs], [label for _, label in pairs]
    different = len(set(texts))
    if different < LEAST:
        with pytest.raises(DataError, match=f"{different} different rows"):
            divide(texts, strata, [""] * len(texts), seed)
        return
    found = divide(texts, strata, [""] * len(texts), seed)
    parts = [{texts[n] for n in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == different
    assert found.copies == len(texts) - different
    assert all(parts)
    assert found == divide(texts, strata, [""] * len(texts), seed)


def test_shares_and_classes() -> None:
    strata = ["a"] * 800 + ["b"] * 180 + ["c"] * 20
    found = divide([str(n) for n in range(1000)], strata, [""] * 1000, 0)
    assert [len(found.test), len(found.validation), len(found.train)] == [200, 80, 720]
    for part in (found.test, found.validation, found.train):
        assert {strata[n] for n in part} == {"a", "b", "c"}


def test_parts_that_the_data_names_are_kept() -> None:
    given_ = ["train"] * 20 + ["test"] * 7
    found = divide([str(n) for n in range(27)], ["x"] * 27, given_, 0)
    assert found.test == tuple(range(20, 27))
    assert len(found.validation) == 2


def test_rows_of_one_document_stay_together() -> None:
    """Questions about one context: none of it is trained on and held out; too few contexts are cut by row."""
    texts = [f"question {n}" for n in range(120)]
    about = [f"context {n % 30}" for n in range(120)]
    found = divide(texts, [""] * 120, [""] * 120, 0, about)
    parts = [{about[n] for n in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, parts)) == 30
    assert [len(part) for part in (found.train, found.validation, found.test)] == [88, 8, 24]
    few = divide(texts, [""] * 120, [""] * 120, 0, ["one"] * 120)
    assert few == divide(texts, [""] * 120, [""] * 120, 0)
