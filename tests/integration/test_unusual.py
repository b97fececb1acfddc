"""Encoders that are built unlike BERT: layers found by structure alone, no list of blocks, hidden states turned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.core.safetensors_file import read_header
from compress.pipeline import judge
from export.verify import check_stored, compare_opened
from tests.rebuild import run
from tests.tiny import BOS, EOS, PAD, VOCAB, randomize, save_tiny, tiny_tokenizer

ENCODER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    "convbert": {**ENCODER, "embedding_size": 64},
    "deberta": {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 160},
}


def classifier(name: str, folder: Path, **shape: Any) -> Path:
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    config = transformers.AutoConfig.for_model(name, vocab_size=VOCAB, num_labels=3, **ids, **shape)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    randomize(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_found_by_structure_alone(tmp_path: Path, name: str, bits: int) -> None:
    done = run("bert", classifier(name, tmp_path / name, **SHAPES[name]), tmp_path / "out", bits=bits)
    assert any(note.endswith(("handled alone.", "stay as they are.")) for note in done.record.notes)
    cosine = next(m.median for m in done.record.measurements if m.name == "hidden_cosine")
    assert (0.9 if bits == 4 else 0.99) < cosine < 1
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(done.out, dtype=torch.float32).eval()
    assert compare_opened(opened, read_header(done.probe))["difference"] <= 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_a_whole_model_is_one_block(tmp_path: Path, bits: int) -> None:
    groups = ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups")
    shape = {**ENCODER, "embedding_size": 64, **dict.fromkeys(groups, 2)}
    source = classifier("squeezebert", tmp_path / "squeezebert", **shape)
    done = run("bert", source, tmp_path / "out", bits=bits)
    assert any("the model is not a list of blocks" in note for note in done.record.notes)
    coded = [r.layer for r in done.record.layers if r.scheme.startswith("int")]
    assert {"transformer.pooler.dense", "classifier"} <= set(coded)
    assert check_stored(done.out)["layers"] == len(coded)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(done.out, dtype=torch.float32).eval()
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    ids = torch.arange(4, 36).view(2, 16)
    with torch.no_grad():
        change = (opened(input_ids=ids).logits - whole(input_ids=ids).logits).norm() / whole(
            input_ids=ids
        ).logits.norm()
    assert change < (0.2 if bits == 4 else 0.05)


def test_the_kept_outputs_do_not_grow_with_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A masked model over many rows: the file that verification compares with holds as many rows as it may."""
    source = save_tiny("bert", tmp_path / "bert")
    many = run("bert", source, tmp_path / "many", bits=8)
    monkeypatch.setattr(judge, "PROBE_LOGITS", 1)
    one = run("bert", source, tmp_path / "one", bits=8)
    shapes = [read_header(done.probe)["output"].shape for done in (many, one)]
    assert shapes[0][0] > shapes[1][0] == 1
    assert read_header(one.probe)["input.input_ids"].shape[0] == shapes[0][0]
    opened = transformers.AutoModelForMaskedLM.from_pretrained(one.out, dtype=torch.float32).eval()
    assert compare_opened(opened, read_header(one.probe))["difference"] <= 1e-5
