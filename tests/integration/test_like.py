"""`--like` and `inspect --data` on tiny models: what is read of every kind of source, what is said, what is refused."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import DataError, ModelError, OutputError
from compress.core.journal import Journal
from compress.core.types import RunRecord
from compress.pipeline.hooks import Hooks
from compress.pipeline.inspect import inspect_text
from compress.pipeline.quantize import quantize
from compress.pipeline.sensitivity import sensitivity
from compress.recipe import Recipe, SensitivityRecipe
from compress.report import html, terminal
from tests.rebuild import write_text
from tests.tiny import save_tiny
from tests.writing import WORDS, save_writer, write_speech, write_summaries

TEXT: dict[str, Any] = {"samples": 8, "seq_len": 32, "eval_samples": 2, "threads": 1}
CHINESE = "今天天气很好我们一起去公园散步孩子们在草地上放风筝老人坐长椅下棋"


def prose(path: Path, seed: int, rows: int = 40, words: Iterable[str] = WORDS, length: int = 30) -> Path:
    """A jsonl file of texts of such words."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(list(words), k=length)) + f" {seed} {n}" for n in range(rows)]
    path.write_text("".join(json.dumps({"body": line}) + "\n" for line in lines), encoding="utf-8")
    return path


def looked(model: Path, data: Path | None, like: Path | None, **settings: Any) -> tuple[dict[str, Any], RunRecord]:
    """What `inspect` finds out, side by side, and its record."""
    named = {"data": None if data is None else str(data), "like": None if like is None else str(like)}
    record = inspect_text(Recipe.build(**{"model": str(model), **TEXT, **named, **settings}), lambda _: None)
    return record.data["fit"], record


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


def test_text_of_the_same_kind_and_of_others(llama: Path, tmp_path: Path) -> None:
    data = prose(tmp_path / "data.jsonl", 0)
    long = {"samples": 24, "seq_len": 64}
    same, record = looked(llama, data, prose(tmp_path / "same.jsonl", 1), **long)
    apart = same["text"]["distance"]
    assert apart["excess"] < 0.15
    assert apart["kind"] == "the same kind of text"
    assert same["text"]["like_covered"] > 0.9
    assert not [note for note in record.notes if "far from" in note]
    assert record.data["like"]["texts"] == same["text"]["like_texts"] == 40
    assert record.data["like"]["column"] == "body"

    other, record = looked(llama, data, prose(tmp_path / "other.jsonl", 2, 40, CHINESE, 40), **long)
    apart = other["text"]["distance"]
    assert apart["excess"] > 0.7
    assert apart["own"] < 0.3
    assert other["text"]["like_covered"] < 0.5
    said = "\n".join(record.notes)
    assert "Calibration text is far from --like: distance 0.9" in said
    assert "of the tokens of --like never occur in calibration text, like '" in said
    for text in (terminal.text(record), html.render(record)):
        assert "Is the calibration text fit?" in text
        assert "another kind of text" in text


def test_lengths_that_do_not_match(llama: Path, tmp_path: Path) -> None:
    data = prose(tmp_path / "data.jsonl", 0)
    long, record = looked(llama, data, prose(tmp_path / "long.jsonl", 1, 20, length=60))
    lengths = long["text"]["like_lengths"]
    assert lengths[0] > 60
    assert long["text"]["like_reached"] == pytest.approx(32 / lengths[0], rel=0.1)
    assert any("of the tokens of --like are past position 32" in n and "give --seq-len" in n for n in record.notes)
    _, record = looked(llama, data, prose(tmp_path / "short.jsonl", 1, 40, length=1), seq_len=64)
    assert any("what comes first in a text is rare in them; give --seq-len" in note for note in record.notes)


def test_any_source_that_data_takes(llama: Path, tmp_path: Path) -> None:
    data = prose(tmp_path / "data.jsonl", 0)
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "note"], *[[n, f"river market {n}"] for n in range(20)]])
    folder = tmp_path / "folder"
    folder.mkdir()
    for n in range(9):
        (folder / f"{n}.txt").write_text(f"a garden by the school {n}", encoding="utf-8")
    one = write_text(tmp_path / "one.txt")
    chats = tmp_path / "chats.jsonl"
    turns = [[{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "yes"}] for n in range(9)]
    chats.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns), encoding="utf-8")
    for like, texts, column in ((tmp_path / "rows.csv", 20, "note"), (folder, 9, ""), (chats, 9, "messages")):
        fit, record = looked(llama, data, like, text_column="body" if like.suffix == ".csv" else None)
        assert (fit["text"]["like_texts"], record.data["like"]["column"]) == (texts, column)
    fit, _ = looked(llama, data, one)
    assert not fit["text"]["whole"]  # sections of one document: their lengths are ours
    assert fit["text"]["like_texts"] > 10


