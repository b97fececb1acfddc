"""SmoothQuant in one block: outlying inputs made smaller, their columns larger, where that leaves the function alone.

Scales are powers of two, so the model is the same to the last bit (compress.pipeline.folding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.numerics.smooth import smoothing_scale
from compress.core.types import BlockRef, LayerRef
from compress.pipeline.folding import Folding
from compress.pipeline.replay import Replay, Trace


class Smooth:
    """Smooths the inputs of a block's layers before they are solved. alpha: as in smoothing_scale."""

    name = "smooth"

    def __init__(self, model: nn.Module, alpha: float) -> None:
        self._model, self._alpha = model, alpha

    @torch.no_grad()
    def change(self, block: BlockRef, replay: Replay, traces: Sequence[Trace]) -> list[str]:
        """Change the block's weights in place; names of the layers whose inputs are smooth now."""
        folding = Folding(self._model, block)
        candidates = folding.candidates(replay, traces[0])
        largest = _largest(folding, [candidate.layers[0] for candidate in candidates], replay, traces)
        for candidate in candidates:
            columns = torch.stack([folding.weight(layer).abs().amax(0) for layer in candidate.layers]).amax(0)
            inputs, weights = (candidate.of_source(v).amax(0) for v in (largest[candidate.layers[0].name], columns))
            folding.scale(candidate, smoothing_scale(inputs, weights, self._alpha))
        return [layer.name for candidate in candidates for layer in candidate.layers]


def _largest(
    folding: Folding, layers: Sequence[LayerRef], replay: Replay, traces: Sequence[Trace]
) -> dict[str, Tensor]:
    """Largest |x| of each channel that these layers read."""
    largest: dict[str, Tensor] = {}

    def reads(layer: LayerRef) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            found = x.detach().reshape(-1, x.shape[-1]).abs().amax(0)
            known = largest.get(layer.name)
            largest[layer.name] = found if known is None else torch.maximum(known, found)

        return before

    hooks = [folding.module(la).register_forward_pre_hook(reads(la), with_kwargs=True) for la in layers]
    try:
        for trace in traces:
            replay.visit(trace, folding.block.index)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
