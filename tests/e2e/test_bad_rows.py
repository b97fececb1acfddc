"""Labelled rows that cannot work, or only in part: exit code, one sentence, and what is repaired and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.e2e.conftest import Ended, Run
from tests.integration.test_tune import write_tags, write_topics
from tests.tiny import save_tiny

INPUT, USAGE = 3, 2
FAST = ("--epochs", "1", "--threads", "1", "--out", "out")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer; not to be changed."""
    return save_tiny("bert", tmp_path_factory.mktemp("models") / "bert")


def refused(run: Run, model: Path, data: str, *more: object, code: int = INPUT) -> str:
    """Tune must end with `code` and one sentence, and leave no model; returns the sentence."""
    ended = run("tune", model, "--data", data, *FAST, *more, "-q")
    assert ended.code == code, ended.err
    assert not Path("out/model.safetensors").exists()
    return ended.sentence


def done(run: Run, model: Path, data: str, *more: object) -> dict[str, Any]:
    """Tune must succeed; returns the record."""
    ended: Ended = run("tune", model, "--data", data, *FAST, *more, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def write(name: str, rows: list[tuple[object, object]], head: str = "text,label") -> str:
    Path(name).write_text(f"{head}\n" + "".join(f"{a},{b}\n" for a, b in rows), encoding="utf-8")
    return name


def test_labels_that_only_the_test_split_has(run: Run, bert: Path) -> None:
    Path("set").mkdir()
    write_topics(Path("set/train.csv"), 60)
    write("set/test.csv", [("river salt 1000", "drink"), ("river goal 1001", "sport")])
    said = refused(run, bert, "set")
    assert "the labels drink are in no training row, only in held-out ones; give more rows of them" in said


@pytest.mark.parametrize("value", ["0.37", "-1.5", "1e-3.0", "3.25"])
def test_a_column_of_real_numbers(run: Run, bert: Path, value: str) -> None:
    data = write("scores.csv", [(f"river {n}", value if n == 7 else f"{n % 3}.0") for n in range(40)])
    if value == "1e-3.0":  # no number at all: a name like any other
        assert set(done(run, bert, data)["model"]) >= {"trained"}
        return
    said = refused(run, bert, data)
    assert f"row 8 of scores.csv has '{value}' in column 'label'; labels are classes, not real numbers" in said
    assert "--columns label=COLUMN, or write a class for each range" in said


@pytest.mark.parametrize("value", [float("inf"), 0.5])
def test_real_numbers_of_a_table_with_types(run: Run, bert: Path, value: float) -> None:
    rows = [{"text": f"river {n}", "label": value if n == 3 else float(n % 2)} for n in range(40)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert f"row 4 of t.jsonl has {value} in column 'label'" in refused(run, bert, "t.jsonl")


def test_whole_numbers_written_as_floats_are_classes(run: Run, bert: Path) -> None:
    done(run, bert, write("stars.csv", [(f"river {n}", f"{n % 3}.0") for n in range(60)]))
    assert transformers.AutoConfig.from_pretrained("out").id2label == {0: "0", 1: "1", 2: "2"}


def test_empty_cells_and_the_filter_that_leaves_them_out(run: Run, bert: Path) -> None:
    data = write("gaps.csv", [(f"river {n}", "" if n == 11 else "ab"[n % 2]) for n in range(60)])
    said = refused(run, bert, data)
    assert "row 12 of gaps.csv has no label in column 'label'" in said
    assert "--filter 'label!='" in said
    assert "row 2 of the chosen rows of gaps.csv has no label" in refused(run, bert, data, "--select", "10:")
    record = done(run, bert, data, "--filter", "label!=")
    assert record["data"]["rows"] == 59


def test_a_class_of_the_head_without_rows(run: Run, bert: Path) -> None:
    """A model that knows three topics, rows of two: the head stays, the class that is not there is named."""
    done(run, bert, str(write_topics(Path("three.csv"), 90)))
    Path("out").rename("three")
    lines = [line for line in Path("three.csv").read_text(encoding="utf-8").splitlines() if not line.endswith("tech")]
    Path("two.csv").write_text("\n".join(lines), encoding="utf-8")
    record = done(run, Path("three"), "two.csv", "--resample", "weights")
    assert "No row has the label tech, which the model's head has: it is kept and learns nothing." in record["notes"]
    assert transformers.AutoConfig.from_pretrained("out").id2label == {0: "food", 1: "sport", 2: "tech"}


def test_a_head_of_another_size(run: Run, bert: Path) -> None:
    done(run, bert, str(write_topics(Path("three.csv"), 90)))
    Path("out").rename("three")
    data = write("four.csv", [(f"river {n}", "abcd"[n % 4]) for n in range(80)])
    assert "has a head for another number of classes than the 4 of the data" in refused(run, Path("three"), data)


def test_texts_longer_than_the_model_are_cut_counted_and_noted(run: Run, bert: Path) -> None:
    rows = [(" ".join(["river"] * (400 if n % 4 == 0 else 5)) + f" {n}", "ab"[n % 2 == 0]) for n in range(60)]
    data = write("long.csv", rows)
    notes = done(run, bert, data, "--max-length", "512")["notes"]
    assert "15 of 60 rows are longer than 160 tokens and were cut; which is all that the model takes." in notes
    Path("out").rename("first")
    notes = done(run, bert, data, "--max-length", "100")["notes"]
    assert "15 of 60 rows are longer than 100 tokens and were cut; see --max-length." in notes


def spaced(model: Path, folder: Path) -> Path:
    """The model with a tokenizer that, like BERT's, drops control characters and white space of all kinds."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "in", "London", "Paris", "river", "B", "market"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    save_tiny("bert", folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("crf", [(), ("--crf",)])
def test_words_without_tokens(run: Run, bert: Path, tmp_path: Path, crf: tuple[str, ...]) -> None:
    """A word of control characters in every fourth sentence, and sentences of nothing else."""
    lines = []
    for n in range(80):
        word = "\u200b\u0001" if n % 4 == 0 else "river"
        lines += [
            f"{word}\tO",
            "in\tO",
            f"{('London', 'Paris')[n % 2]}\tB-place",
            *["market\tO"] * (n % 7),
            f"{n}\tO",
            "",
        ]
    for n in range(6):
        lines += ["\u200b\tO"] * (n + 1) + [""]
    Path("odd.conll").write_text("\n".join(lines), encoding="utf-8")
    record = done(run, spaced(bert, tmp_path / "model"), "odd.conll", "--batch-size", "1", *crf)
    said = [note for note in record["notes"] if note.startswith("The tokenizer makes nothing of")]
    assert len(said) == 1
    assert "'\\u200b\\x01' the first; they are taken for O." in said[0]
    losses = [line["loss"] for line in record["training"]["lines"] if "loss" in line]
    assert all(loss == loss for loss in losses)


def test_broken_tags_are_repaired_or_refused(run: Run, bert: Path) -> None:
    data = str(write_tags(Path("places.conll"), 60))
    said = refused(run, bert, data, "--strict")
    assert "row 1 of places.conll has an I- tag that no B- tag begins; mend it, or leave out --strict" in said
    assert "6 I- tags without a B- before them were read as B-." in done(run, bert, data)["notes"]


def test_a_broken_quote_is_named_by_its_row(run: Run, bert: Path) -> None:
    rows = "".join(f'"river {n}",{"ab"[n % 2]}\n' for n in range(30))
    Path("t.csv").write_text('text,label\n"two\nlines",a\n' + rows + '"open,b\nmore,a\n', encoding="utf-8")
    said = refused(run, bert, "t.csv")
    assert "the row that starts at line 34 of t.csv is broken: a quote is opened and never closed" in said
    Path("t.csv").write_text('text,label\n"river" goal,a\n' + rows, encoding="utf-8")
    assert "the row that starts at line 2 of t.csv is broken" in refused(run, bert, "t.csv")


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8-sig", "utf-16"])
def test_chinese_tables(run: Run, bert: Path, encoding: str) -> None:
    topics = {"体育": "足球比赛昨天在北京的体育场举行", "科技": "这家公司发布了新的人工智能芯片"}
    lines = [f"第{n}条新闻：{topics[name]}。,{name}" for n in range(40) for name in topics]
    Path("t.csv").write_bytes(("文本,类别\n" + "\n".join(lines) + "\n").encode(encoding))
    record = done(run, bert, "t.csv", "--columns", "text=文本", "--columns", "label=类别")
    assert list(record["data"]["labels"]) == ["体育", "科技"]
    assert transformers.AutoConfig.from_pretrained("out").label2id == {"体育": 0, "科技": 1}
    assert record["data"]["encoding"].startswith({"gb18030": "gb", "utf-8-sig": "utf-8", "utf-16": "utf-16"}[encoding])


def test_mixed_languages_and_emoji(run: Run, bert: Path) -> None:
    texts = ["great match ⚽🏆", "gol increíble 🎉", "すごい試合", "مباراة رائعة", "👨‍👩‍👧‍👦🇩🇪", "naïve café\u0301"]
    rows = [(f"{texts[n % 6]} {n}", ("👍", "👎 bad")[n % 2]) for n in range(60)]
    record = done(run, bert, write("mixed.csv", rows))
    assert record["data"]["rows"] == 60
    assert set(transformers.AutoConfig.from_pretrained("out").label2id) == {"👍", "👎 bad"}


def test_a_loss_that_is_not_a_number(run: Run, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the third epoch: exit code 3, the step, the checkpoint of the second one, what to do; and then doing it."""
    from compress.train import loop

    data, steps = str(write_topics(Path("t.csv"), 60)), [0]
    real = loop._Scored.compute_loss

    def breaking(self: Any, *args: Any, **more: Any) -> Any:
        steps[0] += 1
        loss = real(self, *args, **more)
        return loss * float("nan") if steps[0] == 8 else loss

    with monkeypatch.context() as broken:
        broken.setattr(loop._Scored, "compute_loss", breaking)
        said = refused(run, bert, data, "--epochs", "4", "--learning-rate", "0.001")
    assert "the loss is nan at step 8; lower --learning-rate 0.001 and pass --overwrite to begin again" in said
    kept = Path(said.split("the last good checkpoint is ")[1])
    assert kept.name == "checkpoint-6"  # of two epochs of three steps
    weights = {path.name for path in kept.iterdir()}
    assert loop.WEIGHTS in weights
    from safetensors.torch import load_file

    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(kept / loop.WEIGHTS).values())
    ended = run("tune", bert, "--data", data, *FAST, "--learning-rate", "0.0001", "--overwrite", "-q")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (("--filter", "lang=en"), INPUT, "has no column 'lang' for --filter 'lang=en'; the columns are: text, label"),
        (("--filter", "label=none"), INPUT, "leaves none of the 60 rows"),
        (("--filter", "label"), INPUT, "must look like column=value, column!=value or column~text"),
        (("--select", "few"), INPUT, "must be a number of rows like 500, or a slice like :500"),
        (("--select", "90:"), INPUT, "leaves none of the 60 rows"),
        (("--split", "train"), INPUT, "is one file and has no splits"),
        (("--split", "learn=train"), INPUT, "must be the name of a split, or like train=NAME,test=NAME"),
        (("--resample", "more"), INPUT, "resample"),
        (("--freeze", "top"), INPUT, "--freeze top is not understood"),
        (("--freeze", "99"), INPUT, "asks for more blocks than the 2"),
        (("--freeze", "1", "--method", "lora"), USAGE, "--freeze is for --method full"),
        (("--bf16", "maybe"), INPUT, "bf16"),
        (("--method", "adapter"), INPUT, "which knows llama, mistral, gpt2 and not bert; use --method lora"),
    ],
)
def test_settings_that_cannot_be(run: Run, bert: Path, options: tuple[str, ...], code: int, part: str) -> None:
    assert part in refused(run, bert, str(write_topics(Path("t.csv"), 60)), *options, code=code)


def test_a_recipe_holds_the_same_settings(run: Run, bert: Path) -> None:
    write_topics(Path("t.csv"), 120)
    Path("r.yaml").write_text(
        "filter: label!=tech\nselect: 60\nresample: over\nfreeze: 1\nbf16: off\nfind_batch_size: true\n",
        encoding="utf-8",
    )
    record = done(run, bert, "t.csv", "--recipe", "r.yaml")
    assert record["data"]["rows"] == 60
    wanted = {"filter": ["label!=tech"], "select": "60", "resample": "over", "freeze": "1", "bf16": "off"}
    assert {name: record["recipe"][name] for name in wanted} == wanted
