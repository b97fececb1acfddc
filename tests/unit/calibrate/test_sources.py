"""The same text through every kind of source, and every way a source can be wrong."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from calibrate import arrow
from calibrate.sources import BUILT_IN, Corpus, Request, load
from compress.core.errors import DataError

RULE = set("*=-~^#+| ")
Prose = Callable[[int], str]


def corpus(data: Path | str | None, column: str | None = None, tokenizer: Any = None) -> Corpus:
    return load(Request(None if data is None else str(data), column, 100_000), tokenizer)


@pytest.fixture
def texts(prose: Prose) -> list[str]:
    return [f'{prose(2)} "quoted", then\na second line; 量化 {i}' for i in range(12)]


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    match path.suffix:
        case ".jsonl":
            path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-16")
        case ".csv" | ".tsv":
            with path.open("w", encoding="utf-8-sig", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writerows([("id", "text"), *((row["id"], row["text"]) for row in rows)])
        case ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(str(path))
        case _:
            datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "saved"])
def test_every_table_gives_the_same_documents(tmp_path: Path, texts: list[str], name: str) -> None:
    found = corpus(write(tmp_path / name, texts))
    assert list(found.documents) == texts
    assert (found.column, found.rows) == ("text", 12)


def test_arrow_files_and_split_folders(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path / "saved", texts)
    (shard,) = (tmp_path / "saved").glob("*.arrow")
    assert list(corpus(shard).documents) == texts
    splits = {"test": texts[:2], "train": texts[2:]}
    whole = datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in splits.items()})
    whole.save_to_disk(str(tmp_path / "splits"))
    found = corpus(tmp_path / "splits")
    assert list(found.documents) == texts[2:]
    assert found.source.endswith("(train)")


def test_tables_leave_nothing_in_a_cache(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", texts)
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    cache.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert len(corpus(path).documents) == 12
    assert [*cache.rglob("*"), *temporary.rglob("*")] == []


def test_a_large_table_is_read_as_far_as_needed(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path / "a.parquet", texts)
    table = arrow.read_file(path, "a.parquet", max_chars=len(texts[0]) + 2)
    assert [row["text"] for row in table.rows] == texts[:2]
    assert "only the first 2 rows of a.parquet" in table.note


def test_a_folder_is_read_in_order_of_names(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text(texts[0], encoding="utf-8")
    (tmp_path / "a.md").write_text(texts[1], encoding="utf-8")
    write(tmp_path / "c.jsonl", texts[2:])
    (tmp_path / ".hidden.txt").write_text("not this")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = corpus(tmp_path)
    assert list(found.documents) == [texts[1], texts[0], *texts[2:]]
    assert (found.files, found.kind) == (3, "folder")
    assert any("1 of 4 files" in sentence for sentence in found.warnings)


def test_one_undecodable_file_of_many_is_left_out_by_name(tmp_path: Path, prose: Prose) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(prose(2))
    (tmp_path / "07.txt").write_bytes(b"price \xa3 5")
    found = corpus(tmp_path)
    assert len(found.documents) == 19
    assert any("07.txt" in sentence and "left out" in sentence for sentence in found.warnings)
    for i in range(3):
        (tmp_path / f"{i:02}.txt").write_bytes(b"price \xa3 5")
    with pytest.raises(DataError, match=r"00.txt is not UTF-8"):
        corpus(tmp_path)


def test_built_in_text_is_prose() -> None:
    found = corpus(None)
    assert found.source == BUILT_IN
    assert len(found.documents) > 50
    assert sum(map(len, found.documents)) > 300_000
    rules = [line for text in found.documents for line in text.splitlines() if len(line) > 4 and set(line) <= RULE]
    assert rules == []


def test_a_python_without_the_built_in_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"no pydoc_data.topics.*--data"):
        corpus(None)


ROWS = '{"id": 1, "body": "some text"}\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n", "holds no text"),
        ("a.csv", "id,text\n", "holds no text"),
        ("a.json", "[]", "holds no text"),
        ("a.json", '{"a": [1,\n2,,]}', r"line 2 of \S+ is not JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "[1, 2]", "no column of .* holds text"),
        ("a.jsonl", ROWS * 3 + '{"id": 2, "bo', r"line 4 of \S+ is not JSON"),
        ("a.jsonl", '{"id": 1}\n', r"no column of \S+ holds text \(there is: id\)"),
        ("a.csv", 'id,text\n1,fine\n2,"never\nclosed\n3,x\n', r"row that starts at line 3 of \S+ is broken"),
        ("a.csv", 'id,text\n1,fine\n\n2,"a" b\n', r"row that starts at line 4 of \S+ is broken"),
        ("a.csv", "id,text\n1,one, two\n", r"line 2 of \S+ has 3 cells and the header 2"),
        ("a.parquet", "PAR1 nothing PAR1", "not a readable .parquet file"),
        ("a.pdf", "%PDF", r"ends in .pdf; data can be .txt"),
        ("noname", "text", "has no suffix"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said) as refused:
        corpus(tmp_path / name)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_files_suggest_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(ROWS)
    with pytest.raises(DataError, match=r"no file or folder \S+; did you mean train.jsonl\?"):
        corpus(tmp_path / "tran.jsonl")
    with pytest.raises(DataError, match="does not exist either"):
        corpus(tmp_path / "nowhere" / "train.jsonl")


def test_folders_with_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing readable \(no files\)"):
        corpus(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"nothing readable \(1 x .png\)"):
        corpus(tmp_path)


def test_empty_name_and_column_of_plain_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data is empty"):
        corpus(" ")
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(DataError, match="plain text and has no column 'text'"):
        corpus(tmp_path / "a.txt", column="text")


class Hub:
    """A hub that answers `dataset_info` with an exception, or not at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Exception | None) -> None:
        self.loaded: list[tuple[Any, ...]] = []
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", self.info)
        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda repo, config: ["test", "train"])
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        self.answer = answer

    def info(self, repo: str, timeout: float) -> None:
        assert timeout <= 10
        if self.answer:
            raise self.answer

    def load(self, repo: str, config: str | None, split: str, streaming: bool) -> Any:
        self.loaded.append((repo, config, split, streaming))
        return datasets.Dataset.from_dict({"text": ["from the hub"]}).to_iterable_dataset()


def test_hub_names_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, None)
    found = corpus("someone/texts")
    assert found.documents == ("from the hub",)
    assert (found.kind, found.source) == ("hub", "someone/texts (train)")
    corpus("someone/texts:small:test")
    assert hub.loaded == [("someone/texts", None, "train", True), ("someone/texts", "small", "test", True)]


def test_without_a_network_nothing_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, ConnectionError("Name or service not known"))
    with pytest.raises(DataError, match=r"'someone/texts' is no file or folder here and the hub cannot be reached"):
        corpus("someone/texts")
    assert hub.loaded == []


def test_offline_mode_reads_the_local_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, OfflineModeIsEnabled("offline"))
    assert corpus("someone/texts").documents == ("from the hub",)
    assert hub.loaded == [("someone/texts", None, "train", False)]
