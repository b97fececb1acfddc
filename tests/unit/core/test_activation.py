"""Int8 activations against compressed-tensors, integer sums and onnxruntime's own operators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as theirs
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor, nn

from compress.core.errors import ModelError, RecipeError
from compress.core.numerics import activation as act
from compress.core.numerics.affine import dequantize
from compress.core.types import ActScheme, QTensor, Scheme
from compress.methods.rtn import METHOD as RTN

TOKEN = ActScheme("token", True, True)
SCHEMES = [TOKEN, ActScheme("token", True, False), ActScheme("tensor", True, True), ActScheme("tensor", True, False)]


def inputs(seed: int = 0, width: int = 96) -> Tensor:
    x = torch.randn(3, 17, width, generator=torch.Generator().manual_seed(seed))
    x[..., 5] *= 30  # an outlying channel
    return x + 0.3


def arguments(scheme: ActScheme) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=8, type="int", symmetric=scheme.symmetric, strategy=scheme.strategy, dynamic=scheme.dynamic
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_dynamic_rounding_is_that_of_compressed_tensors(scheme: ActScheme) -> None:
    x = inputs()
    args = arguments(scheme)
    scale, zero = compute_dynamic_scales_and_zp(x, args, nn.Identity())
    assert torch.equal(act.fake_quantize(x, scheme), theirs(x, scale, zero, args))


@pytest.mark.parametrize("symmetric", [True, False])
def test_static_rounding_is_that_of_compressed_tensors(symmetric: bool) -> None:
    scheme = ActScheme("tensor", False, symmetric, "minmax")
    x = inputs()
    grid = act.static_grid(float(x.min()) / 2, float(x.max()) / 2, scheme)
    args = arguments(scheme)
    assert torch.equal(act.fake_quantize(x, scheme, grid), theirs(x, grid.scale, grid.zero, args))
    # a cast to bfloat16 keeps the scale
    assert torch.equal(grid.scale.bfloat16().float(), grid.scale)


def test_onnx_rounds_before_it_adds_the_zero() -> None:
    """Against onnxruntime's QuantizeLinear, on values that the addition of the zero makes into ties."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    scale = 2.0**-5
    x = torch.cat([inputs().flatten(), -(torch.arange(500) * 2.0**-26 + 0.5) * scale]).reshape(1, -1)
    grid = act.Grid(torch.tensor([scale]), torch.tensor([-126], dtype=torch.int8))
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"])
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("codes", TensorProto.INT8, list(x.shape))],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
            helper.make_tensor("zero", TensorProto.INT8, [], [-126]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": x.numpy()})
    assert torch.equal(act.quantize_linear(x, grid), torch.from_numpy(theirs).float())
    assert not torch.equal(act.codes_of(x, grid), torch.from_numpy(theirs).float())


def test_a_static_grid_covers_its_ends_and_zero() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0)):
        for symmetric in (True, False):
            scheme = ActScheme("tensor", False, symmetric, "minmax")
            grid = act.static_grid(low, high, scheme)
            step = float(grid.scale)
            ends = torch.tensor([low, high])
            assert float((act.fake_quantize(ends, scheme, grid) - ends).abs().max()) <= step * 1.01
            assert float(act.fake_quantize(torch.zeros(1), scheme, grid)) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_ends_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ModelError, match="must be finite"):
        act.static_grid(-1.0, bad, ActScheme("tensor", False, True, "mse"))


def quantized(rows: int, columns: int) -> QTensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))
    q, _ = RTN.quantize(weight, None, Scheme("int", 8, -1, True, "float32", 8), RTN.options())
    return q


@pytest.mark.parametrize("scheme", [*SCHEMES, ActScheme("tensor", False, False, "minmax")], ids=lambda s: s.name)
@pytest.mark.parametrize("columns", [96, 2100])  # past EXACT_COLUMNS
def test_integer_sums_are_exact(scheme: ActScheme, columns: int) -> None:
    x, q, bias = inputs(1, columns), quantized(11, columns), torch.linspace(-1, 1, 11)
    grid = act.dynamic_grid(x, scheme) if scheme.dynamic else act.static_grid(float(x.min()), float(x.max()), scheme)
    zero = 0 if grid.zero is None else grid.zero.long()
    codes = act.codes_of(x, grid).long() - zero
    whole = torch.einsum("bti,oi->bto", codes, q.codes.long() - 128)  # int64
    expected = whole.float() * (grid.scale * q.scale.T) + bias
    got = act.integer_linear(x, q, scheme, None if scheme.dynamic else grid, bias)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_float_simulation_and_integers_differ_by_float_sums_only(scheme: ActScheme) -> None:
    x, q = inputs(2), quantized(64, 96)
    simulated = nn.functional.linear(act.fake_quantize(x, scheme), dequantize(q))
    exact = act.integer_linear(x, q, scheme, None, None)
    magnitude = act.fake_quantize(x, scheme).abs() @ dequantize(q).abs().T
    assert float(((simulated - exact).abs() / magnitude).max()) < 96 * 2**-24


