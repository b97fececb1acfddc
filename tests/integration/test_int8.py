"""W8A8: what the loop computed, what transformers computes from the file, and what onnxruntime computes in integers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from compress.core.errors import DataError, RecipeError
from compress.core.safetensors_file import read_header
from compress.core.types import LayerResult
from export.verify import check_stored, compare_opened
from tests.rebuild import Run, open_artifact, run
from tests.tiny import TOKENS, save_tiny


def int8(name: str, folder: Path, activations: str, **more: object) -> Run:
    return run(name, save_tiny(name, folder / name), folder / "out", bits=8, activations=activations, **more)


def body(done: Run) -> list[LayerResult]:
    return [result for result in done.record.layers if result.block >= 0]


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "bert", "deberta-v2", "mpnet", "t5", "marian"])
def test_transformers_computes_what_the_loop_computed(tmp_path: Path, name: str, activations: str) -> None:
    """To the last bit: a value on the other side of a tie would change everything after it."""
    done = int8(name, tmp_path, activations)
    line = compare_opened(open_artifact(done), read_header(done.probe))
    assert line["difference"] <= 1e-6
    coded = [
        r for r in done.record.layers if r.scheme.startswith("int") and done.record.plan["layers"][r.layer]["packed"]
    ]
    assert check_stored(done.out)["layers"] == len(coded) == len(body(done)) + (name == "mpnet")  # and its embedding
    assert {result.scheme for result in body(done)} == {"int8-row-sym"}
    expected = "a8-token-dynamic-sym" if activations == "dynamic" else "a8-tensor-static-asym"
    assert {result.activation for result in body(done)} == {expected}
    static = [name for name in done.stored if name.endswith(".input_scale")]
    assert len(static) == (len(body(done)) if activations == "static" else 0)
    assert "norms, residual sums and activation functions" in done.record.plan["in_float"]


def test_inputs_are_really_rounded(tmp_path: Path) -> None:
    """The same codes without rounded inputs are another model: the comparison above can fail."""
    done = int8("bert", tmp_path, "static")
    config = json.loads((done.out / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    (done.out / "config.json").write_text(json.dumps(config))
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] > 1e-3


@pytest.mark.parametrize("settings", [{"act_strategy": "tensor"}, {"act_symmetric": False}, {"method": "rtn"}])
def test_every_dynamic_grid_opens_as_meant(tmp_path: Path, settings: dict[str, object]) -> None:
    done = int8("bert", tmp_path, "dynamic", **settings)
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "entropy"])
def test_every_observer_opens_as_meant(tmp_path: Path, observer: str) -> None:
    done = int8("bert", tmp_path, "static", act_observer=observer, act_symmetric=observer == "mse", method="rtn")
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6


def test_four_bit_weights_can_have_int8_inputs(tmp_path: Path) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", bits=4, activations="dynamic")
    assert {(r.scheme, r.activation) for r in body(done)} == {("int4-g64-sym", "a8-token-dynamic-sym")}
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6


def test_encoders_at_eight_bits_round_their_inputs_and_decoders_do_not(tmp_path: Path) -> None:
    encoder = int8("bert", tmp_path / "a", "auto")
    assert {result.activation for result in body(encoder)} == {"a8-token-dynamic-sym"}
    decoder = int8("llama", tmp_path / "b", "auto")
    assert {result.activation for result in body(decoder)} == {""}


def test_transposed_layers_keep_their_inputs_and_say_so(tmp_path: Path) -> None:
    done = int8("gpt2", tmp_path, "dynamic")
    assert {result.activation for result in body(done)} == {""}
    assert all("inputs stay in float" in result.reason for result in body(done))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("opt", {"activations": "dynamic"}, "depend on its neighbours"),
        ("mixtral", {"activations": "dynamic"}, "mixtures of experts"),
        ("bert", {"activations": "static", "act_strategy": "token"}, "not known beforehand"),
        ("bert", {"activations": "dynamic", "act_observer": "mse"}, "--activations static"),
        ("bert", {"activations": "none", "act_observer": "mse"}, "has none"),
        ("bert", {"activations": "dynamic", "symmetric": False}, "no int8 kernel"),
        ("bert", {"activations": "dynamic", "group_size": 32}, "no int8 kernel"),
    ],
)
def test_what_no_server_computes_is_refused(tmp_path: Path, name: str, settings: dict[str, object], said: str) -> None:
    source = save_tiny(name, tmp_path / name)
    with pytest.raises(RecipeError, match=said):
        run(name, source, tmp_path / "out", bits=8, **settings)


def test_static_ranges_need_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration text"):
        int8("whisper", tmp_path, "static")


class QdqLinear(nn.Module):
    """One stored layer as onnx writes it: QuantizeLinear and DequantizeLinear before a product in float."""

    def __init__(self, stored: dict[str, Tensor], name: str, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", stored[f"{name}.weight"])
        self.register_buffer("scales", stored[f"{name}.weight_scale"][:, 0].contiguous())
        self.register_buffer("zeros", torch.zeros(len(bias), dtype=torch.int8))
        self.scale, self.zero = float(stored[f"{name}.input_scale"]), int(stored[f"{name}.input_zero_point"])
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        grid = (self.scale, self.zero, -128, 127, torch.int8)
        x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
        weight = ops.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, -128, 127, torch.int8)
        return nn.functional.linear(x, weight, self.bias)


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, about itself
@torch.no_grad()
def test_onnxruntime_agrees_with_a_whole_bert(tmp_path: Path) -> None:
    """The QDQ model of the same codes: onnxruntime fuses it to integer products. Top-1 equal in 99.5 %."""
    import onnxruntime
    import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed

    done = int8("bert", tmp_path, "static", samples=16)
    model = AutoModelForMaskedLM.from_pretrained(done.source, dtype=torch.float32).eval()
    stored = done.stored
    kept = {name: value.float() for name, value in stored.items() if value.is_floating_point() and "_scale" not in name}
    model.load_state_dict(kept, strict=False)
    for result in body(done):
        parent, _, last = result.layer.rpartition(".")
        home = model.get_submodule(parent)
        setattr(home, last, QdqLinear(stored, result.layer, getattr(home, last).bias.detach()))
    ids = torch.randint(4, TOKENS, (32, 40), generator=torch.Generator().manual_seed(0))
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    path = tmp_path / "bert.onnx"
    torch.onnx.export(model, inputs, path, dynamo=True, external_data=False, verbose=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = dict(zip([i.name for i in session.get_inputs()], [tensor.numpy() for tensor in inputs], strict=True))
    theirs = torch.from_numpy(session.run(None, feed)[0])
    ours = open_artifact(done)(*inputs).logits
    original = AutoModelForMaskedLM.from_pretrained(done.source, dtype=torch.float32).eval()(*inputs).logits
    agree = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
    assert float(agree) >= 0.995
    # far nearer to each other than either is to the original
    assert float((ours - theirs).square().mean()) < 0.05 * float((ours - original).square().mean())
