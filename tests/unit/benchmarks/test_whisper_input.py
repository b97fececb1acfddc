"""A file in CTranslate2's layout, written here by the format's description, read back."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs.whisper import DTYPES, SIZES, read, renamed


def written(path: Path, arrays: dict[str, np.ndarray], version: int = 6) -> Path:
    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    numbers = {np.dtype(kind): number for number, kind in DTYPES.items()}
    data = struct.pack("<I", version) + name("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for key, array in arrays.items():
        data += name(key) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", numbers[array.dtype], array.nbytes) + array.tobytes()
    path.write_bytes(data + struct.pack("<I", 0))
    return path


def layer(cross: bool) -> dict[str, np.ndarray]:
    """One layer, each tensor another constant; queries, keys and values of an attention told apart."""
    shapes = {"self_attention/linear_0": 3, "self_attention/linear_1": 1, "ffn/linear_0": 2, "ffn/linear_1": 1}
    shapes |= {"attention/linear_0": 1, "attention/linear_1": 2, "attention/linear_2": 1} if cross else {}
    found: dict[str, np.ndarray] = {}
    for name, parts in shapes.items():
        found[f"{name}/weight"] = np.repeat(np.arange(parts), 4)[:, None] * np.ones((1, 4), "<f2") + len(found)
        found[f"{name}/bias"] = np.zeros(4 * parts, "<f2")
    for norm in ("self_attention", "ffn", *(["attention"] if cross else [])):
        found[f"{norm}/layer_norm/gamma"] = found[f"{norm}/layer_norm/beta"] = np.ones(4, "<f2")
    return {name: array.astype("<f2") for name, array in found.items()}


def whole() -> dict[str, np.ndarray]:
    found = {"decoder/embeddings/weight": np.ones((6, 4), "<f2")}
    for stack in ("encoder", "decoder"):
        found[f"{stack}/position_encodings/encodings"] = np.ones((3, 4), "<f2")
        found[f"{stack}/layer_norm/gamma"] = found[f"{stack}/layer_norm/beta"] = np.ones(4, "<f2")
        for number in range(int(SIZES[f"{stack}_layers"])):
            layers = layer(stack == "decoder")
            found |= {f"{stack}/layer_{number}/{name}": array for name, array in layers.items()}
    for name in ("conv1", "conv2"):
        found |= {f"encoder/{name}/weight": np.ones((4, 4, 3), "<f2"), f"encoder/{name}/bias": np.ones(4, "<f2")}
    return found


def test_variables_come_back_as_they_were_written(tmp_path: Path) -> None:
    arrays = {"a/weight": np.arange(6, dtype="<f2").reshape(2, 3), "b": np.array(7, "<i2"), "c": np.ones(2, "<f4")}
    found = dict(read(written(tmp_path / "model.bin", arrays)))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has the binary version 5, 6 is known"):
        dict(read(written(tmp_path / "model.bin", {}, version=5)))


def test_every_parameter_of_whisper_has_a_tensor_and_attention_is_cut_in_order() -> None:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    found = dict(renamed(whole()))
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**SIZES))
    assert found.keys() | {"proj_out.weight"} == model.state_dict().keys()
    first = found["model.decoder.layers.0.self_attn.q_proj.weight"][0, 0]
    cut = [found[f"model.decoder.layers.0.self_attn.{part}_proj.weight"][0, 0] - first for part in "qkv"]
    assert cut == [0, 1, 2]
    pair = [found[f"model.decoder.layers.0.encoder_attn.{part}_proj.weight"][0, 0] for part in "kv"]
    assert pair[1] - pair[0] == 1


def test_biases_of_keys_must_be_nothing() -> None:
    arrays = whole()
    arrays["encoder/layer_0/self_attention/linear_0/bias"][5] = 1
    with pytest.raises(ValueError, match="has biases of keys"):
        dict(renamed(arrays))
