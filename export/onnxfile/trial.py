"""Graphs that are timed and then thrown away: a model before its codes are solved, and some of its layers alone.

Nodes are those that the exporter writes, weights are the model's own, rounded to nearest: times depend on the operators
and on the sizes of what they read, and values must only be ordinary ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.core.blocks import read_weight
from compress.core.numerics.grid import minmax_grid, round_to_nearest
from compress.core.types import LayerRef, QTensor
from export.onnxfile import encoder, file
from export.onnxfile.graph import OPSET, skeleton, trace
from export.onnxfile.rewrite import Writer, linear, rewrite
from export.source import Planned

ROWS = ("batch_size", "sequence_length")


class Drawn(Planned):
    """An artifact that is still to be made, with codes: weights rounded to nearest. Static input grids it has none."""

    def codes(self, name: str) -> QTensor:
        """Codes of a layer of `coded`."""
        coded = self.coded[name]
        weight: Tensor = read_weight(coded.layer, self.checkpoint.load(coded.layer.param))
        return round_to_nearest(weight.float(), minmax_grid(weight.float(), coded.scheme), coded.scheme)


def traced(source: Planned) -> Any:
    """The ModelProto of an encoder, with names where matrices will be. Raises ModelError when it cannot be traced."""
    asked = encoder.what(source)
    model = skeleton(source)
    return trace(model, encoder.called(model, asked), asked, one_attention=True)


def write_whole(path: Path, graph: Any, source: Drawn) -> None:
    """Write the model as `source` plans it to `path`. graph: of `traced`, not changed."""
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(graph)
    rewrite(made, _writer(source))
    file.save(path.parent, {path.name: made})


def write_alone(path: Path, source: Drawn, groups: Sequence[Sequence[LayerRef]]) -> None:
    """Write a model of nothing but some layers, biases included; each group reads an input of its own (B, L, I)."""
    from onnx import TensorProto, helper

    writer = _writer(source)
    inputs, outputs = [], []
    for number, layers in enumerate(groups):
        x = f"x{number}"
        writer.rows[x] = ROWS  # the same for all, as inside the model
        inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [*ROWS, layers[0].shape[1]]))
        for layer in layers:
            out = f"{layer.name}.out"
            bias = _bias(source, layer)
            linear(writer, layer.name, x, f"{layer.name}.product" if bias else out)
            if bias:
                kept = writer.weight(bias, lambda bias=bias: source.weight(bias).numpy())  # type: ignore[misc]
                writer.node("Add", [f"{layer.name}.product", kept], out=out)
            outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [*ROWS, layer.shape[0]]))
    graph = helper.make_graph(writer.nodes, "layers", inputs, outputs, list(writer.initializers.values()))
    domains = {node.domain for node in writer.nodes} - {""}
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    file.save(path.parent, {path.name: helper.make_model(graph, opset_imports=opsets, ir_version=10)})


def _writer(source: Drawn) -> Writer:
    """With the options that an export has unless others are given."""
    return Writer(source, accuracy_level=1)


def _bias(source: Drawn, layer: LayerRef) -> str | None:
    name = f"{layer.param.rpartition('.')[0]}.bias"
    return name if name in source.checkpoint.sources else None
