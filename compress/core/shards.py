"""Weights written as one safetensors file, or as several with an index where they are too large for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compress.core.files import write_json
from compress.core.safetensors_file import Pending, write_file

LIMIT = 5_000_000_000


def write_sharded(folder: Path, tensors: Mapping[str, Pending], limit: int = LIMIT, stem: str = "model") -> None:
    """Write `tensors` in their order, one in memory at a time, no file above `limit` bytes unless one tensor is.

    stem: how the files are called.

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
        write_file(folder / f"{stem}.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(item.nbytes for item in tensors.values())
    told = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / f"{stem}.safetensors.index.json", told)
