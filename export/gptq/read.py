"""Reads a GPTQ checkpoint back with the safetensors library and numpy, by what its own config.json says of each module.

Nothing of the writer is used: bits are taken out of the bytes one by one, and the rules of `dynamic` are applied as
vLLM's get_dynamic_override does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.checkpoint import disk_parts
from compress.core.errors import ModelError
from export.source import Source

WORD = 32


def read_back(folder: Path, source: Source) -> Iterator[tuple[str, Tensor]]:
    """(layer, weight (O, I) float32) of every packed layer, as the files and settings in `folder` have it."""
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    with ExitStack() as stack:
        from safetensors import safe_open

        files = [stack.enter_context(safe_open(path, "np")) for path in sorted(folder.glob("*.safetensors"))]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (no mapping)
        for layer in source.layers:
            parts = disk_parts(layer, source.checkpoint.sources[layer.param]) if layer.tied_to is None else None
            bases = [key.removesuffix(".weight") for key, _, _ in parts or []]
            if bases and all(f"{base}.qweight" in where for base in bases):
                rows = [_module(base, where, rule(said, base)) for base in bases]
                yield layer.name, torch.from_numpy(np.concatenate(rows))


def kept(folder: Path, source: Source) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, as stored, as it should be), float32, of every tensor that is no part of a packed layer."""
    with ExitStack() as stack:
        from safetensors import safe_open

        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (no mapping)
        for key in source.checkpoint.entries:
            if f"{key.removesuffix('.weight')}.qweight" in where:
                continue
            stored = where[key].get_tensor(key) if key in where else torch.empty(0)
            yield key, stored.float(), source.checkpoint.read(key, torch.float32)


def rule(said: Mapping[str, Any], module: str) -> dict[str, Any]:
    """Settings of one module. Raises ModelError for one that the settings say is in float."""
    for pattern, values in said.get("dynamic", {}).items():
        if re.match(pattern[2:] if pattern[:2] in ("+:", "-:") else pattern, module):
            if pattern.startswith("-:"):
                raise ModelError(f"{module} is packed, {pattern} of its settings says that it is not")
            return {**said, **values}
    return dict(said)


def unpack(words: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """int32 (W, C) packed down the rows -> (W * 32 / bits, C): every bit on its own, lowest first."""
    lines = np.ascontiguousarray(words.T).astype("<i4").view(np.uint8)
    digits = np.unpackbits(lines, axis=1, bitorder="little")
    values = digits.reshape(len(lines), -1, bits) @ (1 << np.arange(bits))
    return np.ascontiguousarray(values.T)


def _module(base: str, where: Mapping[str, Any], said: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    weight, zeros, scales, index = (
        where[f"{base}.{part}"].get_tensor(f"{base}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")
    )
    codes = unpack(weight, said["bits"])
    zero = unpack(zeros.T, said["bits"]).T + (1 if said["checkpoint_format"] == "gptq" else 0)
    size = len(codes) if said["group_size"] == -1 else said["group_size"]
    if not np.array_equal(index, np.arange(len(codes)) // size):
        raise ModelError(f"{base}: g_idx is not in order")
    if said["sym"] and not (zero == 1 << (said["bits"] - 1)).all():
        raise ModelError(f"{base}: settings say symmetric, its zero points are not")
    values = (codes - zero[index]).astype(np.float32) * scales.astype(np.float32)[index]
    found: np.ndarray[Any, Any] = np.ascontiguousarray(values.T)
    return found
