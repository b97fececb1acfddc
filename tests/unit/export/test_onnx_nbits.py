"""Codes in MatMulNBits, against the operator itself and against what they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from compress.core.numerics.affine import dequantize
from compress.core.types import QTensor, Scheme
from export.formats.onnx_genai import _values
from export.genai.nbits import block_of, pack


def drawn(bits: int, group: int, symmetric: bool, shape: tuple[int, int]) -> QTensor:
    scheme = Scheme("int", bits, group, symmetric, "float16")
    generator = torch.Generator().manual_seed(bits * 100 + group)
    groups, top = scheme.groups(shape[1]), 1 << bits
    codes = torch.randint(0, top, shape, generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, top, (shape[0], groups), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(shape[0], groups, generator=generator) + 0.1).half().float()
    return QTensor(codes, scale, None if symmetric else zero, scheme)


SHAPES = [(64, (32, 192)), (-1, (48, 96)), (128, (16, 192)), (96, (16, 192)), (16, (8, 48)), (32, (8, 64))]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("group", "shape"), SHAPES)
def test_the_operator_multiplies_by_what_the_codes_stand_for(
    bits: int, symmetric: bool, group: int, shape: tuple[int, int]
) -> None:
    q = drawn(bits, group, symmetric, shape)
    held = pack(q)
    weight = dequantize(q).numpy()
    zeros = held.zero.numpy() if held.zero is not None else None
    read = _values(held.weight.numpy(), held.scales.numpy(), zeros, (held.bits, held.block, shape[1]))
    assert np.array_equal(read, weight)
    inputs = {"B": held.weight, "scales": held.scales} | ({"zeros": held.zero} if held.zero is not None else {})
    node = helper.make_node(
        "MatMulNBits", ["A", *inputs], ["Y"], domain="com.microsoft",
        K=shape[1], N=shape[0], bits=held.bits, block_size=held.block, accuracy_level=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, [None, shape[1]])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, shape[0]])],
        [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in inputs.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    eye = np.eye(shape[1], dtype=np.float32)
    assert np.array_equal(session.run(None, {"A": eye})[0], weight.T)


def test_blocks_are_powers_of_two_that_divide_the_groups() -> None:
    wanted = {
        (64, 576): 64,
        (-1, 576): 64,
        (-1, 1024): 256,
        (96, 192): 32,
        (24, 96): None,
        (128, 100): 16,
        (256, 512): 256,
    }
    for (group, columns), block in wanted.items():
        assert block_of(Scheme("int", 4, group), columns) == block, (group, columns)
