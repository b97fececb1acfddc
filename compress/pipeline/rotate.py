"""Values of attention rotated head by head: nothing has to be computed when the model runs.

Attention adds up values, weighted alike in all channels of a head, so a rotation R of each head's values comes out of
it as it went in: R is multiplied into the rows (and biases) of the values, its inverse into the columns of attention's
output, and the function is the same up to rounding of floats. QuaRot's rotations of the residual stream are not made:
the streams of original and compressed model would be in different bases, and block by block they are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.core.numerics.rotation import random_rotation
from compress.core.types import BlockRef
from compress.pipeline.folding import Candidate, Folding
from compress.pipeline.replay import Replay, Trace

TOLERANCE = 1e-4  # of the largest output: what float32 may differ by; where a rotation is wrong nothing is left alike


class Rotate:
    """Rotates the values of a block's attention before it is solved. seed: the same rotations for the same block."""

    name = "rotate"

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._model, self._seed = model, seed

    @torch.no_grad()
    def change(self, block: BlockRef, replay: Replay, traces: Sequence[Trace]) -> list[str]:
        """Change the block's weights in place; names of the layers whose inputs are rotated now."""
        folding = Folding(self._model, block)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + block.index)
        done: list[str] = []
        for candidate in folding.candidates(replay, traces[0]):
            if candidate.heads is None:
                continue
            wanted = replay.run(traces[0], block.index)
            touched = [*self._model.get_submodule(candidate.source).parameters(recurse=False)]
            touched += [self._model.get_parameter(layer.param) for layer in candidate.layers]
            kept = [parameter.data.clone() for parameter in touched]
            heads = candidate.heads
            rotations = torch.stack([random_rotation(heads.width, generator) for _ in range(heads.groups)])
            _rotate(folding, candidate, rotations)
            off = float((replay.run(traces[0], block.index) - wanted).abs().max())
            if off <= TOLERANCE * float(wanted.abs().max()):
                done += [layer.name for layer in candidate.layers]
                continue
            for parameter, before in zip(touched, kept, strict=True):
                parameter.data.copy_(before)
        return done


def _rotate(folding: Folding, candidate: Candidate, rotations: Tensor) -> None:
    """rotations: (groups, width, width) float64; each head's values v become R v."""
    assert candidate.heads is not None
    groups, repeat, width = candidate.heads.groups, candidate.heads.repeat, candidate.heads.width
    for value in folding.model.get_submodule(candidate.source).parameters(recurse=False):
        rows = value.data.double().reshape(groups, width, -1)
        value.data.copy_((rotations @ rows).reshape(value.shape))
    for layer in candidate.layers:
        weight = folding.weight(layer)
        columns = weight.double().reshape(len(weight), groups, repeat, width)
        # w v = (w R^T) (R v)
        weight.copy_(torch.einsum("ogrw,gvw->ogrv", columns, rotations).reshape(weight.shape))
