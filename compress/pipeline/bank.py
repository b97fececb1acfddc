"""The bank: codes of every layer at every scheme that may be chosen for it, solved once, on disk by block."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from compress.core.numerics.affine import dequantize
from compress.core.safetensors_file import Pending, pending, read_header, read_tensor, write_file
from compress.core.types import QTensor, Scheme
from compress.pipeline.solve import Solved
from compress.pipeline.store import read_metadata

PARTS = ("codes", "scale", "zero", "minimum")


class Bank:
    """One file for each block in the folder `work`; -1 is what lies outside the blocks."""

    def __init__(self, work: Path, schemes: Iterable[Scheme]) -> None:
        """schemes: all that are in it."""
        self.work, self.schemes = work, {scheme.name: scheme for scheme in schemes}

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.work / ("bank-outside.safetensors" if block < 0 else f"bank-{block:05d}.safetensors")

    def write(self, block: int, solved: Iterable[Solved]) -> None:
        """Put a block's codes on disk."""
        tensors: dict[str, Pending] = {}
        names: list[list[str]] = []
        for item in solved:
            number = len(names)
            names.append([item.layer.name, item.q.scheme.name])
            for part in PARTS:
                tensor: Tensor | None = getattr(item.q, part)
                if tensor is not None:
                    tensors[f"{number}.{part}"] = pending(tensor)
        write_file(self.path(block), tensors, {"names": json.dumps(names)})

    def names(self, block: int) -> set[str]:
        """The layers of a block that are in it."""
        path = self.path(block)
        return {layer for layer, _ in json.loads(read_metadata(path)["names"])} if path.is_file() else set()

    def read(self, block: int) -> Mapping[tuple[str, str], QTensor]:
        """(layer, scheme) -> codes, of a block."""
        path = self.path(block)
        entries = read_header(path)
        found = {}
        for number, (layer, scheme) in enumerate(json.loads(read_metadata(path)["names"])):
            parts = {p: read_tensor(entries[k]) for p in PARTS if (k := f"{number}.{p}") in entries}
            found[layer, scheme] = QTensor(
                parts["codes"], parts["scale"], parts.get("zero"), self.schemes[scheme], parts.get("minimum")
            )
        return found

    def changes(self, block: int, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Layer -> scheme -> what its codes add to the weight (O, I), float32; of a block's layers, with weights."""
        found: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
        for (name, scheme), q in self.read(block).items():
            if name in weights:
                found[name][scheme] = dequantize(q) - weights[name]
        return found
