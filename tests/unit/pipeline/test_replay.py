"""Playing finished blocks back, on a model written here: errors, shapes of outputs, what is put back afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.core.types import BlockRef
from compress.pipeline.replay import HIDDEN, Replay, Trace, split_output, without_vocabulary


class Block(nn.Module):
    """A block that hands a table on, as t5 does with its position bias; the first one makes it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.number = number

    def forward(self, hidden: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor, None]:
        made = torch.full((4,), 0.5) * (self.number + 1) if table is None else table
        return self.linear(hidden).tanh() + made, made, None


class Toy(nn.Module):
    """skip: the number of a block that forward leaves out."""

    def __init__(self, skip: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(Block(number) for number in range(3))
        self.skip = skip

    def forward(self, ids: Tensor) -> Tensor:
        hidden, table = self.embed(ids), None
        for number, block in enumerate(self.layers):
            if number != self.skip:
                hidden, table, _ = block(hidden, table=table)
        out: Tensor = hidden * 2
        return out


BLOCKS = tuple(BlockRef(n, f"layers.{n}", "layers", n, ()) for n in range(3))
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().requires_grad_(False)


def test_the_end_is_the_models_own(toy: Toy) -> None:
    wanted = toy(IDS)
    trace = Trace({"ids": IDS})
    with Replay(toy, BLOCKS) as replay:
        for block in BLOCKS:
            replay.advance(trace, block.index)
        assert torch.equal(replay.finish(trace), wanted)
    assert next(iter(trace.stored.values())).tolist() == [0.5] * 4
    assert len(trace.stored) == 1, "the table is kept once, by content"
    assert trace.shapes[1][1] == ("argument", "table")


def test_a_finished_block_computes_nothing(toy: Toy) -> None:
    trace = Trace({"ids": IDS})
    with Replay(toy, BLOCKS) as replay:
        replay.advance(trace, 0)
        wanted = replay.run(trace, 1)
        toy.layers[0].linear.weight.fill_(math.nan)
        assert torch.equal(replay.run(trace, 1), wanted)


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_a_block_that_is_never_reached(toy: Toy, skip: int) -> None:
    toy.skip = skip
    trace = Trace({"ids": IDS})
    with Replay(toy, BLOCKS) as replay:
        for block in BLOCKS[:skip]:
            replay.advance(trace, block.index)
        with pytest.raises(ModelError, match=rf"never reaches layers\.{skip}; use --method rtn"):
            replay.run(trace, skip)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_name_their_block(toy: Toy, bad: float) -> None:
    toy.layers[1].linear.bias.fill_(bad)
    toy.layers[1].linear.weight.zero_()
    toy.layers[1].forward = lambda hidden, table: (hidden + bad, table, None)
    trace = Trace({"ids": IDS})
    with Replay(toy, BLOCKS) as replay:
        replay.advance(trace, 0)
        with pytest.raises(ModelError, match=r"block 1 \(layers\.1\) puts out NaN or Inf"):
            replay.run(trace, 1)


def test_forwards_are_put_back_even_after_an_error(toy: Toy) -> None:
    with pytest.raises(KeyError), Replay(toy, BLOCKS):
        raise KeyError
    assert all("forward" not in block.__dict__ for block in toy.layers)
    assert torch.isfinite(toy(IDS)).all()


def test_parts_of_an_output_are_told_apart() -> None:
    hidden, mask, extra = torch.ones(1, 2, 4), torch.zeros(2), torch.ones(3)
    found, (slots, stored) = split_output((hidden, mask, extra, None), (torch.zeros(1),), {"mask": mask})
    assert found is hidden
    assert slots[:2] == [(HIDDEN, False), ("argument", "mask")]
    assert slots[3] == ("constant", None)
    assert stored[slots[2][1]] is extra
    assert split_output(hidden, (), {}) == (hidden, ([(HIDDEN, True)], {}))


def test_a_vocabulary_on_the_meta_device_is_not_looked_up(toy: Toy) -> None:
    toy.embed.weight = nn.Parameter(torch.empty(8, 4, device="meta"), requires_grad=False)
    with without_vocabulary(toy, toy.embed.weight):
        assert torch.equal(toy.embed(IDS), torch.zeros(2, 3, 4))
    assert "forward" not in toy.embed.__dict__
