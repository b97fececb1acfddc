"""Which layers are seen to write to the residual stream, whatever way a block is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import CompressError
from compress.core.types import BlockRef, LayerRef
from compress.pipeline.writers import Writers, token_weights
from compress.pipeline.writes import Writes

Forward = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """Two maps `a` and `b`, a norm, a dropout; `forward` is given."""

    def __init__(self, how: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.drop = nn.LayerNorm(6), nn.Dropout(0.5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def one_after_the_other(block: Block, x: Tensor) -> Tensor:
    x = x + block.a(block.norm(x))
    return x + block.b(block.norm(x))


def dropped(block: Block, x: Tensor) -> Tensor:
    x = block.drop(block.a(x)) + x
    return torch.add(block.drop(block.b(x)), x)


def in_place(block: Block, x: Tensor) -> Tensor:
    y = block.a(x)
    y += x
    z = block.b(y)
    z.add_(y)
    return z


def post_norm(block: Block, x: Tensor) -> Tensor:
    x = block.norm(block.a(x) + x)
    return block.norm(block.b(x) + x)


def parallel(block: Block, x: Tensor) -> Tensor:
    return block.b(x) + block.a(x) + x


def normalised_first(block: Block, x: Tensor) -> Tensor:
    x = x + block.norm(block.a(x))
    return x + 0.5 * block.b(x)


def not_of_its_shape(block: Block, x: Tensor) -> Tensor:
    return block.a(x) + torch.ones(6) + block.b(x).sum(-1, keepdim=True)


CASES = [
    (one_after_the_other, ["a", "b"]),
    (dropped, ["a", "b"]),
    (in_place, ["a", "b"]),
    (post_norm, ["a", "b"]),
    (parallel, ["a"]),  # the last to run
    (normalised_first, []),
    (not_of_its_shape, []),
]


@pytest.mark.parametrize(("how", "wanted"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_writers_are_named_with_the_stream_after_them(how: Forward, wanted: list[str]) -> None:
    block = Block(how).eval()
    seen: list[tuple[str, Tensor]] = []
    writes = Writes(lambda name, stream: seen.append((name, stream.clone())))
    for name in ("a", "b"):
        block.get_submodule(name).register_forward_hook(writes.after(name))
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with writes:
            output = block(x)
        assert [name for name, _ in seen] == wanted
        if how in (one_after_the_other, dropped, in_place):
            first = x + block.a(block.norm(x) if how is one_after_the_other else x)
            assert torch.allclose(seen[0][1], first, atol=1e-6)
            assert torch.equal(seen[1][1], output)
        if how is parallel:
            assert torch.equal(seen[0][1], output)


def layers(*names: str) -> tuple[LayerRef, ...]:
    return tuple(LayerRef(f"block.{n}", f"block.{n}.weight", (6, 6), 0, n) for n in names)


class Sums:
    """Stands in for the drift collector: keeps what it is given."""

    def __init__(self, rows: int, columns: int) -> None:
        self.given: list[tuple[Tensor, Tensor, Tensor]] = []
        self.shape = (rows, columns)

    def add(self, x: Tensor, missing: Tensor, weight: Tensor) -> None:
        self.given.append((x, missing, weight))

    def drift(self) -> Tensor:
        return torch.zeros(self.shape)

    def half(self) -> None:
        """One batch has none."""


def model(how: Forward) -> nn.Module:
    home = nn.Module()
    home.add_module("block", Block(how).eval())
    return home


@torch.no_grad()
def test_what_the_stream_lacks_is_the_difference_of_the_two_models() -> None:
    home, made = model(one_after_the_other), []

    def make(rows: int, columns: int) -> Sums:
        made.append(Sums(rows, columns))
        return made[-1]

    block = home.get_submodule("block")
    x, changed = torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    writers = Writers(BlockRef(0, "block", "", 0, layers("a", "b")), make)
    writers.original(home, lambda: block(x))
    assert [writers.writes(layer) for layer in layers("a", "b", "c")] == [True, True, False]
    assert writers.calls == {"block.a": 1, "block.b": 1}
    writers.batch(0)
    weight = writers.reads(layers("a")[0], changed)
    assert weight is not None
    wanted = x + block.a(block.norm(x))
    assert torch.allclose(weight, token_weights(wanted))
    writers.wrote("block.a", changed)
    assert torch.allclose(made[0].given[0][1], wanted - changed, atol=1e-6)
    assert writers.take(layers("a")[0]) is not None
    assert writers.take(layers("a")[0]) is None


@torch.no_grad()
def test_a_layer_that_writes_for_some_tokens_only_is_refused_in_words() -> None:
    home = model(one_after_the_other)
    block = home.get_submodule("block")
    writers = Writers(BlockRef(3, "block", "", 0, layers("a", "b")), Sums)
    writers.original(home, lambda: block(torch.ones(1, 4, 6)))
    writers.batch(0)
    with pytest.raises(CompressError, match=r"block\.a \(block 3\) writes .* --option correct=false"):
        writers.reads(layers("a")[0], torch.ones(1, 5, 6))


@torch.no_grad()
def test_a_layer_called_twice_and_added_once_does_not_write() -> None:
    def how(block: Block, x: Tensor) -> Tensor:
        return x + block.a(block.norm(block.a(x)))

    home = model(how)
    writers = Writers(BlockRef(0, "block", "", 0, layers("a")), Sums)
    writers.original(home, lambda: home.get_submodule("block")(torch.ones(1, 4, 6)))
    assert not writers.writes(layers("a")[0])


def test_no_token_counts_for_all_and_none_for_nothing() -> None:
    """Weights undo the size of a token, but an almost empty one counts at most a hundred times the median."""
    stream = torch.ones(9, 4) * torch.tensor([1, 1, 1, 1, 1, 100, 3, 1e-6, 0.0]).unsqueeze(1)
    weight = token_weights(stream)
    assert torch.allclose(weight[5], torch.tensor(1e-4))
    assert torch.allclose(weight[6], torch.tensor(1 / 9))
    assert torch.allclose(weight[7:], torch.tensor(100.0))
    assert torch.isfinite(token_weights(torch.zeros(3, 4))).all()
