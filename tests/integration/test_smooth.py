"""SmoothQuant: the same function to the last bit, and int8 inputs that lose less where channels lie far out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.core.errors import RecipeError
from compress.core.numerics.smooth import smoothing_scale
from compress.core.safetensors_file import read_header
from export.verify import compare_opened
from tests.rebuild import open_artifact, run
from tests.tiny import save_tiny


def test_scales_are_powers_of_two_that_balance_inputs_and_columns() -> None:
    inputs = torch.tensor([1.0, 64.0, 1.0, 0.0, 3.0])
    weights = torch.tensor([1.0, 1.0, 0.25, 1.0, 0.0])
    scale = smoothing_scale(inputs, weights, 0.5)
    assert torch.equal(scale, torch.tensor([0.5, 4.0, 1.0, 1.0, 1.0]))  # centred; what is never read keeps 1
    mantissa, _ = torch.frexp(scale)
    assert torch.equal(mantissa, torch.full((5,), 0.5))
    x = torch.randn(9, 5) * inputs
    w = torch.randn(4, 5) * weights
    assert torch.equal((x / scale) @ (w * scale).T, x @ w.T)
    # alpha 1: all of the range goes into the weights
    far = smoothing_scale(inputs, weights, 0.99)
    assert float(far[1] / far[0]) == 64.0


def with_far_channels(source: Path) -> None:
    """Gains of three channels 64 times as large, the columns that read them as much smaller: the same function."""
    path = source / "model.safetensors"
    tensors = load_file(path)
    for name in list(tensors):
        block = name.rpartition(".layers.")[2].partition(".")[0]
        if name.endswith("input_layernorm.weight"):
            tensors[name][:3] *= 64
            for part in ("q_proj", "k_proj", "v_proj"):
                tensors[f"model.layers.{block}.self_attn.{part}.weight"][:, :3] /= 64
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_far_channels_cost_less(tmp_path: Path, activations: str) -> None:
    source = save_tiny("llama", tmp_path / "llama")
    with_far_channels(source)
    kl = {}
    for smooth in (0.0, 0.5):
        done = run("llama", source, tmp_path / f"out{smooth}", bits=8, activations=activations, smooth=smooth)
        kl[smooth] = next(m.median for m in done.record.measurements if m.name == "kl")
        assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6
    assert kl[0.5] < 0.5 * kl[0.0]
    smoothed = {result.role for result in done.record.layers if "smooth" in result.reparams}
    assert {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"} <= smoothed
    assert any("layers were smoothed" in note for note in done.record.notes)


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("bert", {"o_proj"}),  # its norms are added to the stream as well: nothing of theirs may be scaled
        ("gpt_neox", {"qkv_proj", "fc1"}),
        ("t5", {"q_proj", "k_proj", "v_proj", "o_proj", "cross_q_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_only_what_changes_nothing_is_smoothed(tmp_path: Path, name: str, roles: set[str]) -> None:
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", bits=8, activations="static", smooth=0.5)
    assert {result.role for result in done.record.layers if "smooth" in result.reparams} == roles
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6
    line = next(m for m in done.record.measurements if m.name in ("kl", "hidden_cosine"))
    assert line.median < 0.05 if line.name == "kl" else line.median > 0.999
    assert json.loads((done.out / "compress" / "record.json").read_text())["recipe"]["smooth"] == 0.5


def test_smoothing_is_for_rounded_inputs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is for int8 inputs"):
        run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", bits=8, smooth=0.5)
