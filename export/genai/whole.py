"""A checkpoint in float32 of what the codes stand for, for other people's converters to read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from compress.core.files import atomic_write, read_pieces, write_json
from compress.core.numerics.affine import dequantize
from compress.core.safetensors_file import Pending
from compress.core.shards import write_sharded
from export.kinds import Report
from export.source import Source


def write_whole(source: Source, aside: Path, report: Report) -> None:
    """Write the checkpoint, its config and what lies beside it into the new folder `aside`: 4 bytes a weight."""
    aside.mkdir()
    coded = {source.checkpoint.sources[param].keys[0]: param for param in source.by_param}
    entries = source.checkpoint.entries
    tensors = {}

    def made(key: str, number: int) -> Tensor:
        report("weights for the converter", number, len(entries))
        if key in coded:
            return source.weight(coded[key])
        return source.checkpoint.read(key, torch.float32)

    for number, (key, entry) in enumerate(entries.items(), 1):
        tensors[key] = Pending(torch.float32, entry.shape, lambda k=key, n=number: made(k, n))  # type: ignore[misc]
    write_sharded(aside, tensors)
    config = {key: value for key, value in source.config.items() if key not in ("quantization_config", "torch_dtype")}
    write_json(aside / "config.json", {**config, "dtype": "float32"})
    for name in source.companions():
        atomic_write(aside / name, read_pieces(source.folder / name))


def digest(weight: Tensor) -> bytes:
    """What tells a weight (O, I) float32 from every other."""
    return hashlib.sha256(weight.contiguous().numpy().tobytes()).digest()


def names_by_digest(source: Source) -> dict[bytes, str]:
    """The layers with codes, by the digest of the weight they stand for."""
    return {digest(dequantize(source.codes(name))): name for name in source.coded}
