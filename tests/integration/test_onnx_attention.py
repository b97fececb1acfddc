"""Attention of encoders in ONNX: one operator where it is the formula, the model's own nodes where it is not; the same
numbers either way, padding included."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.bert import modeling_bert

from compress.core.errors import RecipeError
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from export.onnxfile import attention
from tests.rebuild import run
from tests.tiny import save_tiny

FUSED = "MultiHeadAttention"
PLAIN = {"attention": "plain", "weights": "float32"}


def graph_of(artifact: Path, out: Path, **options: str) -> Path:
    """Export `artifact` to `out`, verified; its graph, or that of its encoder."""
    record, failures = export(artifact, ExportSettings(("onnx",), options, out=out, verify=VerifySettings(threads=1)))
    assert failures == []
    assert all(line["passed"] for line in record.verified)
    named = out / "model.onnx"
    return named if named.is_file() else out / "encoder_model.onnx"


def kinds(graph: Path) -> list[str]:
    """The operators of a graph, with their domains."""
    nodes = onnx.load_model(str(graph), load_external_data=False).graph.node
    return [f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in nodes]


def answers(graph: Path, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Any:
    """The first output on token ids (B, S)."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    given = {"input_ids": ids, "attention_mask": mask}
    return session.run(None, {i.name: given.get(i.name, ids * 0) for i in session.get_inputs()})[0]


@pytest.mark.parametrize(("name", "blocks"), [("bert-classifier", 2), ("roberta", 2), ("bart", 2)])
def test_both_ways_give_the_same(tmp_path: Path, name: str, blocks: int) -> None:
    done = run(name, save_tiny(name, tmp_path / "model"), tmp_path / "out", bits=8, activations="none")
    one = graph_of(done.out, tmp_path / "one", weights="float32")
    plain = graph_of(done.out, tmp_path / "plain", **PLAIN)
    assert kinds(one).count(f"com.microsoft:{FUSED}") == blocks
    assert "Softmax" not in kinds(one)
    assert kinds(plain).count("Softmax") == blocks
    assert not any(":" in kind for kind in kinds(plain))
    ids = np.random.default_rng(0).integers(8, 200, (3, 19))
    mask = (np.arange(19) < np.array([[19], [11], [1]])).astype(np.int64)
    mask[1, 3:6] = 0  # a hole, not only an end
    found, wanted = answers(one, ids, mask), answers(plain, ids, mask)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    assert np.abs(answers(one, ids, np.ones_like(mask)) - found).max() > 1e-3 * np.abs(wanted).max()


def test_a_sound_has_no_mask(tmp_path: Path) -> None:
    done = run("whisper", save_tiny("whisper", tmp_path / "model"), tmp_path / "out", bits=8, activations="none")
    graph = graph_of(done.out, tmp_path / "one")
    assert kinds(graph).count(f"com.microsoft:{FUSED}") == 2


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2", "distilbert"])
def test_other_attention_verifies_as_well(tmp_path: Path, name: str) -> None:
    """Relative positions are added to the scores of mpnet and deberta: no mask of keys can say that."""
    done = run(name, save_tiny(name, tmp_path / "model"), tmp_path / "out", bits=8, activations="none")
    found = kinds(graph_of(done.out, tmp_path / "one"))
    assert (f"com.microsoft:{FUSED}" in found) == (name == "distilbert")


def test_signed_codes_are_for_others_than_onnxruntime(tmp_path: Path) -> None:
    done = run("bert-classifier", save_tiny("bert-classifier", tmp_path / "m"), tmp_path / "out", bits=8,
               activations="static")  # fmt: skip
    found = kinds(graph_of(done.out, tmp_path / "one", signed="true"))
    assert not any(":" in kind for kind in found)
    assert "Softmax" in found
    with pytest.raises(RecipeError, match="attention=flash is not understood; use fused or plain"):
        graph_of(done.out, tmp_path / "no", attention="flash")


def test_attention_that_is_not_the_formula_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32)
    model = transformers.BertModel(config).eval()
    own = modeling_bert.eager_attention_forward
    assert (own, modeling_bert.BertSelfAttention) in attention._Fused(model).usual

    def capped(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any) -> Any:
        scores = torch.tanh(q @ k.transpose(2, 3) * scaling / 20) * 20 + mask
        return (scores.softmax(-1) @ v).transpose(1, 2), None

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", capped)
    assert not attention._Fused(model).usual

    def needs_more(module: nn.Module, *_: Tensor, sinks: Tensor, **__: Any) -> Any:
        return sinks, module

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", needs_more)
    assert not attention._Fused(model).usual


def test_what_an_attention_is_told_besides_keeps_it_as_it_is() -> None:
    def own(module: nn.Module, q: Tensor, softcap: float | None = None, **_: Any) -> None:
        del module, q, softcap, _

    assert attention._told_more(own, {"softcap": 3.0})
    assert not attention._told_more(own, {"softcap": None, "scaling": 0.5, "output_attentions": True})


def test_masks_that_are_not_of_keys_are_not_taken() -> None:
    state = attention._Fused(SimpleNamespace(modules=list))  # type: ignore[arg-type]
    assert state._hidden(torch.zeros(2, 1, 5, 5), 0.5) is None  # may differ by query
    assert state._hidden(torch.zeros(2, 4, 1, 5), 0.5) is None  # differs by head
    least = torch.finfo(torch.float32).min
    hidden = state._hidden(torch.tensor([[[[0.0, -1.0, least]]]]), 0.5)
    assert hidden is not None
    assert hidden.tolist() == [[0.0, -2.0, pytest.approx(attention.HIDDEN)]]
