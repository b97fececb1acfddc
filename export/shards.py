"""Weights written as one safetensors file, or as several with an index where they are too large for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compress.core.checkpoint import INDEX, SINGLE
from compress.core.files import write_json
from compress.core.safetensors_file import Pending, write_file

LIMIT = 5_000_000_000


def write_sharded(folder: Path, tensors: Mapping[str, Pending], limit: int = LIMIT) -> None:
    """Write `tensors` in their order, one in memory at a time, no file above `limit` bytes unless one tensor is.

    Raises StorageError when the disk is full.
    """
    shards: list[dict[str, Pending]] = [{}]
    size = 0
    for name, item in tensors.items():
        if shards[-1] and size + item.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = item
        size += item.nbytes
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(item.nbytes for item in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