def test_few_tokens_for_wide_layers(llama: Path, tmp_path: Path) -> None:
    data = prose(tmp_path / "data.jsonl", 0)
    fit, record = looked(llama, data, None, samples=2)
    assert fit["text"]["tokens_an_input"] == 64 / fit["text"]["width"]
    assert any(f"for each of the {fit['text']['width']} inputs of the widest layer" in note for note in record.notes)
    enough, record = looked(llama, data, None, samples=40)
    assert enough["text"]["tokens_an_input"] > 4
    assert not [note for note in record.notes if "inputs of the widest layer" in note]
    assert enough["text"]["ids"] > fit["text"]["ids"]


def labelled(path: Path, rows: int = 60, label: bool = True) -> Path:
    """Texts with the labels of the tiny classifier."""
    draw = random.Random(rows)
    names = [["text", "label"][: 1 + label]]
    lines = [[" ".join(draw.choices(WORDS, k=8)) + f" {n}", f"LABEL_{n % 2}"][: 1 + label] for n in range(rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*names, *lines])
    return path


def test_rows_of_a_task_need_no_labels(tmp_path: Path) -> None:
    model = save_tiny("bert-classifier", tmp_path / "bert")
    data = labelled(tmp_path / "rows.csv")
    for like in (
        labelled(tmp_path / "more.csv", 50),
        labelled(tmp_path / "bare.csv", 50, False),
        prose(tmp_path / "log.jsonl", 3, 50, length=8),
    ):
        fit, record = looked(model, data, like)
        assert record.data["task"] == "text-classification"
        assert fit["text"]["like_texts"] == 50
        assert fit["text"]["distance"]["excess"] < 0.2, like.name
        assert max(fit["text"]["lengths"]) <= 32  # cut as the rows are; the sample is not


def test_both_sides_of_models_that_write(tmp_path: Path) -> None:
    model = save_writer("bart", tmp_path / "bart")
    data = write_summaries(tmp_path / "rows.csv")
    fit, record = looked(model, data, write_summaries(tmp_path / "more.csv", 30), seq_len=64)
    assert list(fit) == ["source", "target"]
    assert fit["source"]["like_texts"] == fit["target"]["like_texts"] == 30
    assert fit["source"]["tokens"] > fit["target"]["tokens"] > 0
    assert fit["target"]["distance"]["excess"] < 0.15
    assert "Source: Calibration text" in terminal.text(record)
    bare, _ = looked(model, data, prose(tmp_path / "bare.jsonl", 1), seq_len=64)
    assert "like_texts" in bare["source"]
    assert "like_texts" not in bare["target"]
    plain, _ = looked(model, prose(tmp_path / "text.jsonl", 0), None, text_column="body")
    assert plain["text"]["tokens_an_input"] == plain["text"]["tokens"] / 2 / plain["text"]["width"]


def test_speech_goes_by_what_is_said(tmp_path: Path) -> None:
    model = save_writer("whisper", tmp_path / "whisper")
    speech = write_speech(tmp_path / "speech")
    fit, record = looked(model, speech, write_speech(tmp_path / "other", 20))
    assert list(fit) == ["target"]
    assert fit["target"]["like_texts"] == 20
    assert not [note for note in record.notes if "inputs of the widest layer" in note]
    fit, _ = looked(model, speech, prose(tmp_path / "said.jsonl", 0, 12))
    assert fit["target"]["like_texts"] == 12


