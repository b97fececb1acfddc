"""Rows chosen, resampled; layers frozen; what is tried out before training and remembered after a kill."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from compress.core.errors import DataError, ModelError, OutputError, RecipeError, UsageError, VerificationError
from compress.pipeline import reopen
from compress.pipeline.labelled import find_labelled
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe, TuneRecipe
from compress.train import fit, loop
from tests.integration.test_tune import figure, run, write_tags, write_topics
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("source") / "bert")


def test_chosen_rows_are_found_again(bert: Path, tmp_path: Path) -> None:
    """`quantize OUT` divides the very rows that were filtered and drawn for tuning."""
    data, out = write_topics(tmp_path / "t.csv"), tmp_path / "out"
    chosen: dict[str, Any] = {"filter": ["label!=tech"], "select": 120, "seed": 3}
    record = run(bert, data, out, epochs=2, **chosen)
    assert record.data["rows"] == 120
    assert set(record.data["labels"]) == {"food", "sport"}
    assert record.data["filters"] == ["label!=tech"]
    assert "120 of 300 rows" in " ".join(record.notes)
    assert "--filter 'label!=tech'" in record.reproduce
    assert "--select 120" in record.reproduce
    kept = json.loads((out / "compress" / "task.json").read_text(encoding="utf-8"))
    assert kept["choice"] == {"filters": ["label!=tech"], "select": "120"}
    small = quantize(Recipe.build(model=str(out), out=str(tmp_path / "s"), bits=8, samples=4, seq_len=64, threads=1))
    assert small.data["test"] == record.data["test"]
    assert figure(small, "accuracy", "original") == figure(record, "accuracy", str(out))
    assert not [note for note in small.notes if "may have been trained on" in note]
    config = transformers.AutoConfig.from_pretrained(out)
    other = find_labelled(Recipe.build(model=str(out), data=str(data), filter="label!=tech", select="60"), out, config)
    assert other.labelled is not None
    assert "was divided from other rows when the model was tuned on it" in other.labelled.notes[-1]
    with pytest.raises(OutputError, match="--select: '120' -> '100'"):
        run(bert, data, out, epochs=2, **{**chosen, "select": 100})


def test_rows_cannot_be_chosen_of_plain_text(bert: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(bert)
    with pytest.raises(UsageError, match="--split, --filter and --select are for rows of a task; give --task"):
        find_labelled(Recipe.build(model=str(bert), data="x.csv", select="10"), bert, config)


def test_filters_that_leave_nothing_to_divide(bert: Path, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "t.csv")
    with pytest.raises(DataError, match="has no column 'lang' for --filter 'lang=en'; the columns are: text, label"):
        run(bert, data, tmp_path / "out", filter=["lang=en"])
    with pytest.raises(DataError, match="holds the label 'food' only"):
        run(bert, data, tmp_path / "out", filter=["label=food"])
    with pytest.raises(DataError, match="the data has 8 different rows; give 10 or more"):
        run(bert, data, tmp_path / "out", select=":8")


def write_uneven(path: Path) -> Path:
    """Ten times as many rows of one class as of another."""
    lines = write_topics(path, 300).read_text(encoding="utf-8").splitlines()
    rare = [line for line in lines if line.endswith(",food")][:12]
    lines = [lines[0], *rare, *(line for line in lines[1:] if not line.endswith(",food"))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("how", "rows"), [("over", 3 * 72), ("under", 3 * 9)])
def test_training_rows_are_evened_out(
    how: str, rows: int, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Counter[int]] = []
    real = loop.train

    def watched(model: Any, task: Any, context: Any, parts: Any, *rest: Any) -> Any:
        seen.extend(Counter(f.inputs["labels"] for f in part.features) for part in parts)
        return real(model, task, context, parts, *rest)

    monkeypatch.setattr(loop, "train", watched)
    record = run(bert, write_uneven(tmp_path / "t.csv"), tmp_path / "out", epochs=1, resample=how)
    assert set(seen[0].values()) == {rows // 3}
    assert len(set(seen[1].values())) > 1  # held-out rows are as they were
    assert f"--resample {how}: 153 training rows (9 to 72 a class) became {rows}" in " ".join(record.notes)
    assert figure(record, "accuracy", str(tmp_path / "out")) > 0.3


def test_resampling_is_for_classes(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--resample over is for classes of rows; token-classification has none"):
        run(bert, write_tags(tmp_path / "t.conll"), tmp_path / "out", resample="over")


def test_frozen_layers_stay_as_they_were(bert: Path, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "t.csv", 90)
    before = load_file(bert / "model.safetensors")
    shares = []
    for what in ("embeddings", 1, "encoder"):
        record = run(bert, data, tmp_path / f"out-{what}", epochs=1, freeze=what)
        after = load_file(tmp_path / f"out-{what}" / "model.safetensors")
        same = {name for name in after if name in before and torch.equal(after[name], before[name])}
        assert "bert.embeddings.word_embeddings.weight" in same
        first = {name for name in after if name.startswith("bert.encoder.layer.0.")}
        assert first <= same if what != "embeddings" else not first & same
        shares.append(record.model["trained"])
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(UsageError, match="--freeze is for --method full; lora leaves the model's own layers"):
        run(bert, data, tmp_path / "out", freeze="encoder", method="lora")
    with pytest.raises(RecipeError, match="--freeze top is not understood; use embeddings, encoder, or a number"):
        TuneRecipe.build(model="m", data="d", freeze="top")


def test_a_batch_that_does_not_fit_is_halved_and_remembered(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out above 8 rows; the run is stopped, and goes on with the size that was found."""
    data, out = write_topics(tmp_path / "t.csv", 120), tmp_path / "out"
    real, tried = loop.step_loss, []

    def narrow(model: Any, examples: Any, *rest: Any) -> Any:
        tried.append(len(examples))
        if len(examples) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, examples, *rest)

    monkeypatch.setattr(loop, "step_loss", narrow)
    settings: dict[str, Any] = {"batch_size": 32, "find_batch_size": True, "epochs": 2}

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(loop, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            run(bert, data, out, **settings)
    assert tried == [32, 16, 8]
    record = run(bert, data, out, **settings)
    assert tried == [32, 16, 8]  # not tried again
    assert "32 rows did not fit into memory at once: 8 are used, and 4 forward passes for a step." in record.notes
    plain = run(bert, data, tmp_path / "plain", batch_size=8, accumulate=4, epochs=2)
    assert [line.get("loss") for line in record.training["lines"]] == [x.get("loss") for x in plain.training["lines"]]


@pytest.mark.parametrize("crf", [False, True])
def test_passes_of_a_step_weigh_by_their_labels(crf: bool, bert: Path, tmp_path: Path) -> None:
    """Sentences of many lengths: two passes of eight rows make the step that one of sixteen makes."""
    still = shutil.copytree(bert, tmp_path / "still")
    config = json.loads((still / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sentences = write_tags(tmp_path / "t.conll").read_text(encoding="utf-8").split("\n\n")
    data = tmp_path / "uneven.conll"
    data.write_text("\n\n".join("\n".join([s] * (1 + n % 7)) for n, s in enumerate(sentences)), encoding="utf-8")
    records = [
        run(still, data, tmp_path / f"out{rows}", epochs=2, batch_size=rows, accumulate=16 // rows, crf=crf)
        for rows in (16, 8)
    ]
    norms = [[x["grad_norm"] for x in record.training["lines"] if "grad_norm" in x] for record in records]
    assert len(norms[0]) > 3
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize(("steps", "passes"), [(1, 20), (15, 20), (33, 10), (99, 4), (100, 3), (5000, 3)])
def test_few_rows_are_passed_over_more_often(steps: int, passes: int) -> None:
    assert loop.passes_for(steps) == passes


@pytest.mark.parametrize(("gain", "chosen"), [(1.7, "bfloat16"), (0.4, "float32")])
def test_bfloat16_where_it_is_faster(
    gain: float, chosen: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_topics(tmp_path / "t.csv", 60)
    monkeypatch.setattr(fit, "bf16_gain", lambda *_: gain)
    record = run(bert, data, tmp_path / "out", epochs=1, bf16="auto")
    assert f"A step in bfloat16 is {gain:.2f} times as fast as in float32 here: {chosen} is used." in record.notes
    plain = run(bert, data, tmp_path / "plain", epochs=1, bf16=chosen == "bfloat16")
    losses = [[line["loss"] for line in r.training["lines"] if "loss" in line] for r in (record, plain)]
    assert losses[0] == losses[1]
    assert record.verified[0]["difference"] == 0  # trained in bfloat16, compared in float32


def test_the_score_is_that_of_the_files(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that does not hold what was trained is refused, and its own score is what was written down."""
    data, out = write_topics(tmp_path / "t.csv", 90), tmp_path / "out"
    real = reopen.Opener.open

    def broken(self: reopen.Opener, name: str, folder: Path) -> Any:
        model = real(self, name, folder)
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
        return model

    monkeypatch.setattr(reopen.Opener, "open", broken)
    with pytest.raises(VerificationError, match="outputs of from_pretrained in float32 differ by"):
        run(bert, data, out, epochs=1)
    record = json.loads((out / "compress" / "record.json").read_text(encoding="utf-8"))
    accuracy = next(m for m in record["measurements"] if m["name"] == "accuracy")
    assert accuracy["median"] == pytest.approx(1 / 3)


def test_a_head_that_is_not_in_the_files(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = transformers.PreTrainedModel.save_pretrained

    def forgetful(self: Any, folder: Path, **more: Any) -> None:
        real(self, folder, state_dict={k: v for k, v in self.state_dict().items() if "classifier" not in k}, **more)

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", forgetful)
    with pytest.raises(ModelError, match=r"was written without classifier\.bias"):
        run(bert, write_topics(tmp_path / "t.csv", 60), tmp_path / "out", epochs=1)
