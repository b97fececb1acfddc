"""Solved parts of a block are found by structure and played back with the values they would have again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.core.blocks import find_structure, steps_of
from compress.core.types import BlockRef, LayerRef
from compress.pipeline import finished
from compress.pipeline.finished import Finished, parts_after
from tests.tiny import TINY, meta_model

PARTS = {
    "llama": [None, "self_attn", None, "mlp"],
    "gpt2": [None, "attn", None, "mlp"],
    "gpt_neox": [None, "attention", None, "mlp"],
    "bert": ["attention.self", None, None, None],
    "mixtral": [None, "self_attn", None, "mlp.experts"],
}


@pytest.mark.parametrize("name", PARTS)
def test_the_innermost_module_around_what_is_solved(name: str) -> None:
    model = meta_model(name)
    block = find_structure(model, model.config).blocks[0]
    wanted = [part if part is None else f"{block.name}.{part}" for part in PARTS[name]]
    assert parts_after(block, steps_of(block)) == wanted


@pytest.mark.parametrize("name", TINY)
def test_steps_hold_every_layer_once_and_parts_no_layer_of_later_steps(name: str) -> None:
    model = meta_model(name)
    for block in find_structure(model, model.config).blocks:
        steps = steps_of(block)
        assert sorted(la.name for step in steps for la in step.layers) == sorted(la.name for la in block.layers)
        for number, part in enumerate(parts_after(block, steps)):
            later = [la.name for step in steps[number + 1 :] for la in step.layers]
            assert part is None or not any(layer.startswith(f"{part}.") for layer in later)


class Attention(nn.Module):
    """q, then o; `plain` returns o's output as it is, else scaled."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(4, 4), nn.Linear(4, 4)
        self.plain = plain
        self.runs = 0

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.runs += 1
        out = self.o(torch.tanh(self.q(x)))
        return (out if self.plain else 2 * out), None


class Block(nn.Module):
    """Attention, an addition in place, and a last matrix."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.attn, self.last = Attention(plain), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.attn(x)
        y += x
        return self.last(y)


def layer(name: str) -> LayerRef:
    return LayerRef(f"block.{name}", f"block.{name}.weight", (4, 4), 0, name)


def setup(plain: bool) -> tuple[nn.Module, Attention, Finished]:
    torch.manual_seed(0)
    model = nn.Module()
    model.add_module("block", Block(plain))
    layers = [layer("attn.q"), layer("attn.o"), layer("last")]
    steps = tuple(BlockRef(0, "block", "", 0, (la,)) for la in layers)
    attention = model.get_submodule("block.attn")
    assert isinstance(attention, Attention)
    return model, attention, Finished(model, BlockRef(0, "block", "", 0, tuple(layers)), steps)


@torch.no_grad()
@pytest.mark.parametrize(("plain", "kept", "runs"), [(True, 1 << 28, 2), (True, 16, 3), (False, 1 << 28, 3)])
def test_played_back_values_are_those_of_running_again(
    plain: bool, kept: int, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps q, o, last, then the outputs: attention runs for q and o, once more when its output was not o's (or o's
    inputs were too large to keep), never after that; unknown batches always run."""
    monkeypatch.setattr(finished, "KEEP_BYTES", kept)
    model, attention, done = setup(plain)
    block = model.get_submodule("block")
    batches = [torch.randn(3, 4), torch.randn(2, 4)]
    for step in range(4):
        with done.playing():
            outputs = []
            for number, x in enumerate(batches):
                done.batch = number
                outputs.append(block(x))
        if step == 1:
            attention.o.weight[0, 0] = 7.0  # what solving does
        if step < 3:
            done.solved()
    counted = attention.runs
    assert counted == runs * len(batches)
    assert all(torch.equal(block(x), output) for x, output in zip(batches, outputs, strict=True))
    done.batch = None
    with done.playing():
        assert torch.equal(block(batches[0]), outputs[0])
    assert attention.runs == counted + 3
