"""Every tuning method: learns, leaves the base as it was, reloads in plain peft, merges where it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from compress.core.errors import ModelError, RecipeError
from compress.core.registry import load, names
from compress.pipeline.tune import tune
from compress.recipe import TuneRecipe
from compress.train.methods.prefix import taking_past
from tests.integration.test_tune import figure, write_tags, write_topics
from tests.tiny import randomize, save_tiny, tiny_config, tiny_tokenizer

ADAPTERS = [name for name in names("tuning") if load("tuning", name).adapter]
RATES = {"full": 5e-4}  # of a tiny random body
TEXTS = ["river goal match goal 7", "market bread bread salt 9", "engine chip code chip 11"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body with its pooler, as encoders of sentences are published."""
    folder = tmp_path_factory.mktemp("source") / "bert"
    torch.manual_seed(0)
    model = transformers.BertModel(tiny_config("bert"))
    randomize(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, which has no pooler."""
    return save_tiny("bert", tmp_path_factory.mktemp("source") / "bert")


def logits_of(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.inference_mode():
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
        found: torch.Tensor = model.eval()(**batch).logits
        return found


@pytest.mark.parametrize("name", names("tuning"))
def test_a_method_from_rows_to_a_folder(name: str, bert: Path, tmp_path: Path) -> None:
    data, out = write_topics(tmp_path / "topics.csv"), tmp_path / "out"
    tuning = load("tuning", name)
    before = {key: value.clone() for key, value in load_file(bert / "model.safetensors").items()}
    record = tune(
        TuneRecipe.build(model=str(bert), data=str(data), out=str(out), method=name, epochs=6, batch_size=8, threads=1,
                         learning_rate=RATES.get(name),
                         options={"tokens": 4} if not tuning.merges else {})  # a tiny model takes larger steps
    )  # fmt: skip
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    epoch = len(losses) // 6
    assert sum(losses[-epoch:]) < 0.99 * sum(losses[:epoch])
    trained, total = record.model["trained"], record.model["parameters"]
    assert 0 < trained <= total if name == "full" else trained < total
    after = load_file(bert / "model.safetensors")
    assert all(torch.equal(after[key], before[key]) for key in before)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    if not tuning.adapter:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
        assert logits_of(model, tokenizer).shape == (3, 3)
        return
    adapter = out / "adapter" if tuning.merges else out
    base = transformers.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    plain = peft.PeftModel.from_pretrained(base, adapter)
    plain = taking_past(plain) if name == "prefix" else plain
    state = plain.get_base_model().state_dict()
    frozen = {name: key for key in state if (name := key.removeprefix("bert.").replace(".base_layer", "")) in before}
    assert len(frozen) > 20
    assert all(torch.equal(state[key], before[name]) for name, key in frozen.items())
    said = logits_of(plain, tokenizer)
    if tuning.merges:
        merged = transformers.AutoModelForSequenceClassification.from_pretrained(out)
        torch.testing.assert_close(logits_of(merged, tokenizer), said, atol=1e-4, rtol=1e-4)
    else:
        assert not (out / "model.safetensors").exists()
    assert figure(record, "accuracy", str(out)) > 0.4


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_new_modules_of_the_body_are_in_the_adapter(name: str, masked: Path, tmp_path: Path) -> None:
    """A masked model has no pooler: without the new one, nobody could make the model of the adapter again."""
    out = tmp_path / "out"
    tune(TuneRecipe.build(model=str(masked), data=str(write_topics(tmp_path / "t.csv", 60)), out=str(out), method=name,
                          epochs=1, threads=1))  # fmt: skip
    torch.manual_seed(99)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(masked, num_labels=3)
    plain = peft.PeftModel.from_pretrained(base, out / "adapter")
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    torch.testing.assert_close(logits_of(merged, tokenizer), logits_of(plain, tokenizer), atol=1e-4, rtol=1e-4)


def test_prompts_cannot_keep_new_modules_of_the_body(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no bert\.pooler\.dense, whose new weights prompt would not keep"):
        tune(TuneRecipe.build(model=str(masked), data=str(write_topics(tmp_path / "t.csv")), out=str(tmp_path / "out"),
                              method="prompt", threads=1))  # fmt: skip


@pytest.mark.parametrize("name", ["lora", "bitfit", "prefix"])
def test_taggers_too(name: str, bert: Path, tmp_path: Path) -> None:
    data = write_tags(tmp_path / "places.conll", 60)
    record = tune(TuneRecipe.build(model=str(bert), data=str(data), out=str(tmp_path / "out"), method=name, epochs=2,
                                   batch_size=8, threads=1))  # fmt: skip
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    assert losses[-1] < losses[0]


def test_biases_that_are_not_there(tmp_path: Path) -> None:
    llama = save_tiny("llama", tmp_path / "llama")
    with pytest.raises(ModelError, match="has no biases; use --method lora"):
        tune(TuneRecipe.build(model=str(llama), data=str(write_topics(tmp_path / "t.csv")), out=str(tmp_path / "out"),
                              method="bitfit", threads=1))  # fmt: skip


def test_an_option_that_a_method_does_not_have(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="full has no option 'rank'; it has none"):
        tune(TuneRecipe.build(model=str(bert), data=str(write_topics(tmp_path / "t.csv")), options={"rank": "8"}))
