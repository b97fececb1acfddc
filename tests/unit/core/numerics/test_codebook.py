"""NF4: its levels, against bitsandbytes' own, and what solvers make of it."""

from __future__ import annotations

import pytest
import torch

from compress.core.errors import RecipeError
from compress.core.numerics.affine import dequantize
from compress.core.numerics.codebook import TABLES, nearest, snapped, values_of
from compress.core.numerics.error import output_error
from compress.core.types import LayerStats, Scheme
from compress.methods import gptq, rtn

NF4 = Scheme.parse("nf4")


def test_the_scheme_has_one_name_and_counts_its_scales() -> None:
    assert NF4.name == "nf4"
    assert Scheme.parse(NF4.name) == NF4
    assert NF4.bits_per_weight((8, 128)) == 4.5
    with pytest.raises(RecipeError, match="groups of 64"):
        Scheme("codebook", 4, 32, True, "float32")


def test_levels_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(TABLES["nf4"], functional.get_4bit_type("nf4", device="cpu"))


def test_the_nearest_level_is_the_nearest() -> None:
    values = torch.linspace(-1.4, 1.4, 4001)
    codes = nearest(values, NF4)
    away = (values[:, None] - TABLES["nf4"]).abs()
    assert torch.equal(away.gather(1, codes.long()[:, None])[:, 0], away.min(1).values)
    assert torch.equal(values_of(codes, NF4), snapped(values, NF4))
    assert float(snapped(torch.zeros(1), NF4)) == 0.0


def test_plain_rounding_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    theirs = functional.dequantize_4bit(packed, state)
    q, _ = rtn.quantize(weight, None, NF4, rtn.Options(clip=False))
    assert torch.equal(q.scale.flatten(), state.absmax)
    assert torch.equal(dequantize(q), theirs)


def test_searched_scales_and_second_order_rounding_are_better() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(32, 128, generator=generator), torch.randn(512, 128, generator=generator)
    inputs = inputs @ torch.randn(128, 128, generator=generator)
    stats = LayerStats(512, inputs.T @ inputs / 256)

    def error(q: object) -> float:
        return output_error(weight, dequantize(q), stats.hessian)  # type: ignore[arg-type]

    plain, _ = rtn.quantize(weight, None, NF4, rtn.Options(clip=False))
    searched, _ = rtn.quantize(weight, None, NF4, rtn.Options())
    solved, note = gptq.quantize(weight, stats, NF4, gptq.Options())
    assert float((weight - dequantize(searched)).square().sum()) < float((weight - dequantize(plain)).square().sum())
    assert error(solved) < 0.6 * error(searched)
    assert note is None
    without, _ = gptq.quantize(weight, stats, NF4, gptq.Options(rounds=0))
    assert error(solved) <= error(without)
