"""GPTQ against a float64 reading of the paper, against round to nearest, and on hessians that break solvers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress.core.errors import HessianError, ModelError, RecipeError
from compress.core.numerics.affine import dequantize, quantize_codes
from compress.core.numerics.error import output_error
from compress.core.types import LayerStats, QTensor, Scheme
from compress.methods import gptq, rtn

PLAIN = gptq.Options(rounds=0, shrinkage=0.0)


def problem(seed: int, rows: int, cols: int, tokens: int = 0, mix: float = 1.0) -> tuple[Tensor, LayerStats]:
    """A weight and the statistics of correlated inputs: `mix` of a random low-rank-ish mixture plus white noise."""
    generator = torch.Generator().manual_seed(seed)
    tokens = tokens or 4 * cols
    latent = torch.randn(tokens, cols // 4, generator=generator) @ torch.randn(cols // 4, cols, generator=generator)
    inputs = mix * latent + torch.randn(tokens, cols, generator=generator)
    inputs *= torch.rand(cols, generator=generator) * 3 + 0.1
    weight = torch.randn(rows, cols, generator=generator) * 0.05
    return weight, LayerStats(tokens, inputs.t() @ inputs * (2 / tokens))


def loss(weight: Tensor, q: QTensor, stats: LayerStats) -> float:
    return output_error(weight, dequantize(q), stats.hessian)


def reference(weight: Tensor, q: QTensor, stats: LayerStats, options: gptq.Options) -> tuple[Tensor, Tensor]:
    """Algorithm 1 in float64 as optimal brain surgery states it: the inverse hessian, one input removed at a time.

    Takes the scales of `q` and returns the columns' codes and, before rounding, their exact positions (O, I).
    """
    hessian = stats.hessian.double()
    hessian = hessian + options.damp * hessian.diagonal().mean() * torch.eye(hessian.shape[0], dtype=torch.float64)
    order = torch.arange(weight.shape[1])
    if options.act_order:
        order = torch.argsort(stats.hessian.diagonal(), descending=True, stable=True)
    inverse = torch.linalg.inv(hessian[order][:, order])
    left = weight.double()[:, order]
    size = q.scheme.group_size if q.scheme.group_size > 0 else weight.shape[1]
    zero = torch.full_like(q.scale, 2 ** (q.scheme.bits - 1)) if q.zero is None else q.zero
    codes, exact = torch.empty(weight.shape), torch.empty(weight.shape, dtype=torch.float64)
    for column in order.tolist():
        scale, shift = q.scale[:, column // size].double(), zero[:, column // size].double()
        exact[:, column] = left[:, 0] / scale + shift
        codes[:, column] = exact[:, column].round().clamp(0, 2**q.scheme.bits - 1)
        error = (left[:, 0] - (codes[:, column] - shift) * scale) / inverse[0, 0]
        left = (left - error[:, None] * inverse[0])[:, 1:]
        inverse = (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]
    return codes, exact


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("scales", ["hessian", "minmax"])
@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 16, False), (3, -1, True), (2, 32, False), (8, 24, True)])
def test_codes_are_the_papers(act_order: bool, scales: str, bits: int, group: int, symmetric: bool) -> None:
    """A row may leave the reference only at a tie: within 1e-3 of the midpoint between two codes (8 bit: 1e-2)."""
    weight, stats = problem(bits, 24, 80)
    scheme = Scheme("int", bits, group, symmetric)
    options = replace(PLAIN, act_order=act_order, scales=scales)
    q, note = gptq.quantize(weight, stats, scheme, options)
    codes, exact = reference(weight, q, stats, options)
    assert note is None
    order = torch.argsort(stats.hessian.diagonal(), descending=True, stable=True) if act_order else torch.arange(80)
    differ = (codes != q.codes)[:, order]
    for row in differ.any(1).nonzero().flatten().tolist():
        column = order[int(differ[row].int().argmax())]
        from_tie = (exact[row, column] - exact[row, column].floor() - 0.5).abs()
        assert from_tie < (1e-2 if bits == 8 else 1e-3)
    assert differ.any(1).float().mean() <= 0.1


def test_classic_takes_each_groups_range_from_the_updated_weights() -> None:
    """Float64, from the paper: on reaching a group, min-max of the weights as updated so far (bound 1e-4)."""
    weight, stats = problem(3, 20, 64)
    scheme = Scheme("int", 4, 16, False, "float32")
    q, _ = gptq.quantize(weight, stats, scheme, gptq.Options(classic=True))
    hessian = stats.hessian.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    inverse, left = torch.linalg.inv(hessian), weight.double()
    solved = dequantize(q).double()
    for column in range(64):
        if column % 16 == 0:
            low, high = left[:, :16].amin(1).clamp(max=0), left[:, :16].amax(1).clamp(min=0)
            assert torch.allclose(q.scale[:, column // 16].double(), (high - low) / 15, rtol=1e-4)
        error = (left[:, 0] - solved[:, column]) / inverse[0, 0]
        left = (left - error[:, None] * inverse[0])[:, 1:]
        inverse = (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False), (8, False)])
def test_never_worse_than_round_to_nearest(seed: int, bits: int, symmetric: bool) -> None:
    weight, stats = problem(seed, 16 + seed, 64 + 8 * seed, mix=0.0 if seed % 2 else 0.3)
    scheme = Scheme("int", bits, [16, 32, -1][seed % 3], symmetric)
    nearest, _ = rtn.quantize(weight, None, scheme, rtn.Options())
    q, _ = gptq.quantize(weight, stats, scheme, gptq.Options())
    assert loss(weight, q, stats) <= loss(weight, nearest, stats)


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, False), (4, True), (4, False), (8, False)])
def test_three_quarters_of_round_to_nearest_when_inputs_correlate(bits: int, symmetric: bool) -> None:
    for seed in range(4):
        weight, stats = problem(seed, 32, 96)
        scheme = Scheme("int", bits, 32, symmetric)
        nearest, _ = rtn.quantize(weight, None, scheme, rtn.Options())
        q, _ = gptq.quantize(weight, stats, scheme, gptq.Options())
        assert loss(weight, q, stats) <= 0.75 * loss(weight, nearest, stats)


def test_each_refinement_pays_on_average() -> None:
    """Summed over problems: full <= without rounds < classic."""
    total = dict.fromkeys(("full", "solve", "classic"), 0.0)
    options = {"full": gptq.Options(), "solve": gptq.Options(rounds=0), "classic": gptq.Options(classic=True)}
    for seed, (name, chosen) in itertools.product(range(4), options.items()):
        weight, stats = problem(seed, 32, 96)
        total[name] += loss(weight, gptq.quantize(weight, stats, Scheme("int", 3, 32), chosen)[0], stats)
    assert total["full"] < total["solve"] < total["classic"]


@pytest.mark.parametrize("options", [gptq.Options(), gptq.Options(classic=True)], ids=["default", "classic"])
@pytest.mark.parametrize("seed", range(3))
def test_stacked_rows_are_solved_as_if_alone(options: gptq.Options, seed: int) -> None:
    parts = [1, 37, 128, 64][: 2 + seed % 3]
    weight, stats = problem(seed, sum(parts), 72)
    scheme = Scheme("int", 4, 16, seed % 2 == 0)
    together, _ = gptq.quantize(weight, stats, scheme, options)
    for part, codes, scale in zip(
        weight.split(parts), together.codes.split(parts), together.scale.split(parts), strict=True
    ):
        alone, _ = gptq.quantize(part, stats, scheme, options)
        assert torch.equal(alone.codes, codes)
        assert torch.equal(alone.scale, scale)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_column_block_changes_speed_not_the_result(block: int) -> None:
    """Sums are taken in another order: at most 1 % of codes move, the loss by at most 1 %."""
    weight, stats = problem(5, 32, 96)
    scheme = Scheme("int", 4, 32)
    base, _ = gptq.quantize(weight, stats, scheme, PLAIN)
    other, _ = gptq.quantize(weight, stats, scheme, replace(PLAIN, column_block=block))
    assert (base.codes != other.codes).float().mean() <= 0.01
    assert loss(weight, other, stats) == pytest.approx(loss(weight, base, stats), rel=0.01)


@pytest.mark.parametrize("stats", [None, LayerStats(0, torch.full((32, 32), torch.nan))], ids=["none", "zero"])
def test_no_tokens_falls_back_in_words(stats: LayerStats | None) -> None:
    weight, _ = problem(0, 8, 32)
    q, note = gptq.quantize(weight, stats, Scheme("int", 4, 16), gptq.Options())
    nearest, _ = rtn.quantize(weight, None, Scheme("int", 4, 16), rtn.Options())
    assert torch.equal(q.codes, nearest.codes)
    assert note is not None
    assert "no calibration token" in note


def test_few_tokens_are_said_and_shrinkage_helps() -> None:
    """64 inputs seen by 12 tokens, judged on 4,000: better than H taken at its word, and than RTN."""
    scheme = Scheme("int", 4, 16)
    shrunk = unshrunk = nearest = 0.0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(8, 64, generator=generator)
        inputs = torch.randn(4000, 8, generator=generator) @ mixing + torch.randn(4000, 64, generator=generator)
        truth = LayerStats(4000, inputs.t() @ inputs / 2000)
        seen = LayerStats(12, inputs[:12].t() @ inputs[:12] / 6)
        weight = torch.randn(48, 64, generator=generator)
        q, note = gptq.quantize(weight, seen, scheme, gptq.Options())
        assert note is not None
        assert "only 12 tokens" in note
        shrunk += loss(weight, q, truth)
        unshrunk += loss(weight, gptq.quantize(weight, seen, scheme, gptq.Options(shrinkage=0.0))[0], truth)
        nearest += loss(weight, rtn.quantize(weight, None, scheme, rtn.Options())[0], truth)
    assert shrunk < 0.9 * unshrunk
    assert shrunk < nearest


def test_dead_inputs_are_rounded_to_nearest() -> None:
    weight, stats = problem(1, 16, 64)
    dead = [3, 40, 41]
    hessian = stats.hessian.clone()
    hessian[dead] = 0
    hessian[:, dead] = 0
    for options in (gptq.Options(), gptq.Options(damp=0.0), gptq.Options(classic=True)):
        q, note = gptq.quantize(weight, LayerStats(256, hessian), Scheme("int", 4, 16), options)
        assert note is None
        assert torch.equal(q.codes[:, dead], quantize_codes(weight, q.scale, q.zero, q.scheme)[:, dead])


def test_all_inputs_dead() -> None:
    weight, _ = problem(1, 8, 32)
    q, note = gptq.quantize(weight, LayerStats(99, torch.zeros(32, 32)), Scheme("int", 4, 16), gptq.Options())
    nearest, _ = rtn.quantize(weight, None, Scheme("int", 4, 16), rtn.Options())
    assert note is not None
    assert "was 0" in note
    assert (dequantize(q) - weight).norm() <= 1.001 * (dequantize(nearest) - weight).norm()


def test_damping_escalates_in_words() -> None:
    weight, stats = problem(2, 8, 32)
    hessian = stats.hessian - 0.3 * stats.hessian.diagonal().mean() * torch.eye(32)
    q, note = gptq.quantize(weight, LayerStats(100, hessian), Scheme("int", 4, 16), gptq.Options(shrinkage=0.0))
    assert note == "the hessian needed damping 1 instead of 0.01"
    assert q.codes.max() <= 15


def test_indefinite_hessian_is_refused() -> None:
    weight, _ = problem(2, 8, 32)
    with pytest.raises(HessianError, match="indefinite even with 10 times"):
        gptq.quantize(weight, LayerStats(100, _indefinite()), Scheme("int", 4, 16), gptq.Options())


def _indefinite() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 32, generator=generator) * 50
    return (noise + noise.t()).fill_diagonal_(1.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_finite_is_refused(bad: float) -> None:
    weight, stats = problem(2, 8, 32)
    hessian = stats.hessian.clone()
    hessian[4, 5] = bad
    with pytest.raises(HessianError, match="1 values that are not finite"):
        gptq.quantize(weight, LayerStats(100, hessian), Scheme("int", 4, 16), gptq.Options())
    with pytest.raises(HessianError, match=r"\(31, 31\) does not fit 32"):
        gptq.quantize(weight, LayerStats(100, hessian[1:, 1:]), Scheme("int", 4, 16), gptq.Options())
    weight = weight.clone()
    weight[2, 7] = bad
    with pytest.raises(ModelError, match="row 2, column 7"):
        gptq.quantize(weight, stats, Scheme("int", 4, 16), gptq.Options())


@pytest.mark.parametrize(
    "settings",
    [
        *({"damp": -1.0}, {"damp": 11.0}, {"scales": "best"}, {"rounds": -1}),
        *({"column_block": 0}, {"steps": 0}, {"shrink": 0.0}, {"shrinkage": -0.1}),
    ],
    ids=str,
)
def test_options_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=str(next(iter(settings.values())))):
        gptq.Options(**settings)  # type: ignore[arg-type]
