"""What an ONNX file of ours says, read with the onnx package and numpy: weights by their codes, kept weights, grids.

The writer's packing is not used here: MatMulNBits is decoded as its specification has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.onnxfile.file import Array, OnnxFile, attribute, unpacked
from export.source import Source

BLOCKS = ("MatMulNBits",)
TURNED = ("MatMulIntegerToFloat", "MatMulInteger", "DequantizeLinear")


def files(folder: Path) -> list[OnnxFile]:
    """The ONNX files of an export, also those of a model repository."""
    return [OnnxFile(path) for path in sorted(folder.rglob("*.onnx"))]


def weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(layer, weight (O, I) float32) of every layer with codes; one that several files hold is given once, unless they
    disagree."""
    seen: dict[str, Tensor] = {}
    for file in files(folder):
        for name in file.names(".scales"):
            found = _blocks(file, name) if f"{name}.codes" in file else _rows(file, name)
            if found is None:
                continue
            whole = torch.from_numpy(np.ascontiguousarray(found))
            if name not in seen or not torch.equal(seen[name], whole):
                seen[name] = whole
                yield name, whole


def _blocks(file: OnnxFile, name: str) -> Array | None:
    node = file.reader(f"{name}.codes", BLOCKS)
    if node is None:
        return None
    rows, columns = attribute(node, "N"), attribute(node, "K")
    bits, size = attribute(node, "bits"), attribute(node, "block_size")
    codes = unpacked(file.array(node.input[1]), bits).reshape(rows, -1, size).astype(np.float32)
    scales = file.array(node.input[2]).reshape(rows, -1, 1)
    zeros: Array = np.full((rows, codes.shape[1], 1), 2.0 ** (bits - 1), np.float32)
    if len(node.input) > 3 and node.input[3]:
        packed = file.array(node.input[3]).reshape(rows, -1)
        zeros = unpacked(packed, bits)[:, : codes.shape[1], None].astype(np.float32)
    found: Array = ((codes - zeros) * scales).reshape(rows, -1)[:, :columns]
    return found


def _rows(file: OnnxFile, name: str) -> Array | None:
    stored = f"{name}.int8"
    scales = file.array(f"{name}.scales").reshape(-1)
    if stored not in file or (not file.readers.get(stored)):
        return None
    codes = file.array(stored).astype(np.float32)
    found: Array = codes.T * scales[:, None] if file.reader(stored, TURNED) is not None else codes * scales[:, None]
    return found


def kept(folder: Path, source: Source) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, as stored, as it should be): weights that stayed float, and the static grids of inputs."""
    params = dict(source.model.named_parameters(remove_duplicate=False))
    for file in files(folder):
        for name in file.tensors:
            param = name.removesuffix(".T")
            if param in params and file.readers.get(name):
                found = torch.from_numpy(file.array(name).copy())
                yield name, found.T if name.endswith(".T") else found, source.weight(param)
        for name in file.names(".input_scale"):
            grid = source.input_grid(name)
            if grid is None:
                continue
            zero = grid.zero if grid.zero is not None else torch.zeros(1, dtype=torch.int8)
            for part, expected in (("input_scale", grid.scale), ("input_zero_point", zero)):
                found = torch.from_numpy(file.array(f"{name}.{part}").copy()).reshape(-1)
                if found.dtype == torch.uint8:  # 128 higher, as the codes are
                    found = (found.to(torch.int16) - 128).to(torch.int8)
                yield f"{name}.{part}", found, expected.to(found.dtype)
