"""Nodes with layers' names become operators with their codes: what onnxruntime computes from them, what an independent
reader finds in the file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from compress.core.numerics.activation import Grid, fake_quantize, integer_linear, static_grid
from compress.core.numerics.affine import dequantize
from compress.core.types import ActScheme, LayerRef, QTensor, Scheme
from export.formats import onnx as form
from export.onnxfile import file as onnx_file
from export.onnxfile import read as onnx_read
from export.onnxfile.graph import DOMAIN, OPSET
from export.onnxfile.rewrite import Writer, block_size, pack_row, rewrite
from export.source import Coded

TOKEN = ActScheme("token", True, True)
ROWS, WORDS = 24, 40


def quantized(scheme: Scheme, shape: tuple[int, int], seed: int = 0) -> QTensor:
    """Random codes over the whole range, scales, zero points where the scheme has them."""
    draw = torch.Generator().manual_seed(seed)
    groups = scheme.groups(shape[1])
    codes = torch.randint(0, 2**scheme.bits, shape, generator=draw, dtype=torch.uint8)
    scale = torch.rand(shape[0], groups, generator=draw) + 0.1
    zero = None
    if not scheme.symmetric:
        zero = torch.randint(0, 2**scheme.bits, (shape[0], groups), generator=draw, dtype=torch.uint8)
    return QTensor(codes, scale, zero, scheme)


class Fake:
    """A source of one layer `a`, of two that read the same, or of an embedding that a head may be tied to."""

    def __init__(self, q: QTensor, activation: ActScheme | None = None, grid: Grid | None = None, tied: bool = False):
        self.q, self.grid = q, grid
        container = "embedding" if tied else "linear"
        shape = (int(q.codes.shape[0]), int(q.codes.shape[1]))
        layers = [LayerRef("a", "a.weight", shape, 0, "x", container)]  # type: ignore[arg-type]
        if tied:
            layers.append(LayerRef("b", "a.weight", shape, 0, "x", tied_to="a.weight"))
        else:
            layers.append(LayerRef("b", "b.weight", shape, 0, "x"))
        self.layers = tuple(layers)
        self.coded = {layer.name: Coded(layer, q.scheme, activation, False) for layer in layers if not layer.tied_to}
        self.by_param = {coded.layer.param: coded for coded in self.coded.values()}

    def codes(self, name: str) -> QTensor:
        return self.q

    def input_grid(self, name: str) -> Grid | None:
        return self.grid


def graph(nodes: list[Any], inputs: list[Any], outputs: list[str]) -> Any:
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", None]) for name in outputs]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, made), opset_imports=opsets, ir_version=10)


def linears(source: Fake, *names: str, **options: Any) -> tuple[Any, Writer]:
    """Layers that all read `x` (b, s, columns), rewritten."""
    nodes = [helper.make_node("Linear", ["x"], [f"y{n}"], domain=DOMAIN, layer=name) for n, name in enumerate(names)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", int(source.q.codes.shape[1])])
    made = graph(nodes, [x], [f"y{n}" for n in range(len(names))])
    writer = Writer(source, 1, **options)  # type: ignore[arg-type]
    rewrite(made, writer)
    return made, writer


def computed(made: Any, **inputs: Tensor) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(found) for found in session.run(None, {n: v.numpy() for n, v in inputs.items()})]


def values(columns: int, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 7, columns, generator=draw) * torch.tensor([0.5, 4.0])[:, None, None]


def near(found: Tensor, expected: Tensor, share: float = 2e-6) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= share * float(expected.abs().max())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [96, WORDS, 100])
@pytest.mark.parametrize("group", [32, 16, 48, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_weights_alone(tmp_path: Path, bits: int, group: int, columns: int, symmetric: bool) -> None:
    """Codes, scales and zero points are those of the layer, in the file and in the product."""
    q = quantized(Scheme("int", bits, group, symmetric, "float32"), (ROWS, columns))
    made, writer = linears(Fake(q), "a")
    x = values(columns)
    near(computed(made, x=x)[0], x @ dequantize(q).T)
    onnx_file.save(tmp_path, {"model.onnx": made})
    (name, weight), *more = onnx_read.weights(tmp_path)
    assert (name, more, list(writer.packed)) == ("a", [], ["a"])
    assert torch.equal(weight, dequantize(q))


def test_codes_are_where_the_specification_has_them() -> None:
    """By hand: the first code in the lowest bits."""
    assert pack_row(torch.tensor([[1, 2, 15]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x0F]]
    assert pack_row(torch.tensor([[1, 2, 3, 0, 2]], dtype=torch.uint8), 2).tolist() == [[0b00111001, 2]]
    assert onnx_file.unpacked(np.array([[0x21, 0x0F]], np.uint8), 4).tolist() == [[1, 2, 15, 0]]


def test_blocks_divide_groups() -> None:
    asked = {(32, 96): 32, (48, 96): 16, (96, 96): 32, (24, 96): 0, (-1, 384): 128, (-1, 100): 16, (64, 64): 64}
    assert {key: block_size(*key) for key in asked} == asked


def test_static_inputs_are_fused_to_integers(tmp_path: Path) -> None:
    q = quantized(Scheme("int", 8, -1, True, "float32"), (ROWS, WORDS))
    scheme = ActScheme("tensor", False, False)
    grid = static_grid(-3.0, 9.0, scheme)
    source = Fake(q, scheme, grid)
    made, _ = linears(source, "a", "b")
    x = values(WORDS)
    expected = integer_linear(x, q, scheme, grid, None)
    for found in computed(made, x=x):
        near(found, expected)
    assert [n.op_type for n in made.graph.node].count("QuantizeLinear") == 1  # once for both
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 3
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load_model(str(tmp_path / "fused.onnx")).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert "MatMul" not in kinds
    onnx_file.save(tmp_path, {"model.onnx": made})
    assert all(torch.equal(weight, dequantize(q)) for _, weight in onnx_read.weights(tmp_path))


def test_signed_static_inputs() -> None:
    q = quantized(Scheme("int", 8, -1, True, "float32"), (ROWS, WORDS))
    scheme = ActScheme("tensor", False, True)
    grid = static_grid(-3.0, 9.0, scheme)
    made, writer = linears(Fake(q, scheme, grid), "a", signed=True)
    zero = onnx.numpy_helper.to_array(writer.initializers["a.input_zero_point"])
    assert (zero.dtype, int(zero)) == (np.int8, 0)
    x = values(WORDS)
    near(computed(made, x=x)[0], integer_linear(x, q, scheme, grid, None))


@pytest.mark.parametrize("scheme", [TOKEN, ActScheme("tensor", True, True), ActScheme("tensor", True, False)])
def test_dynamic_inputs(tmp_path: Path, scheme: ActScheme) -> None:
    """Each token, or the whole tensor, on the grid that the artifact means; rounded once for both layers."""
    q = quantized(Scheme("int", 8, -1, True, "float32"), (ROWS, WORDS))
    made, _ = linears(Fake(q, scheme), "a", "b")
    x = values(WORDS)
    x[0, 3] = 0.0  # a token of nothing
    expected = integer_linear(x, q, scheme, None, None)
    for found in computed(made, x=x):
        near(found, expected)
    kinds = [n.op_type for n in made.graph.node]
    assert kinds.count("QuantizeLinear") + kinds.count("DynamicQuantizeLinear") == 1
    assert "MatMul" not in kinds
    onnx_file.save(tmp_path, {"model.onnx": made})
    assert all(torch.equal(weight, dequantize(q)) for _, weight in onnx_read.weights(tmp_path))


@pytest.mark.parametrize("scheme", [TOKEN, ActScheme("tensor", False, False)])
def test_groups_and_int8_inputs(scheme: ActScheme) -> None:
    """No integer product: inputs are rounded, and the product is one of floats."""
    q = quantized(Scheme("int", 4, 16, True, "float32"), (ROWS, WORDS))
    grid = None if scheme.dynamic else static_grid(-3.0, 9.0, scheme)
    made, _ = linears(Fake(q, scheme, grid), "a", "b")
    x = values(WORDS)
    expected = fake_quantize(x, scheme, grid) @ dequantize(q).T
    for found in computed(made, x=x):
        near(found, expected)


@pytest.mark.parametrize("columns", [WORDS, 96, 36])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings(tmp_path: Path, columns: int, tied: bool) -> None:
    q = quantized(Scheme("int", 8, -1, True, "float32"), (ROWS, columns))
    source = Fake(q, tied=tied)
    nodes = [helper.make_node("Embedding", ["ids"], ["e"], domain=DOMAIN, layer="a")]
    if tied:
        nodes.append(helper.make_node("Linear", ["e"], ["y"], domain=DOMAIN, layer="b"))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])
    made = graph(nodes, [ids], ["e", "y"] if tied else ["e"])
    rewrite(made, Writer(source, 1))  # type: ignore[arg-type]
    given = torch.tensor([[0, 5, ROWS - 1], [7, 7, 2]])
    whole = dequantize(q)
    found = computed(made, ids=given)
    assert torch.equal(found[0], whole[given])
    if tied:
        near(found[1], whole[given] @ whole.T)
    codes = [t for t in made.graph.initializer if t.dims and int(np.prod(t.dims)) >= ROWS * columns]
    assert len(codes) == 1  # stored once
    onnx_file.save(tmp_path, {"model.onnx": made})
    assert [(n, torch.equal(w, whole)) for n, w in onnx_read.weights(tmp_path)] == [("a", True)]


def test_large_files_have_their_weights_beside_them(tmp_path: Path) -> None:
    q = quantized(Scheme("int", 8, -1, True, "float32"), (ROWS, 96))
    made, _ = linears(Fake(q), "a")
    onnx_file.save(tmp_path, {"model.onnx": made}, limit=0)
    assert (tmp_path / "model.onnx_data").stat().st_size >= ROWS * 96
    assert (tmp_path / "model.onnx").stat().st_size < ROWS * 96
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    x = values(96)
    near(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), x @ dequantize(q).T)
    assert all(torch.equal(weight, dequantize(q)) for _, weight in onnx_read.weights(tmp_path))


@pytest.mark.parametrize(
    ("scheme", "activation", "said"),
    [
        (Scheme("int", 4, 24, True), None, "--group-size 32"),
        (Scheme("int", 8, -1, True), ActScheme("token", True, False), "--act-symmetric"),
    ],
)
def test_what_it_cannot_hold_is_refused(scheme: Scheme, activation: ActScheme | None, said: str) -> None:
    fake: Any = Fake(quantized(scheme, (ROWS, 96)), activation)
    fake.checkpoint = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    fake.model = SimpleNamespace(can_generate=lambda: False, main_input_name="input_ids")
    assert said in str(form.refuses(fake, form.Options()))
    assert form.refuses(fake, form.Options(weights="float32")) is None
