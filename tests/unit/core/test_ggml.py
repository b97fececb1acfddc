"""Block types: solved like any scheme, and packed as the gguf package reads them."""

from __future__ import annotations

import gguf
import pytest
import torch
from torch import Tensor

from compress.core import registry
from compress.core.errors import RecipeError
from compress.core.numerics.affine import dequantize
from compress.core.numerics.error import output_error, weight_error
from compress.core.numerics.ggml import Blocks, from_blocks, kind_for, pack, to_blocks, unpack
from compress.core.types import GGML_BITS, LayerStats, QTensor, Scheme

KINDS = tuple(GGML_BITS)


def problem(rows: int = 24, columns: int = 128) -> tuple[Tensor, LayerStats]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4 * columns, columns // 2, generator=generator)
    inputs = inputs @ torch.randn(columns // 2, columns, generator=generator)
    inputs += 0.3 * torch.randn(4 * columns, columns, generator=generator)
    weight = 0.05 * torch.randn(rows, columns, generator=generator) + 0.01
    return weight, LayerStats(4 * columns, inputs.t() @ inputs / (2 * columns))


def theirs(blocks: Blocks) -> Tensor:
    """The weight as the gguf package dequantizes the packed bytes."""
    kind = gguf.GGMLQuantizationType[blocks.kind.upper()]
    return torch.from_numpy(gguf.quants.dequantize(pack(blocks).numpy(), kind))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_is_solved_is_what_the_file_says(name: str, method: str) -> None:
    weight, stats = problem()
    solver, scheme = registry.load("method", method), Scheme.parse(name)
    q, note = solver.quantize(weight, stats, scheme, solver.options())
    assert note is None
    assert (q.minimum is None) == scheme.symmetric
    assert q.zero is None
    blocks = to_blocks(q)
    assert torch.equal(theirs(blocks), dequantize(q))
    back = from_blocks(unpack(name, pack(blocks), weight.shape[1]))
    assert torch.equal(back.codes, q.codes)
    assert torch.equal(dequantize(back), dequantize(q))


@pytest.mark.parametrize("name", KINDS)
def test_second_order_rounding_beats_ggmls_own(name: str) -> None:
    weight, stats = problem()
    solver = registry.load("method", "gptq")
    ours = dequantize(solver.quantize(weight, stats, Scheme.parse(name), solver.options())[0])
    kind = gguf.GGMLQuantizationType[name.upper()]
    own = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind))
    assert output_error(weight, ours, stats.hessian) < 0.6 * output_error(weight, own, stats.hessian)


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_searched_minima_are_not_worse_than_the_range(name: str) -> None:
    weight, _ = problem()
    rtn, scheme = registry.load("method", "rtn"), Scheme.parse(name)
    searched = dequantize(rtn.quantize(weight, None, scheme, rtn.options())[0])
    plain = dequantize(rtn.quantize(weight, None, scheme, rtn.options(clip=False))[0])
    assert weight_error(weight, searched) < weight_error(weight, plain)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("int4-g32-asym", "q4_1"), ("int4-g64-asym", "q4_1"), ("int3-g64-asym", "q4_1"), ("int2-g32-sym", "q4_0"),
     ("int4-row-sym", "q4_0"), ("int4-g128-sym", "q4_0"), ("int5-g64-sym", "q5_0"), ("int6-g64-sym", "q8_0"),
     ("int8-row-sym", "q8_0")],
)  # fmt: skip
def test_integer_schemes_fit_without_rounding(name: str, kind: str) -> None:
    weight, stats = problem()
    solver, plain = registry.load("method", "gptq"), Scheme.parse(name, "float16")
    scheme = Scheme("int", plain.bits, plain.group_size, plain.symmetric, "float16", min(8, 11 - plain.bits))
    if plain.bits == 8:
        scheme = Scheme("int", 8, -1, True, "float32", 8)
    q, _ = solver.quantize(weight, stats, scheme, solver.options())
    blocks = to_blocks(q)
    assert blocks.kind == kind == kind_for(scheme)
    assert torch.equal(theirs(blocks), dequantize(q))


def test_what_does_not_fit_is_refused() -> None:
    codes = torch.ones(2, 64, dtype=torch.uint8)
    fine = torch.full((2, 1), 0.1)  # no float16 number
    with pytest.raises(RecipeError, match="no float16 number; solve for ggml with --scheme q4_0"):
        to_blocks(QTensor(codes, fine, None, Scheme("int", 4, -1, True, "float32")))
    with pytest.raises(RecipeError, match="do not fit ggml's blocks of 32"):
        to_blocks(QTensor(codes[:, :48], fine, None, Scheme("int", 4, -1, True)))
    assert kind_for(Scheme("int", 8, 32, False)) is None
    assert kind_for(Scheme("int", 4, 48, True)) is None
    with pytest.raises(RecipeError, match="ggml has no block type q3_0"):
        Scheme("ggml", 3, 32, True, "float16")


@pytest.mark.parametrize(("name", "bits"), [("q4_0", 4.5), ("q4_1", 5.0), ("q5_0", 5.5), ("q5_1", 6.0), ("q8_0", 8.5)])
def test_bytes_are_those_of_ggml(name: str, bits: float) -> None:
    scheme = Scheme.parse(name)
    assert scheme.name == name
    assert scheme.bits_per_weight((7, 96)) == bits
    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert 8 * width / size == bits
