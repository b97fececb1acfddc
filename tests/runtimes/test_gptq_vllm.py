"""GPTQ checkpoints in vLLM: a tiny model agrees, and faults that only outputs show are seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from compress.pipeline.export import ExportSettings, export
from export import environments
from tests import tiny
from tests.planted import agrees, change_json, change_tensors, judged, sealed
from tests.rebuild import run
from tests.tiny import save_tiny

pytestmark = pytest.mark.runtimes
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
"""Heads of 64 in matrices that its CPU kernels take."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A symmetric qwen2, which has biases, and its export; skips where vLLM is not installed."""
    place = environments.place("vllm")
    if place.interpreter is None:
        pytest.skip(f"needs vllm: {place.install}")
    base = tmp_path_factory.mktemp("vllm")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in SIZES.items():
            patch.setitem(tiny.TINY["qwen2"].config, key, value)
        source = save_tiny("qwen2", base / "qwen2")
    AutoTokenizer.from_pretrained(source).save_pretrained(source)
    out = run("qwen2", source, base / "out", bits=4, symmetric=True, mixed=False, method="rtn").out
    export(out, ExportSettings(("gptq",), out=base / "gptq", check=False))
    return out, base / "gptq"


def no_fault(_: Path) -> None:
    """Nothing."""


def bias_dropped(where: Path) -> None:
    """k has none."""
    change_tensors(where / "model.safetensors", lambda t: t["model.layers.0.self_attn.k_proj.bias"].zero_())


def value_bias_perturbed(where: Path) -> None:
    """v has another."""
    change_tensors(where / "model.safetensors", lambda t: t["model.layers.0.self_attn.v_proj.bias"].add_(0.1))


def head_perturbed(where: Path) -> None:
    """Rows of the table that embeds and predicts change places."""

    def change(tensors: dict[str, Any]) -> None:
        table = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = table.roll(1, 0)

    change_tensors(where / "model.safetensors", change)


def rope_theta_wrong(where: Path) -> None:
    """Ten times what it was."""

    def change(config: dict[str, Any]) -> None:
        config["rope_theta"] = 100000.0
        config["rope_parameters"] = {"rope_theta": 100000.0, "rope_type": "default"}

    change_json(where / "config.json", change)


@pytest.mark.parametrize("fault", [no_fault, bias_dropped, value_bias_perturbed, head_perturbed, rope_theta_wrong])
def test_what_outputs_show(made: tuple[Path, Path], tmp_path: Path, fault: Callable[[Path], None]) -> None:
    out, whole = made
    where = tmp_path / "x"
    shutil.copytree(whole, where)
    fault(where)
    sealed(where)
    if fault is no_fault:
        found = judged(where, out)
        assert found.passed
        assert any(str(line["runtime"]).startswith("vllm") for line in found.lines)
    else:
        assert not agrees(where, out)
