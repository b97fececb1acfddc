"""How fast onnxruntime multiplies on this machine: 4- and 8-bit weights and int8 inputs against float32."""

from __future__ import annotations

import statistics
import time
from typing import Any

SIZE, BLOCK, REPEATS = 2048, 32, 15
ROWS = (1, 128)


def probe(threads: int) -> list[dict[str, Any]]:
    """Rows {what, rows, seconds, plain_seconds}: 1 and 128 vectors times a SIZE x SIZE matrix."""
    seconds = {(what, rows): _seconds(what, rows, threads) for what in ("float32", *_GRAPHS) for rows in ROWS}
    return [
        {"what": what, "rows": rows, "seconds": seconds[what, rows], "plain_seconds": seconds["float32", rows]}
        for what in _GRAPHS
        for rows in ROWS
    ]


_GRAPHS = ("4-bit weights", "4-bit weights, int8 inputs", "8-bit weights and inputs")


def _seconds(what: str, rows: int, threads: int) -> float:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_model(what), options, providers=["CPUExecutionProvider"])
    given = {"x": np.random.default_rng(0).standard_normal((rows, SIZE), dtype=np.float32)}
    taken = []
    for _ in range(REPEATS + 3):
        begin = time.perf_counter()
        session.run(None, given)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[3:])


def _model(what: str) -> bytes:
    """One product as a model of its own."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    values: dict[str, Any] = {}
    if what == "float32":
        values["w"] = random.standard_normal((SIZE, SIZE), dtype=np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    elif what.startswith("4-bit"):
        values["w"] = random.integers(0, 256, (SIZE, SIZE // BLOCK, BLOCK // 2), dtype=np.uint8)
        values["s"] = random.random((SIZE, SIZE // BLOCK), dtype=np.float32)
        level = {"accuracy_level": 4} if "int8" in what else {}
        told = {"K": SIZE, "N": SIZE, "bits": 4, "block_size": BLOCK, **level}
        nodes = [helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **told)]
    else:
        values["w"] = random.integers(-127, 128, (SIZE, SIZE)).astype(np.int8)
        values["z"], values["t"] = np.zeros((), np.int8), np.float32(0.01).reshape(())
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["c", "s", "o"]),
            helper.make_node("MatMulInteger", ["c", "w", "o", "z"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s", "t"], ["b"]),
            helper.make_node("Mul", ["f", "b"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, SIZE]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
