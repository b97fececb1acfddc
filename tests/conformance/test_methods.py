"""One suite over every file in compress/methods: a new method is tested by existing."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compress.core import registry
from compress.core.errors import HessianError, ModelError, RecipeError
from compress.core.numerics.affine import dequantize, round_to_storage
from compress.core.numerics.error import output_error, weight_error
from compress.core.types import LayerMethod, LayerStats, QTensor, Scheme
from compress.methods import rtn

METHODS = registry.names("method")
SHAPES = [(1, 32), (24, 64), (5, 50), (3, 7)]
SCHEMES = [
    Scheme("int", bits, group, symmetric, dtype)
    for bits, (group, symmetric, dtype) in itertools.product(
        (2, 3, 4, 5, 6, 8),
        [(16, False, "bfloat16"), (-1, True, "float16"), (24, True, "bfloat16"), (-1, False, "float32")],
    )
] + [Scheme.parse("nf4")]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> LayerMethod:
    loaded = registry.load("method", request.param)
    assert isinstance(loaded, LayerMethod)
    return loaded


def problem(rows: int, cols: int, seed: int = 0) -> tuple[Tensor, LayerStats]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * cols, cols // 2, generator=generator) @ torch.randn(cols // 2, cols, generator=generator)
    inputs += torch.randn(4 * cols, cols, generator=generator)
    return torch.randn(rows, cols, generator=generator), LayerStats(4 * cols, inputs.t() @ inputs / (2 * cols))


def check(weight: Tensor, q: QTensor, scheme: Scheme) -> None:
    """What every exporter relies on."""
    groups = scheme.groups(weight.shape[1])
    assert q.scheme == scheme
    assert q.codes.dtype == torch.uint8
    assert q.codes.shape == weight.shape
    assert q.codes.is_contiguous()
    assert int(q.codes.max()) < 2**scheme.bits
    assert q.scale.shape == (weight.shape[0], groups)
    assert (q.scale != 0).all()
    assert torch.equal(round_to_storage(q.scale, scheme.scale_dtype, scheme.scale_bits), q.scale)
    assert (q.zero is None) == scheme.symmetric
    if q.zero is not None:
        assert q.zero.dtype == torch.uint8
        assert q.zero.shape == q.scale.shape
        assert int(q.zero.max()) < 2**scheme.bits
    assert torch.isfinite(dequantize(q)).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.scale_dtype}")
def test_every_scheme_and_shape(method: LayerMethod, scheme: Scheme) -> None:
    for rows, cols in SHAPES:
        weight, stats = problem(rows, cols)
        q, note = method.quantize(weight, stats, scheme, method.options())
        check(weight, q, scheme)
        assert note is None


def test_scale_bits_are_kept_to(method: LayerMethod) -> None:
    weight, stats = problem(16, 64)
    for symmetric in (True, False):
        scheme = Scheme("int", 4, 16, symmetric, "float16", 7)
        check(weight, method.quantize(weight, stats, scheme, method.options())[0], scheme)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_not_worse_than_min_max(method: LayerMethod, bits: int, symmetric: bool) -> None:
    """In the layer's output when the method reads the hessian, in the weight when it does not."""
    for seed in range(4):
        weight, stats = problem(16, 64, seed)
        scheme = Scheme("int", bits, 16, symmetric)
        plain, _ = rtn.quantize(weight, None, scheme, rtn.Options(clip=False))
        q, _ = method.quantize(weight, stats, scheme, method.options())
        if method.needs(method.options()):
            ours, theirs = (output_error(weight, dequantize(x), stats.hessian) for x in (q, plain))
        else:
            ours, theirs = (weight_error(weight, dequantize(x)) for x in (q, plain))
        assert ours <= theirs * (1 + 1e-5)


def test_nothing_is_modified_and_nothing_is_random(method: LayerMethod) -> None:
    weight, stats = problem(16, 64)
    kept, hessian = weight.clone(), stats.hessian.clone()
    scheme = Scheme("int", 3, 16)
    first, _ = method.quantize(weight, stats, scheme, method.options())
    torch.rand(7)
    second, _ = method.quantize(weight, stats, scheme, method.options())
    assert torch.equal(weight, kept)
    assert torch.equal(stats.hessian, hessian)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scale, second.scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_and_zero_rows(method: LayerMethod, symmetric: bool) -> None:
    """Zero rows come back as zeros; constant ones within half a 4-bit step of their range to 0."""
    _, stats = problem(4, 64)
    weight = torch.tensor([0.0, 0.3, -5.0, 0.0]).unsqueeze(1).repeat(1, 64)
    scheme = Scheme("int", 4, 16, symmetric)
    q, _ = method.quantize(weight, stats, scheme, method.options())
    check(weight, q, scheme)
    value = dequantize(q)
    assert torch.equal(value[[0, 3]], torch.zeros(2, 64))
    assert ((value - weight).abs() <= weight.abs() / 14 + 1e-6).all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_huge_and_tiny_weights(method: LayerMethod, size: float, dtype: str) -> None:
    """The relative error at 4 bit is that of ordinary weights (1.2 times at most), whatever the unit."""
    weight, stats = problem(8, 64)
    scheme = Scheme("int", 4, 16, False, dtype)
    usual = weight_error(weight, dequantize(method.quantize(weight, stats, scheme, method.options())[0]))
    q, _ = method.quantize(weight * size, stats, scheme, method.options())
    check(weight, q, scheme)
    assert weight_error(weight * size, dequantize(q)) <= 1.2 * usual


def test_float16_scales_saturate_finitely(method: LayerMethod) -> None:
    weight, stats = problem(8, 64)
    for size in (1e-30, 1e-12, 1e12, 1e30):
        scheme = Scheme("int", 4, 16, False, "float16")
        q, _ = method.quantize(weight * size, stats, scheme, method.options())
        check(weight, q, scheme)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_unit_of_the_hessian_does_not_matter(method: LayerMethod, scale: float) -> None:
    """A power of two on H changes nothing but rounding of the same sums: at most 1 % of codes."""
    weight, stats = problem(16, 64)
    scheme = Scheme("int", 4, 16)
    exact = 2.0 ** round(torch.tensor(scale).log2().item())
    base, _ = method.quantize(weight, stats, scheme, method.options())
    other, _ = method.quantize(weight, LayerStats(256, stats.hessian * exact), scheme, method.options())
    assert (base.codes != other.codes).float().mean() <= 0.01


def test_bad_input_is_refused(method: LayerMethod) -> None:
    weight, stats = problem(8, 32)
    broken = weight.clone()
    broken[3, 9] = torch.nan
    with pytest.raises(ModelError, match="row 3, column 9"):
        method.quantize(broken, stats, Scheme("int", 4, 16), method.options())
    with pytest.raises(RecipeError, match="float16 holds no codes"):
        method.quantize(weight, stats, Scheme.parse("float16"), method.options())
    with pytest.raises(ModelError, match=r"\(0, 32\)"):
        method.quantize(weight[:0], stats, Scheme("int", 4, 16), method.options())
    if "hessian" in method.needs(method.options()):
        spoiled = LayerStats(128, stats.hessian * torch.nan)
        with pytest.raises(HessianError, match="not finite"):
            method.quantize(weight, spoiled, Scheme("int", 4, 16), method.options())


def test_no_statistics_is_a_sentence_or_not_needed(method: LayerMethod) -> None:
    weight, _ = problem(8, 32)
    q, note = method.quantize(weight, None, Scheme("int", 4, 16), method.options())
    check(weight, q, Scheme("int", 4, 16))
    assert bool(note) == bool(method.needs(method.options()))
