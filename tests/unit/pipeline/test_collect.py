"""Which layers share statistics, and what is said when they cannot be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from calibrate.collectors.hessian import COLLECTOR
from compress.core.errors import CompressError, ModelError
from compress.core.types import BlockRef, LayerRef
from compress.pipeline.collect import Collecting, Collector, collecting

NAMES = ("block.q", "block.k", "block.v")


class Three(nn.Module):
    """Three maps that servers fuse; `reads` says what each is given."""

    def __init__(self, reads: Callable[[Three, Tensor], None]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.reads = reads

    def forward(self, x: Tensor) -> None:
        self.reads(self, x)


def gather(reads: Callable[[Three, Tensor], None], batches: list[Tensor]) -> tuple[Collecting, BlockRef, list[int]]:
    """Statistics of a block that reads like this, and the widths of the collectors that were made."""
    layers = tuple(LayerRef(n, f"{n}.weight", (4, 4), 0, n[-1], fused_with=NAMES) for n in NAMES)
    block = BlockRef(0, "block", "", 0, layers)
    model = nn.Module()
    model.add_module("block", Three(reads))
    made: list[int] = []

    def make(width: int) -> Collector:
        made.append(width)
        return COLLECTOR(width, torch.device("cpu"))

    with collecting(model, block, make) as gathered, torch.no_grad():
        for batch in batches:
            model.get_submodule("block")(batch)
    return gathered, block, made


def hessian(*inputs: Tensor) -> Tensor:
    x = torch.cat(inputs).double()
    return 2 / x.shape[0] * x.T @ x


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 4, generator=generator) for n in (5, 3)]


def test_one_input_is_counted_once(batches: list[Tensor]) -> None:
    def reads(block: Three, x: Tensor) -> None:
        block.q(x)
        block.k(x.view(-1, 4))
        block.v(input=x)

    gathered, block, made = gather(reads, batches)
    assert made == [4]
    assert [len(group) for group in gathered.inputs()] == [3]
    for layer in block.layers:
        stats = gathered.take(layer)
        assert stats.n_tokens == 8
        assert torch.allclose(stats.hessian.double(), hessian(*batches), atol=1e-5)


def test_equal_values_in_other_memory_are_another_input(batches: list[Tensor]) -> None:
    def reads(block: Three, x: Tensor) -> None:
        block.q(x)
        block.k(x)
        block.v(x * 2)

    gathered, block, made = gather(reads, batches)
    assert made == [4, 4]
    assert [[layer.role for layer in group] for group in gathered.inputs()] == [["q", "k"], ["v"]]
    assert torch.allclose(gathered.take(block.layers[2]).hessian.double(), 4 * hessian(*batches), atol=1e-4)


def test_an_input_changed_in_place_is_another_input(batches: list[Tensor]) -> None:
    def reads(block: Three, x: Tensor) -> None:
        x = x.clone()
        block.q(x)
        block.k(x)
        x.mul_(2)
        block.v(x)

    gathered, _, _ = gather(reads, batches)
    assert [[layer.role for layer in group] for group in gathered.inputs()] == [["q", "k"], ["v"]]


def test_a_member_that_also_reads_something_else_counts_both(batches: list[Tensor]) -> None:
    """As deberta's query and key do with relative positions."""
    table = torch.ones(2, 4)

    def reads(block: Three, x: Tensor) -> None:
        for layer in (block.q, block.k, block.v):
            layer(x)
        block.k(table)
        block.q(table)

    gathered, block, made = gather(reads, batches)
    assert made == [4, 4]
    first, value = gathered.take(block.layers[0]), gathered.take(block.layers[2])
    assert (first.n_tokens, value.n_tokens) == (12, 8)
    assert torch.allclose(first.hessian.double(), hessian(*batches, table, table), atol=1e-5)


def test_layers_that_part_later_are_not_trusted(batches: list[Tensor]) -> None:
    def reads(block: Three, x: Tensor) -> None:
        block.q(x)
        block.k(x)
        if len(x) == 5:
            block.v(x)

    gathered, block, _ = gather(reads, batches)
    with pytest.raises(CompressError, match=r"block\.v read 5 tokens and block\.q 8"):
        gathered.take(block.layers[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_input_that_is_not_finite_names_layer_and_block(batches: list[Tensor], bad: float) -> None:
    def reads(block: Three, x: Tensor) -> None:
        for layer in (block.q, block.k, block.v):
            layer(x)

    batches[1][0, 0] = bad
    gathered, block, _ = gather(reads, batches)
    with pytest.raises(ModelError, match=r"input of block\.q \(block 0\) holds NaN or Inf"):
        gathered.take(block.layers[0])


def test_a_layer_that_nothing_reached_has_no_tokens() -> None:
    gathered, block, _ = gather(lambda block, x: None, [torch.ones(2, 4)])
    stats = gathered.take(block.layers[0])
    assert stats.n_tokens == 0
    assert not stats.hessian.any()
