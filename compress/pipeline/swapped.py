"""`--metric kl`: what each layer costs at each scheme, measured: one layer swapped at a time, all texts through it.

The oracle of `compress.pipeline.gradient`. Memory: the whole model in float32 and the outputs of one text. Work: one
pass over all texts for each layer and scheme; the original's outputs are made once for each text and block, so that no
more than one text's are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from compress.core.blocks import read_weight, write_weight
from compress.core.checkpoint import Checkpoint, empty
from compress.core.numerics.affine import dequantize
from compress.core.types import LayerRef, Structure
from compress.pipeline.bank import Bank
from compress.pipeline.likelihood import Answers
from compress.pipeline.outside import Outside
from compress.pipeline.replay import Trace
from compress.pipeline.stream import Report
from compress.plan.uniform import all_layers

Divergences = dict[tuple[str, str], list[float]]
"""(layer, scheme) -> divergence of each text."""


class Swapped:
    """The whole model in memory, whose layers are swapped for what the bank has of them."""

    def __init__(self, checkpoint: Checkpoint, structure: Structure, outside: Outside, bank: Bank) -> None:
        """bank: of all layers that are asked about."""
        self.checkpoint, self.structure, self.outside, self.bank = checkpoint, structure, outside, bank

    @torch.no_grad()
    def divergences(self, block: int, traces: Sequence[Trace], answers: Answers, report: Report) -> Divergences:
        """Of the layers of one block, -1: of what lies outside the blocks. The model must be whole."""
        codes = self.bank.read(block)
        layers = {layer.name: layer for layer in all_layers(self.structure)}
        found: Divergences = {key: [] for key in codes}
        done = 0
        for number, trace in enumerate(traces):
            before = answers.outputs(number, trace, self.checkpoint.model(**trace.inputs))
            for (name, scheme), q in codes.items():
                report("measuring", done, len(codes) * len(traces))
                done += 1
                with _Swap(self.checkpoint, layers[name], dequantize(q)):
                    after = answers.outputs(number, trace, self.checkpoint.model(**trace.inputs))
                found[name, scheme].append(answers.divergence(before, after))
        return found

    def whole(self) -> ExitStack:
        """Inside, every parameter of the original is in memory."""
        held = ExitStack()
        for block in self.structure.blocks:
            self.checkpoint.fill(block.name)
            held.callback(empty, self.checkpoint.model.get_submodule(block.name))
        held.enter_context(self.outside.installed("original", vocabulary=True))
        return held


class _Swap:
    """Inside, a layer has another weight (O, I)."""

    def __init__(self, checkpoint: Checkpoint, layer: LayerRef, weight: torch.Tensor) -> None:
        self.parameter = checkpoint.model.get_parameter(layer.param)
        self.layer, self.weight = layer, weight

    def __enter__(self) -> None:
        self.kept = read_weight(self.layer, self.parameter)
        write_weight(self.layer, self.parameter, self.weight)

    def __exit__(self, *_: object) -> None:
        write_weight(self.layer, self.parameter, self.kept)
