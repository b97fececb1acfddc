"""Parameters that a checkpoint leaves out, ties that its values contradict, and weights that are simply missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.core.blocks import find_structure
from compress.core.checkpoint import Checkpoint
from compress.core.errors import ModelError
from compress.core.skeleton import compute_parameters
from tests.tiny import meta_model, save_tiny, tiny_model


def test_sinusoidal_positions_are_computed_as_transformers_does() -> None:
    wanted = tiny_model("marian").state_dict()
    names = [f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")]
    found = compute_parameters(meta_model("marian"), names)
    assert list(found) == names
    assert all(torch.equal(found[name], wanted[name]) for name in names)


def test_what_is_random_stays_missing() -> None:
    model: Any = meta_model("marian")
    name = "model.encoder.layers.0.fc1.weight"
    assert compute_parameters(model, [name]) == {}, "not declared by the model"
    model._keys_to_ignore_on_load_missing = {r"fc1"}
    state = torch.random.get_rng_state()
    assert compute_parameters(model, [name]) == {}, "declared, but drawn anew each time"
    assert torch.equal(torch.random.get_rng_state(), state)


def _edit(folder: Path, drop: str | None = None, **more: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    if drop:
        del tensors[drop]
    save_file({**tensors, **more}, folder / "model.safetensors", {"format": "pt"})


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    _edit(save_tiny("llama", tmp_path), drop="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        Checkpoint(tmp_path)


def test_a_decoder_without_its_head_is_refused(tmp_path: Path) -> None:
    _edit(save_tiny("llama", tmp_path), drop="lm_head.weight")
    with pytest.raises(ModelError, match=r"lacks the weights lm_head\.weight"):
        Checkpoint(tmp_path)


def test_an_encoder_without_its_head_is_opened_as_its_base(tmp_path: Path) -> None:
    save_tiny("mpnet", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["MPNetForMaskedLM"]}), encoding="utf-8"
    )
    assert type(Checkpoint(tmp_path).model).__name__ == "MPNetModel"


@pytest.mark.parametrize("change", [0.0, 0.5])
def test_a_tie_holds_only_while_the_values_agree(tmp_path: Path, change: float) -> None:
    save_tiny("qwen2", tmp_path)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    _edit(tmp_path, **{"lm_head.weight": embedding + change})
    checkpoint = Checkpoint(tmp_path)
    assert find_structure(checkpoint.model, checkpoint.config).tied == (change == 0)
    assert torch.equal(checkpoint.load("lm_head.weight"), embedding + change)
