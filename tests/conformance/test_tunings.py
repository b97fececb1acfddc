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
from compress.pipeline.inputs import quiet_libraries
from compress.pipeline.labelled import Wanted, read_labelled
from compress.pipeline.tune import tune
from compress.recipe import TuneRecipe
from compress.train.tuning import Ground
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


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama that has its head already, as LLaMA-Adapter wants it; barely trained."""
    folder = tmp_path_factory.mktemp("source")
    data = write_topics(folder / "t.csv", 40, seed=5)
    recipe = TuneRecipe.build(model=str(save_tiny("llama", folder / "plain")), data=str(data),
                              out=str(folder / "llama"), epochs=1, threads=1, learning_rate=1e-5)  # fmt: skip
    tune(recipe)
    return folder / "llama"


def accuracy_of(model: Any, out: Path, data: Path) -> float:
    """On the test rows, by plain transformers: a text at a time, so that nothing is padded."""
    labelled = read_labelled(Wanted(str(data), "text-classification", {}, 0), [])
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    rows = [labelled.rows[n] for n in labelled.division.test]
    with torch.inference_mode():
        logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in rows]
    right = [labelled.labels[int(x.argmax())] == row["label"] for x, row in zip(logits, rows, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("name", names("tuning"))
def test_a_method_from_rows_to_a_folder(name: str, bert: Path, llama: Path, tmp_path: Path) -> None:
    data, out = write_topics(tmp_path / "topics.csv"), tmp_path / "out"
    tuning, source = load("tuning", name), llama if name == "adapter" else bert
    kept = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    before = load_file(source / "model.safetensors")
    record = tune(
        TuneRecipe.build(model=str(source), data=str(data), out=str(out), method=name, epochs=6, batch_size=8,
                         threads=1, learning_rate=RATES.get(name),
                         options={"tokens": 4} if not tuning.merges else {})  # a tiny model takes larger steps
    )  # fmt: skip
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    epoch = len(losses) // 6
    assert sum(losses[-epoch:]) < 0.99 * sum(losses[:epoch])
    trained, total = record.model["trained"], record.model["parameters"]
    assert 0 < trained <= total if name == "full" else trained < total
    assert f"{100 * trained / total:.1f}"[:2] in (out / "report.txt").read_text(encoding="utf-8").split(" trained")[0]
    assert {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()} == kept
    assert record.verified
    assert all(line["passed"] for line in record.verified)
    said = figure(record, "accuracy", str(out))
    assert said > 0.4
    if not tuning.adapter or tuning.merges:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
        assert accuracy_of(model, out, data) == pytest.approx(said)
        if name == "bitfit":
            after = {k.removeprefix("bert."): v for k, v in load_file(out / "model.safetensors").items()}
            matrices = [key for key in before if not key.endswith("bias")]
            assert all(torch.equal(after[key], before[key]) for key in matrices)
    else:
        assert not (out / "model.safetensors").exists()
    if tuning.adapter:
        reopened_by_peft(name, source, out, before)
        plain = tuning.reopened(peft.PeftModel.from_pretrained(head_on(source), adapter_of(name, out)))
        assert accuracy_of(plain.eval(), out, data) == pytest.approx(said)


def head_on(source: Path) -> Any:
    """The base with a head of random weights: whatever matters of it is in the adapter."""
    torch.manual_seed(77)
    return transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)


def adapter_of(name: str, out: Path) -> Path:
    return out / "adapter" if load("tuning", name).merges else out


def reopened_by_peft(name: str, source: Path, out: Path, before: dict[str, torch.Tensor]) -> None:
    """The base in plain peft is the checkpoint byte for byte; merged, it answers as the adapter and the folder do."""
    tuning, tokenizer = load("tuning", name), transformers.AutoTokenizer.from_pretrained(out)
    plain = tuning.reopened(peft.PeftModel.from_pretrained(head_on(source), adapter_of(name, out)))
    state = {key.replace(".base_layer", "").replace(".self_attn.model.", ".self_attn."): value
             for key, value in plain.get_base_model().state_dict().items()}  # fmt: skip
    frozen = [key for key in before if key in state or f"bert.{key}" in state]
    assert len(frozen) > 20
    assert all(torch.equal(state[key if key in state else f"bert.{key}"], before[key]) for key in frozen)
    said = logits_of(plain, tokenizer)
    if tuning.merges:
        merged = transformers.AutoModelForSequenceClassification.from_pretrained(out)
        torch.testing.assert_close(logits_of(merged, tokenizer), said, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits_of(plain.merge_and_unload(), tokenizer), said, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_the_adapter_of_language_models_is_gated_shut_at_first(kind: str, tmp_path: Path) -> None:
    """Zero gates: the model is what it was; trained, it reloads in plain peft as a language model."""
    quiet_libraries()  # peft 0.21 asks transformers by a name that is going away
    folder = save_tiny(kind, tmp_path / kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = logits_of(base, tokenizer).clone()
    tuning = load("tuning", "adapter")
    model = tuning.apply(base, Ground("CAUSAL_LM"), tuning.options(tokens=4))
    assert torch.equal(logits_of(model, tokenizer), before)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "out")
    fresh = transformers.AutoModelForCausalLM.from_pretrained(folder)
    plain = peft.PeftModel.from_pretrained(fresh, tmp_path / "out")
    assert torch.equal(logits_of(plain, tokenizer), logits_of(model, tokenizer))


def test_the_adapter_cannot_keep_a_new_head(tmp_path: Path) -> None:
    llama = save_tiny("llama", tmp_path / "llama")
    with pytest.raises(ModelError, match="has no score, whose new weights adapter would not keep; use --method lora"):
        tune(TuneRecipe.build(model=str(llama), data=str(write_topics(tmp_path / "t.csv")), out=str(tmp_path / "out"),
                              method="adapter", threads=1))  # fmt: skip


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
