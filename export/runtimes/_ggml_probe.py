"""How fast ggml multiplies on this machine: its own mul_mat, by ctypes, quantized weights against float32 ones."""

from __future__ import annotations

import ctypes
import statistics
import time
from pathlib import Path
from typing import Any

TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 8}  # ggml.h, enum ggml_type
FLOAT = 0
SIZE, REPEATS = 2048, 15
ROWS = (1, 64)


class _Init(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def probe(folder: Path, threads: int) -> list[dict[str, Any]]:
    """Rows {what, rows, seconds, plain_seconds}: a SIZE x SIZE matrix times 1 and 64 vectors.

    folder: of the libraries.
    """
    ctypes.CDLL(str(folder / "libggml.so"), mode=ctypes.RTLD_GLOBAL)
    base = ctypes.CDLL(str(folder / "libggml-base.so"))
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    pointer = ctypes.c_void_p
    base.ggml_init.argtypes, base.ggml_init.restype = [_Init], pointer
    base.ggml_new_tensor_2d.argtypes = [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    base.ggml_mul_mat.argtypes, base.ggml_new_graph.argtypes = [pointer, pointer, pointer], [pointer]
    base.ggml_build_forward_expand.argtypes, base.ggml_free.argtypes = [pointer, pointer], [pointer]
    for function in (base.ggml_new_tensor_2d, base.ggml_mul_mat, base.ggml_new_graph):
        function.restype = pointer
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
    seconds = {
        (kind, rows): _seconds(base, cpu, kind, rows, threads) for kind in (FLOAT, *TYPES.values()) for rows in ROWS
    }
    return [
        {"what": name, "rows": rows, "seconds": seconds[kind, rows], "plain_seconds": seconds[FLOAT, rows]}
        for name, kind in TYPES.items()
        for rows in ROWS
    ]


def _seconds(base: Any, cpu: Any, kind: int, rows: int, threads: int) -> float:
    """Median seconds of a product; weights are whatever the memory holds, zeros."""
    context = base.ggml_init(_Init(64 << 20, None, False))
    try:
        weight = base.ggml_new_tensor_2d(context, kind, SIZE, SIZE)
        product = base.ggml_mul_mat(context, weight, base.ggml_new_tensor_2d(context, FLOAT, SIZE, rows))
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, product)
        taken = []
        for _ in range(REPEATS + 3):
            begin = time.perf_counter()
            if cpu.ggml_graph_compute_with_ctx(context, graph, threads):
                raise ValueError("ggml cannot multiply here")
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken[3:])
    finally:
        base.ggml_free(context)