def test_integer_layers_need_whole_symmetric_rows() -> None:
    weight = torch.randn(8, 64)
    q, _ = RTN.quantize(weight, None, Scheme("int", 8, 32, True), RTN.options())
    with pytest.raises(RecipeError, match="whole symmetric rows"):
        act.integer_linear(torch.randn(2, 64), q, TOKEN, None, None)


def test_tokens_have_no_static_grid() -> None:
    with pytest.raises(RecipeError, match="not known beforehand"):
        ActScheme("token", dynamic=False)


def run_onnx(nodes: list[Any], tensors: dict[str, Any], x: Tensor, outputs: list[tuple[str, int, int]]) -> list[Any]:
    """Outputs (name, onnx type, rank) of a graph over `x`, by onnxruntime."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [
            helper.make_tensor_value_info(name, kind, [f"{name}{n}" for n in range(rank)])
            for name, kind, rank in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x.numpy()}))


def test_dynamic_tensors_against_onnxruntime() -> None:
    """DynamicQuantizeLinear: uint8, asymmetric; the same scale, codes 128 higher."""
    from onnx import TensorProto, helper

    x = inputs(3)
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])]
    outputs = [("codes", TensorProto.UINT8, 3), ("scale", TensorProto.FLOAT, 0), ("zero", TensorProto.UINT8, 0)]
    codes, scale, zero = run_onnx(nodes, {}, x, outputs)
    grid = act.dynamic_grid(x, ActScheme("tensor", True, False))
    assert grid.zero is not None
    assert float(scale) == float(grid.scale)
    assert int(zero) == int(grid.zero) + 128
    assert torch.equal(torch.from_numpy(codes).float() - 128, act.codes_of(x, grid))


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_static_layer_against_onnxruntime(symmetric: bool) -> None:
    """QuantizeLinear, MatMulInteger and one multiplication: codes and sums exactly, the output in the last bit."""
    import numpy as np
    from onnx import TensorProto, helper

    scheme = ActScheme("tensor", False, symmetric, "minmax")
    x, q = inputs(4), quantized(40, 96)
    grid = act.static_grid(float(x.min()), float(x.max()), scheme)
    zero = 0 if grid.zero is None else int(grid.zero)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("MatMulInteger", ["codes", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["whole", "scales"], ["y"]),
    ]
    tensors = {
        "scale": grid.scale[0].numpy(),
        "zero": np.int8(zero),
        "weight": (q.codes.short() - 128).to(torch.int8).T.contiguous().numpy(),
        "scales": (grid.scale * q.scale.T).numpy(),
    }
    outputs = [("codes", TensorProto.INT8, 3), ("sums", TensorProto.INT32, 3), ("y", TensorProto.FLOAT, 3)]
    codes, sums, y = run_onnx(nodes, tensors, x, outputs)
    ours = act.codes_of(x, grid)
    assert torch.equal(torch.from_numpy(codes).float(), ours)
    whole = act.integer_product((ours - zero).reshape(-1, 96), q.codes.float() - 128)
    assert torch.equal(torch.from_numpy(sums).long().reshape(-1, 40), whole)
    assert torch.equal(torch.from_numpy(y), act.integer_linear(x, q, scheme, grid, None))


def test_a_quantized_matmul_of_onnxruntime_is_within_a_step_of_its_output() -> None:
    """QLinearMatMul rounds its output as well: at most one step of that from ours, and most codes equal."""
    import numpy as np
    from onnx import TensorProto, helper

    scheme = ActScheme("tensor", False, False, "minmax")
    x, q = inputs(5), quantized(40, 96)
    grid = act.static_grid(float(x.min()), float(x.max()), scheme)
    y = act.integer_linear(x, q, scheme, grid, None)
    out = act.static_grid(float(y.min()), float(y.max()), scheme)
    assert grid.zero is not None
    assert out.zero is not None
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node(
            "QLinearMatMul", ["codes", "scale", "zero", "w", "ws", "wz", "out_scale", "out_zero"], ["out"]
        ),
    ]
    tensors = {
        "scale": grid.scale[0].numpy(),
        "zero": np.int8(int(grid.zero)),
        "w": (q.codes.short() - 128).to(torch.int8).T.contiguous().numpy(),
        "ws": q.scale[:, 0].numpy(),
        "wz": np.zeros(40, np.int8),
        "out_scale": out.scale[0].numpy(),
        "out_zero": np.int8(int(out.zero)),
    }
    (got,) = run_onnx(nodes, tensors, x, [("out", TensorProto.INT8, 3)])
    ours = act.codes_of(y, out)
    off = (torch.from_numpy(got).float() - ours).abs()
    assert float(off.max()) <= 1
    assert float((off > 0).float().mean()) < 0.001