def test_bad_samples_are_refused_before_any_work(llama: Path, tmp_path: Path) -> None:
    data = prose(tmp_path / "data.jsonl", 0)
    (tmp_path / "copy.jsonl").write_bytes(data.read_bytes())
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "numbers.jsonl").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    for like, said in (
        ("data.jsonl", "is the calibration data itself"),
        ("copy.jsonl", "its distance to itself tells nothing"),
        ("nowhere.jsonl", "there is no file or folder"),
        ("empty.jsonl", "empty.jsonl is empty"),
        ("numbers.jsonl", "no column of"),
    ):
        named = {"out": str(tmp_path / "out"), "data": str(data), "like": str(tmp_path / like)}
        recipe = Recipe.build(model=str(llama), **named, **TEXT)
        with pytest.raises(DataError, match=said):
            quantize(recipe)
        assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="--like is empty"):
        inspect_text(Recipe.build(model=str(llama), like=" "), lambda _: None)
    with pytest.raises(DataError, match="check the path given to --like"):
        looked(llama, data, tmp_path / "zzz.parquet")
    with pytest.raises(ModelError, match="is calibrated on no text"):
        looked(save_tiny("whisper", tmp_path / "whisper"), None, data)


def test_quantize_says_it_before_the_work_and_is_another_run_with_another_sample(llama: Path, tmp_path: Path) -> None:
    data, like = prose(tmp_path / "data.jsonl", 0), prose(tmp_path / "like.jsonl", 1, 40, CHINESE, 40)
    said: list[str] = []
    stages: list[str] = []

    def tell(sentence: str) -> None:
        said.append(sentence)
        assert not stages

    out = tmp_path / "out"
    asked = {"model": str(llama), "out": str(out), "data": str(data), "generate": 0, "verify": False, **TEXT}
    record = quantize(Recipe.build(**asked, like=str(like)), hooks=Hooks(lambda stage, *_: stages.append(stage), tell))
    summary = next(sentence for sentence in said if sentence.startswith("Calibration: 8 sequences, 256 tokens"))
    assert "two halves of --like 0." in summary
    assert summary.endswith("another kind of text.")
    poor = record.data["fit"]["text"]["poor"]
    assert poor
    assert set(poor) <= set(said)
    assert set(poor) <= set(record.notes)
    assert f"--like {like}" in record.reproduce
    moved = like.rename(tmp_path / "moved.jsonl")
    again = quantize(Recipe.build(**asked, like=str(moved)))  # the same sample by another name
    assert again.data["fit"] == record.data["fit"]
    with pytest.raises(OutputError, match="--like text"):
        quantize(Recipe.build(**asked, like=str(prose(tmp_path / "third.jsonl", 2))))
    bare = quantize(Recipe.build(**asked | {"out": str(tmp_path / "bare"), "method": "rtn", "eval_samples": 0},
                                 like=str(moved)))  # fmt: skip
    assert any("was not read: this run calibrates and measures on no text" in note for note in bare.notes)


def test_a_resumed_profile_says_the_same_of_more_text(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, like = prose(tmp_path / "data.jsonl", 0), prose(tmp_path / "like.jsonl", 1)

    def profiled(out: str, **settings: Any) -> RunRecord:
        small: dict[str, Any] = {"samples": 12, "seq_len": 32, "threads": 1, "data": str(data), "like": str(like)}
        small["schemes"] = ["int2-g32-sym", "int4-g32-sym"]
        return sensitivity(SensitivityRecipe.build(model=str(llama), out=str(tmp_path / out), **{**small, **settings}))

    whole = profiled("whole")
    found = whole.sensitivity["stability"]
    assert found["texts"] == 12
    assert found["layers"] == len({row["layer"] for row in whole.sensitivity["layers"] if row["block"] >= 0})
    assert 0 < found["spearman"] < 1
    assert whole.notes[0] == found["said"]
    assert whole.notes[0].startswith("128 more sequences would")
    assert "More of it" in terminal.text(whole)
    assert whole.data["like"]["texts"] == 40
    append = Journal.append

    def dies(self: Journal, kind: str, **fields: Any) -> None:
        append(self, kind, **fields)
        if kind == "scored" and fields["turn"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Journal, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            profiled("cut")
    again = profiled("cut")
    assert again.sensitivity == whole.sensitivity
    assert again.notes == whole.notes


def test_a_budget_knows_whether_more_text_would_change_its_plan(llama: Path, tmp_path: Path) -> None:
    data = prose(tmp_path / "data.jsonl", 0, 120)
    asked = {"model": str(llama), "out": str(tmp_path / "out"), "data": str(data), "max_bytes": "175kB"}
    record = quantize(Recipe.build(**asked, **TEXT, generate=0, verify=False))
    found = record.sensitivity["stability"]
    assert found["said"] == record.notes[2]
    assert found["layers"] == len({row["layer"] for row in record.sensitivity["layers"]})
    assert found["said"].startswith("128 more sequences would")
