"""A solved block tuned as a whole against the original block's output, before it is committed.

What is tuned: integer codes of matrices that are modules of their own. Left as solved, with a sentence: experts (a
forward reaches few of them, with few tokens), schemes that the method cannot tune, and whole blocks in which inputs
are rounded to int8 (no gradient passes that rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.block_method import BlockMethod, BlockText, Part, Tuned
from compress.core.types import BlockRef, Plan
from compress.pipeline.replay import Replay, Trace, text_mask
from compress.pipeline.solve import Solved
from compress.pipeline.writers import token_weights

EXPERT = "few tokens reach an expert"
SCHEME = "only integer codes are tuned"
ROUNDED = "inputs are rounded to int8 in the block, and no gradient passes that"
SEEDS = 1_000_003


@dataclass(frozen=True)
class Sides:
    """Both sides of one block, batch by batch. calibration: traces that hold what goes into the compressed block.
    reference: traces that hold what the original block puts out."""

    replay: Replay
    calibration: Sequence[Trace]
    reference: Sequence[Trace]

    def text(self, block: BlockRef, solved: Sequence[Solved]) -> BlockText:
        """What a method sees of them. Tokens count as where the residual stream is corrected, padding nothing."""
        layers = {item.layer.name: item.layer for item in solved}

        def output(number: int, weights: Mapping[str, Tensor]) -> Tensor:
            tensors = {
                layers[name].param: weight.t() if layers[name].container == "conv1d" else weight
                for name, weight in weights.items()
            }
            with standing_in(self.replay.model, tensors):
                return self.replay.output(self.calibration[number], block.index)

        def wanted(number: int) -> tuple[Tensor, Tensor]:
            hidden = self.reference[number].hidden[block.stack]
            counts, mask = token_weights(hidden), text_mask(self.reference[number])
            return hidden, counts * mask if mask is not None and mask.shape == counts.shape else counts

        tokens = [int((wanted(number)[1] > 0).sum()) for number in range(len(self.calibration))]
        return BlockText(tokens, output, wanted)


@dataclass(frozen=True)
class Tuner:
    """A block method with its options. seed: of the run; a block's random choices come from it and the block's number.

    report: block, steps done, steps in all.
    """

    method: BlockMethod
    options: Any
    seed: int
    plan: Plan
    report: Callable[[int, int, int], None]

    def tune(
        self, block: BlockRef, solved: Sequence[Solved], originals: Mapping[str, Tensor], sides: Sides
    ) -> tuple[list[Solved], Tuned | None]:
        """`solved`, of the whole block, with codes, scales and results as they are after tuning, and what it gained;
        None where nothing was tuned. Weights in the model are not touched.

        originals: the weight of each layer as the original model has it, (O, I).
        """
        left = {item.layer.name: self._left(item, block) for item in solved}
        parts = {s.layer.name: Part(originals[s.layer.name], s.q) for s in solved if not left[s.layer.name]}
        tuned = None
        if parts and sides.calibration:
            generator = torch.Generator().manual_seed(self.seed * SEEDS + block.index)
            with frozen(sides.replay.model):
                text = sides.text(block, solved)
                tuned = self.method.tune(parts, text, self.options, generator, partial(self.report, block.index))
        found = []
        for item in solved:
            q = item.q if tuned is None else tuned.layers.get(item.layer.name, item.q)
            result = replace(
                item.result,
                recoded=float((q.codes != item.q.codes).float().mean()),
                rescaled=float((q.scale != item.q.scale).float().mean()),
                untuned=left[item.layer.name],
            )
            found.append(replace(item, q=q, result=result))
        return found, tuned

    def _left(self, item: Solved, block: BlockRef) -> str:
        """Why a layer is left as it was solved; empty where it is not."""
        if any(self.plan.layers[layer.name].activation is not None for layer in block.layers):
            return ROUNDED
        if item.layer.expert is not None or item.layer.container not in ("linear", "conv1d"):
            return EXPERT
        return "" if self.method.tunes(item.q) else SCHEME


@contextmanager
def standing_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the named parameters of `model` are these tensors, with whatever graph made them."""
    before = []
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        before.append((module, leaf, module._parameters[leaf]))
        module._parameters[leaf] = tensor  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, leaf, parameter in before:
            module._parameters[leaf] = parameter


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `model` asks for a gradient of its own."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
