"""ONNX files: written with their large weights inside or beside them, and read again without a runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.core.files import atomic_write

LIMIT = 1_800_000_000
"""Bytes of weights that are kept inside a file; protobuf ends at 2^31."""

SMALL = 1024
"""Bytes below which a weight stays inside in any case: shapes and numbers that graph passes look at."""

Array = npt.NDArray[Any]


def save(folder: Path, models: Mapping[str, Any], limit: int = LIMIT, shared: str = "") -> None:
    """Write ModelProtos by file name; weights go to NAME_data beside it when they are many.

    shared: one file for the weights of all models, each of them once. Models are emptied of what went there.
    """
    from onnx import checker

    places: dict[str, dict[str, tuple[int, int]]] = {}
    for name, model in models.items():
        large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= SMALL]
        if shared or sum(len(tensor.raw_data) for tensor in large) > limit:
            file = shared or f"{name}_data"
            _put_aside(folder / file, large, places.setdefault(file, {}))
        atomic_write(folder / name, [model.SerializeToString()])
        checker.check_model(str(folder / name), full_check=False)


def _put_aside(path: Path, tensors: list[Any], places: dict[str, tuple[int, int]]) -> None:
    """Append the bytes of `tensors` to `path`, those that are in `places` (name -> offset, length) already left out."""
    from onnx import TensorProto

    with path.open("ab") as file:
        for tensor in tensors:
            if tensor.name not in places:
                file.write(b"\0" * (-file.tell() % 4096 if len(tensor.raw_data) >= 4096 else -file.tell() % 64))
                places[tensor.name] = (file.tell(), len(tensor.raw_data))
                file.write(tensor.raw_data)
            offset, length = places[tensor.name]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in (("location", path.name), ("offset", str(offset)), ("length", str(length))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value


class OnnxFile:
    """The weights of an ONNX file by name, and the nodes that read them; read by the onnx package."""

    def __init__(self, path: Path) -> None:
        """Open `path`; weights beside it are read when they are asked for."""
        import onnx

        self.folder = path.parent
        self.graph = onnx.load_model(str(path), load_external_data=False).graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def array(self, name: str) -> Array:
        """A weight."""
        from onnx import numpy_helper

        found: Array = numpy_helper.to_array(self.tensors[name], str(self.folder))
        return found

    def names(self, suffix: str) -> Iterator[str]:
        """The weights whose names end so, without the ending."""
        for name in self.tensors:
            if name.endswith(suffix):
                yield name.removesuffix(suffix)

    def reader(self, name: str, kinds: tuple[str, ...]) -> Any:
        """The first node of one of these kinds that reads `name`; None when there is none."""
        return next((node for node in self.readers.get(name, ()) if node.op_type in kinds), None)


def attribute(node: Any, name: str) -> int:
    """A whole number of a node."""
    return next(int(found.i) for found in node.attribute if found.name == name)


def unpacked(packed: Array, bits: int) -> Array:
    """Codes (..., n) of bytes (..., n * bits / 8), the lowest bits first; through numpy's own bit order."""
    if bits == 8:
        return packed
    flat = np.unpackbits(packed, axis=-1, bitorder="little")
    digits = flat.reshape(*packed.shape[:-1], -1, bits)
    found: Array = np.packbits(digits, axis=-1, bitorder="little")[..., 0]
    return found
