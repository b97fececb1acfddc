"""A graph of float32 matrices, rewritten: codes where there are some, 16 bits where those hold the value exactly.

Which initializer is which layer is found by its values: the graph was built from a checkpoint in which every layer with
codes had exactly the weight they stand for, so a name of the builder's can never mislead. What was found is named in
the node's metadata (`compress.layer`). A table that rows are looked up in is looked up as it is stored, and one that is
tied to the head is there once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from torch import Tensor

from compress.core.errors import CompressError
from compress.core.files import atomic_write
from compress.core.numerics.affine import dequantize
from compress.core.types import QTensor
from export.genai.nbits import NBits, pack
from export.genai.whole import digest

GRAPH, DATA = "model.onnx", "model.onnx.data"
MARK, ROWS = "compress.layer", "compress.rows"
ALIGN = 4096
SMALL = 1024  # bytes: what stays in the graph's own file
NARROW = 4096  # elements: below, 16 bits are not worth a node
DOMAIN = "com.microsoft"
_TYPES = {
    torch.float32: TensorProto.FLOAT, torch.bfloat16: TensorProto.BFLOAT16, torch.float16: TensorProto.FLOAT16,
    torch.uint8: TensorProto.UINT8, torch.int64: TensorProto.INT64, torch.int32: TensorProto.INT32,
    torch.bool: TensorProto.BOOL,
}  # fmt: skip


class Rewriter:
    """One graph being rewritten. names: layers by the digest of their weight. level: accuracy_level of MatMulNBits."""

    def __init__(self, built: Path, names: Mapping[bytes, str], codes: Callable[[str], QTensor], level: int) -> None:
        self.built, self.names, self.codes, self.level = built, names, codes, level
        self.model = onnx.load(built / GRAPH, load_external_data=False)
        self.initial = {item.name: item for item in self.model.graph.initializer}
        self.users: dict[str, list[Any]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.tensors: dict[str, Tensor] = {}
        self.front: list[Any] = []
        self.instead: dict[str, list[Any]] = {}
        self.found: dict[str, int] = {}

    def write(self, out: Path) -> None:
        """Write the graph and its data into `out`. Raises CompressError when a layer is not in the graph."""
        left = [name for name, item in self.initial.items() if not self._coded(name, self._value(item))]
        for layer in sorted(set(self.names.values()) - set(self.found)):
            left = self._cut(layer, left)
        for name in left:
            self._kept(name, self._value(self.initial[name]))
        graph = self.model.graph
        nodes = [new for node in graph.node for new in self.instead.get(node.name, [node])]
        del graph.node[:], graph.initializer[:]
        graph.node.extend([*self.front, *nodes])
        _save(self.model, out, self.tensors)

    def _coded(self, name: str, value: Tensor) -> bool:
        """Put codes in the place of `name` where it is a layer's weight (O, I) for a look-up, or its transpose."""
        if value.dtype != torch.float32 or value.dim() != 2:
            return False
        multiplied = self._products(name)
        looked, between = self._look_ups(name)
        layer = self.names.get(digest(value.t() if multiplied else value))
        if layer is None or len(multiplied) + len(looked) == 0:
            return False
        if {n.name for n in self.users[name]} != {n.name for n in (*multiplied, *(between or looked))}:
            raise CompressError(f"the builder's graph uses {layer} in an unknown way; report this model")
        q = self.codes(layer)
        held, names = self._store(name, q)
        for node in multiplied:
            self.instead[node.name] = [self._product(node, layer, names, held, q.codes.shape)]
        for node in between:
            self.instead[node.name] = []
        if looked:
            self._table(looked, layer, names, held)
        self.found[layer] = len(q.codes)
        return True

    def _cut(self, layer: str, left: list[str]) -> list[str]:
        """Find a layer that the builder cut into several matrices by its rows; what is left then.

        Raises CompressError when not all of its rows are there, once each.
        """
        q = self.codes(layer)
        weight = dequantize(q)
        starts: dict[int, int] = {}
        for name in left:
            multiplied = self._products(name)
            dims = list(self.initial[name].dims)
            if not multiplied or len(dims) != 2 or dims[0] != weight.shape[1] or dims[1] >= len(weight):
                continue
            rows = self._value(self.initial[name]).t()
            for start in (weight == rows[0]).all(1).nonzero().flatten().tolist():
                if start not in starts and torch.equal(weight[start : start + len(rows)], rows):
                    part = _rows(q, start, start + len(rows))
                    held, names = self._store(name, part)
                    for node in multiplied:
                        made = self._product(node, layer, names, held, part.codes.shape)
                        made.metadata_props.add(key=ROWS, value=str(start))
                        self.instead[node.name] = [made]
                    starts[start] = len(rows)
                    left = [other for other in left if other != name]
                    break
        if sum(starts.values()) != len(weight):
            raise CompressError(f"the builder's graph has no matrix with the weight of {layer}; report this model")
        self.found[layer] = len(weight)
        return left

    def _products(self, name: str) -> list[Any]:
        return [node for node in self.users.get(name, []) if node.op_type == "MatMul" and node.input[1] == name]

    def _store(self, name: str, q: QTensor) -> tuple[NBits, list[str]]:
        """Pack codes under names made of the builder's; a name is empty for what there is none of."""
        held, base = pack(q), name.removesuffix(".weight").removesuffix(".MatMul")
        parts = {"qweight": held.weight, "scales": held.scales, "qzeros": held.zero}
        self.tensors |= {f"{base}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
        return held, [f"{base}.{part}" if tensor is not None else "" for part, tensor in parts.items()]

    def _product(self, node: Any, layer: str, names: list[str], held: NBits, shape: torch.Size) -> Any:
        inputs = [node.input[0], *names] if names[2] else [node.input[0], *names[:2]]
        made = helper.make_node(
            "MatMulNBits", inputs, list(node.output), f"{node.name}NBits", domain=DOMAIN, K=shape[1], N=shape[0],
            bits=held.bits, block_size=held.block, accuracy_level=self.level,
        )  # fmt: skip
        made.metadata_props.add(key=MARK, value=layer)
        return made

    def _table(self, looked: list[Any], layer: str, names: list[str], held: NBits) -> None:
        """Look-ups in codes: the same bytes as rows, and the zero point that GatherBlockQuantized does not assume."""
        shape, rows, zero = f"{names[0]}.shape", f"{names[0]}.rows", names[2] or f"{names[0]}.zero"
        self.tensors[shape] = torch.tensor([held.weight.shape[0], -1])
        if not names[2]:
            whole = 0x88 if held.bits == 4 else 0x80
            columns = -(-held.weight.shape[1] * held.bits // 8)
            self.tensors[zero] = torch.full((held.weight.shape[0], columns), whole, dtype=torch.uint8)
        self.front.append(helper.make_node("Reshape", [names[0], shape], [rows], f"{rows}.Reshape"))
        for node in looked:
            made = helper.make_node(
                "GatherBlockQuantized", [rows, node.input[1], names[1], zero], list(node.output), f"{node.name}NBits",
                domain=DOMAIN, bits=held.bits, block_size=held.block, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
            made.metadata_props.add(key=MARK, value=layer)
            self.instead[node.name] = [made]

    def _kept(self, name: str, value: Tensor) -> None:
        """Store a tensor as it is, or in the 16 bits that hold it, cast where it is used."""
        narrow = _narrow(value)
        if narrow is None:
            self.tensors[name] = value
            return
        looked, between = self._look_ups(name)
        others = len(self.users.get(name, [])) > len(between or looked)
        stored, whole = f"{name}.{str(narrow.dtype).removeprefix('torch.')}", name
        if between:  # kept as the rows that are looked up; what multiplies sees them transposed
            narrow, whole = narrow.t().contiguous(), f"{name}.rows"
        self.tensors[stored] = narrow
        for node in between:
            self.instead[node.name] = []
        for node in looked:
            raw = f"{node.output[0]}.{stored}"
            gather = helper.make_node("Gather", [stored, node.input[1]], [raw], node.name, axis=0)
            cast = helper.make_node("Cast", [raw], list(node.output), f"{node.name}.Cast", to=TensorProto.FLOAT)
            self.instead[node.name] = [gather, cast]
        if others or not looked:
            self.front.append(helper.make_node("Cast", [stored], [whole], f"{whole}.Cast", to=TensorProto.FLOAT))
            if between:
                self.front.append(helper.make_node("Transpose", [whole], [name], f"{whole}.Transpose", perm=[1, 0]))

    def _look_ups(self, name: str) -> tuple[list[Any], list[Any]]:
        """Nodes that look rows up in `name`, or in its transpose, and then the nodes that transpose it."""
        direct = [n for n in self.users.get(name, []) if n.op_type == "Gather" and n.input[0] == name]
        if direct:
            return direct, []
        turned = [n for n in self.users.get(name, []) if n.op_type == "Transpose"]
        found = [user for node in turned for user in self.users.get(node.output[0], [])]
        whole = bool(found) and all(
            user.op_type == "Gather" and user.input[0] in {t.output[0] for t in turned} for user in found
        )
        return (found, turned) if whole else ([], [])

    def _value(self, item: Any) -> Tensor:
        held = TensorProto()
        held.CopyFrom(item)
        if held.external_data:
            external_data_helper.load_external_data_for_tensor(held, str(self.built))
        return torch.from_numpy(np.array(numpy_helper.to_array(held)))


def read(path: Path) -> Iterator[tuple[str, int, Any, list[Any]]]:
    """(layer, its first row, node, initializers by position) of every marked node, by onnx's own reader."""
    model = onnx.load(path, load_external_data=False)
    initial = {item.name: item for item in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "Reshape"}
    for node in model.graph.node:
        layer = next((entry.value for entry in node.metadata_props if entry.key == MARK), None)
        if layer is None:
            continue
        start = next((int(entry.value) for entry in node.metadata_props if entry.key == ROWS), 0)
        names = [made[name].input[0] if name in made else name for name in node.input]
        held: list[Any] = []
        for name in names:
            if name not in initial:
                held.append(None)
                continue
            item = TensorProto()
            item.CopyFrom(initial[name])
            if item.external_data:
                external_data_helper.load_external_data_for_tensor(item, str(path.parent))
            held.append(numpy_helper.to_array(item))
        yield layer, start, node, held


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _rows(q: QTensor, first: int, last: int) -> QTensor:
    zero = q.zero[first:last] if q.zero is not None else None
    return QTensor(q.codes[first:last], q.scale[first:last], zero, q.scheme)


def _narrow(value: Tensor) -> Tensor | None:
    if value.dtype != torch.float32 or value.numel() < NARROW:
        return None
    for dtype in (torch.bfloat16, torch.float16):
        narrow = value.to(dtype)
        if torch.equal(narrow.float(), value):
            return narrow
    return None


def _save(model: Any, out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Small tensors into the graph's file, others beside it."""
    offset, large = 0, []
    for name, tensor in tensors.items():
        item = TensorProto(name=name, data_type=_TYPES[tensor.dtype], dims=list(tensor.shape))
        size = tensor.numel() * tensor.dtype.itemsize
        if size < SMALL:
            item.raw_data = _raw(tensor)
        else:
            item.data_location = TensorProto.EXTERNAL
            for key, value in (("location", DATA), ("offset", offset), ("length", size)):
                item.external_data.add(key=key, value=str(value))
            large.append(tensor)
            offset += size + -size % ALIGN
        model.graph.initializer.append(item)

    def chunks() -> Iterator[bytes]:
        for tensor in large:
            data = _raw(tensor)
            yield data
            yield bytes(-len(data) % ALIGN)

    atomic_write(out / DATA, chunks())
    atomic_write(out / GRAPH, [model.SerializeToString()])


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
