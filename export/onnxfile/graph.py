"""The model as an ONNX graph whose matrices are still names: what `torch.onnx.export` makes of it, weights left out.

While the model is traced, every linear layer and every token embedding is one node of the domain `compress` that
carries the layer's name instead of a weight. So no weight is folded, transposed or renamed on the way, the codes of a
layer go exactly where the layer was (`export.onnxfile.rewrite`), and the big matrices are never in memory here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.core.checkpoint import fill_tied
from compress.core.errors import ModelError
from export.onnxfile.attention import fused
from export.source import Source

OPSET = 21
"""Of the standard operators: the first whose QuantizeLinear names the type of its codes."""

DOMAIN, LINEAR, EMBEDDING = "compress", "Linear", "Embedding"
SAME_SHAPE = "same_shape"


@dataclass(frozen=True)
class Traced:
    """What is traced: positional inputs by name, the dynamic axes of each (axis -> its name), names of the outputs."""

    inputs: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


def skeleton(source: Source) -> Any:
    """A copy of the model whose small weights are there, float32: those of layers that become nodes are empty."""
    source.checkpoint.fill_buffers()
    model = deepcopy(source.model).eval()
    model.set_attn_implementation("eager")  # its mask is always a tensor, so no length decides what is traced
    for module in matrices(model).values():
        fill_tied_weight(model, module)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            fill_tied(model, name, source.weight(name))
    model.requires_grad_(False)
    return model


def matrices(model: Any) -> dict[str, nn.Module]:
    """The modules that become nodes, by name: linear layers, and embeddings of tokens."""
    tokens = model.get_input_embeddings().weight if hasattr(model, "get_input_embeddings") else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Embedding) and module.weight is tokens)
    }


def fill_tied_weight(model: Any, module: nn.Module) -> None:
    """Put an empty tensor where a weight was that nothing will look at, under all its names."""
    weight = module.weight
    if isinstance(weight, Tensor) and weight.is_meta:
        name = next(n for n, p in model.named_parameters() if p is weight)
        fill_tied(model, name, torch.zeros(0))


@contextmanager
def named(model: Any) -> Iterator[None]:
    """Inside, linear layers and token embeddings of `model` are nodes that carry their names."""
    known = {id(module): name for name, module in matrices(model).items()}
    plain_linear, plain_embedding = nn.Linear.forward, nn.Embedding.forward

    def linear(self: nn.Linear, given: Tensor) -> Tensor:
        if id(self) not in known:
            return plain_linear(self, given)
        made = _node(LINEAR, known[id(self)], given, self.out_features)
        return made if self.bias is None else made + self.bias

    def embedding(self: nn.Embedding, given: Tensor) -> Tensor:
        if id(self) not in known:
            return plain_embedding(self, given)
        return _node(EMBEDDING, known[id(self)], given, self.embedding_dim)

    nn.Linear.forward, nn.Embedding.forward = linear, embedding  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Linear.forward, nn.Embedding.forward = plain_linear, plain_embedding  # type: ignore[method-assign]


def _node(kind: str, name: str, given: Tensor, width: int) -> Tensor:
    shape = [*(given.shape[:-1] if kind == LINEAR else given.shape), width]
    made: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", [given], attrs={"layer": name}, dtype=torch.float32, shape=shape, version=1
    )
    return made


@torch.no_grad()
def trace(model: nn.Module, called: nn.Module, what: Traced, one_attention: bool = False) -> Any:
    """The ModelProto of `called` (a module around `model`, or itself) on `what`, with nodes for matrices.

    one_attention: attention is MultiHeadAttention of com.microsoft where that is the same.
    """
    shapes = [dict.fromkeys(what.axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in what.inputs]
    with named(model), fused(model) if one_attention else nullcontext(), _quiet():
        try:
            program = torch.onnx.export(
                _ByList(called, list(what.inputs)),
                (list(what.inputs.values()),),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=list(what.inputs),
                output_names=list(what.outputs),
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            said = " ".join(str(error.__cause__ or error).split())[:200]
            raise ModelError(
                f"torch.onnx cannot trace {type(model).__name__}: {said}; export to another format"
            ) from None
    assert program is not None
    made = program.model_proto
    _name_axes(made, what)
    _name_weights(made)
    _part_norms(made)
    _drop_metadata(made)
    return made


class _ByList(nn.Module):
    """A module that is called with names, called with a list: the exporter keeps the order of a list."""

    def __init__(self, called: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.called, self.names = called, names

    def forward(self, given: list[Tensor]) -> Any:
        return self.called(**dict(zip(self.names, given, strict=True)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words about itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _name_axes(made: Any, what: Traced) -> None:
    """Give the dynamic axes of the inputs the names that servers know, wherever they occur."""
    names: dict[str, str] = {}
    for given in made.graph.input:
        for axis, name in what.axes.get(given.name, {}).items():
            names.setdefault(given.type.tensor_type.shape.dim[axis].dim_param, name)
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _name_weights(made: Any) -> None:
    """Weights are called as the model calls them, not as the modules around it do."""
    prefix = "called.model."
    for tensor in (*made.graph.initializer, *made.graph.value_info):
        tensor.name = tensor.name.removeprefix(prefix)
    for node in made.graph.node:
        node.input[:] = [name.removeprefix(prefix) for name in node.input]


def _part_norms(made: Any) -> None:
    """Put a Reshape to the same shape between a sum and the norm that reads it: onnxruntime makes one
    SkipLayerNormalization of the two otherwise, which takes ten times as long as the norm alone (1.32, CPU: 6.4 ms
    against 0.6 for 4096 x 384)."""
    from onnx import helper, numpy_helper

    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in made.graph.value_info}
    sums = {node.output[0] for node in made.graph.node if node.op_type == "Add"}
    nodes = []
    for node in made.graph.node:
        source = node.input[0] if node.op_type == "LayerNormalization" else ""
        if source in sums and ranks.get(source, 0) > 1:
            shape = f"{SAME_SHAPE}.{ranks[source]}"
            if all(tensor.name != shape for tensor in made.graph.initializer):
                kept = np.array([0] * (ranks[source] - 1) + [-1], np.int64)  # 0: as it is
                made.graph.initializer.append(numpy_helper.from_array(kept, shape))
            node.input[0] = f"{source}.parted"
            nodes.append(helper.make_node("Reshape", [source, shape], [node.input[0]], f"parted_{source}"))
        nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)


def _drop_metadata(made: Any) -> None:
    """Where in the Python source each node came from is of no use to a server, and names folders of this machine."""
    graph = made.graph
    for thing in (made, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del thing.metadata_props[:]
        if hasattr(thing, "doc_string"):
            thing.doc_string = ""
