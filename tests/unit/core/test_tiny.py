"""The tiny models that other tests stand on: they run, carry signal, survive a save, and repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.tiny import (
    AUTO,
    CORPUS,
    TINY,
    TOKENS,
    VOCAB,
    example_inputs,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)

ISSUE = (
    "llama qwen2 qwen3 gemma3 mistral phi3 gpt2 opt gpt_neox mixtral qwen3_moe bert distilbert roberta mpnet "
    "electra deberta-v2 t5 bart marian whisper"
)


@torch.no_grad()
def outputs(model: Any, name: str) -> Tensor:
    found = model(**example_inputs(model, name))
    out: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return out


def test_every_promised_architecture_is_here() -> None:
    assert set(TINY) == set(ISSUE.split())


@pytest.mark.parametrize("name", TINY)
def test_runs_carries_signal_and_survives_a_save(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    out = outputs(model, name)
    assert torch.isfinite(out).all()
    assert float(out.std(dim=1).mean()) > 0.1, "outputs hardly depend on the token: nothing could fail on them"
    save_tiny(name, tmp_path)
    again = getattr(transformers, AUTO[name]).from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert torch.equal(outputs(again, name), out)


def test_a_seed_repeats_and_another_differs() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (tiny_model("llama", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_shards_and_dtype(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, "bfloat16", "100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16


def test_the_tokenizer_keeps_any_text_and_fits_the_models(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == TOKENS <= VOCAB
    for text in (*CORPUS, "naïve €5 🙂\t\n  two  spaces"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert max(ids) < VOCAB
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2, 3]
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "今天"}]
    assert again.apply_chat_template(chat, tokenize=False) == "<s>user\n今天</s>\n"
    assert again(CORPUS[0]).input_ids == tokenizer(CORPUS[0]).input_ids
