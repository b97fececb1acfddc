"""SmoothQuant in one block: which modules can take a scale is found by trying it, not by knowing architectures.

A candidate divides what a norm (or the values of attention, or the ungated half of an FFN) puts out and multiplies the
columns of the layers that read it. Scales are powers of two, so where the candidate is right the block's output is the
same to the last bit; where it is not (post-norm blocks add the norm's output to the stream as well), it differs, and
the weights return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.numerics.smooth import smoothing_scale
from compress.core.types import BlockRef, LayerRef
from compress.pipeline.replay import Replay, Trace

FOLLOWS = {"o_proj": "v_proj", "down_proj": "up_proj"}
"""Roles whose input is linear in another layer's output, channel by channel."""


@dataclass(frozen=True)
class Candidate:
    """A module whose output channels can be scaled, and the layers that read them."""

    source: str
    layers: tuple[LayerRef, ...]


class Smoother:
    """Smooths the inputs of a block's layers before they are solved. The block's original weights must be in memory."""

    def __init__(self, model: nn.Module, block: BlockRef, alpha: float) -> None:
        self._model, self._block, self._alpha = model, block, alpha
        self._layers = [layer for layer in block.layers if layer.container == "linear"]

    @torch.no_grad()
    def smooth(self, replay: Replay, traces: Sequence[Trace]) -> list[str]:
        """Change the block's weights in place; names of the layers whose inputs are smooth now."""
        if not traces:
            return []
        largest, sources = self._look(replay, traces)
        wanted = replay.run(traces[0], self._block.index)
        done: list[str] = []
        for candidate in self._candidates(sources):
            columns = torch.stack([self._weight(layer).abs().amax(0) for layer in candidate.layers]).amax(0)
            scale = smoothing_scale(largest[candidate.layers[0].name], columns, self._alpha)
            self._apply(candidate, scale)
            if torch.equal(replay.run(traces[0], self._block.index), wanted):
                done += [layer.name for layer in candidate.layers]
            else:
                self._apply(candidate, 1 / scale)
        return done

    def _weight(self, layer: LayerRef) -> Tensor:
        return self._model.get_parameter(layer.param).data

    def _module(self, layer: LayerRef) -> nn.Module:
        return self._model.get_submodule(layer.param.rpartition(".")[0])

    def _look(self, replay: Replay, traces: Sequence[Trace]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Largest |x| of each channel, and the norm that a layer's input comes from, where it is one's output."""
        largest: dict[str, Tensor] = {}
        sources: dict[str, str] = {}
        outputs: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is held, so that its id stays its own

        def reads(layer: LayerRef) -> Callable[..., None]:
            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                found = x.detach().reshape(-1, x.shape[-1]).abs().amax(0)
                known = largest.get(layer.name)
                largest[layer.name] = found if known is None else torch.maximum(known, found)
                if id(x) in outputs:
                    sources[layer.name] = outputs[id(x)][0]

            return before

        def puts_out(name: str) -> Callable[..., None]:
            def after(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    outputs[id(output)] = (name, output)

            return after

        hooks = [self._module(la).register_forward_pre_hook(reads(la), with_kwargs=True) for la in self._layers]
        for name, module in self._norms():
            hooks.append(module.register_forward_hook(puts_out(name)))
        try:
            for trace in traces:
                outputs.clear()
                replay.visit(trace, self._block.index)
        finally:
            for hook in hooks:
                hook.remove()
        return largest, sources

    def _norms(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules of the block whose parameters are vectors: norms, under whatever name."""
        for name, module in self._model.get_submodule(self._block.name).named_modules():
            own = dict(module.named_parameters(recurse=False))
            if isinstance(own.get("weight"), Tensor) and all(value.ndim == 1 for value in own.values()):
                yield f"{self._block.name}.{name}" if name else self._block.name, module

    def _candidates(self, sources: dict[str, str]) -> list[Candidate]:
        by_norm: dict[str, list[LayerRef]] = {}
        for layer in self._layers:
            if layer.name in sources:
                by_norm.setdefault(sources[layer.name], []).append(layer)
        found = [Candidate(norm, tuple(layers)) for norm, layers in by_norm.items()]
        for layer in self._layers:
            before = [la for la in self._layers if la.role == FOLLOWS.get(layer.role) and la.shape[0] == layer.shape[1]]
            if len(before) == 1 and layer.name not in sources:
                found.append(Candidate(before[0].param.rpartition(".")[0], (layer,)))
        return found

    def _apply(self, candidate: Candidate, scale: Tensor) -> None:
        source = self._model.get_submodule(candidate.source)
        for value in source.parameters(recurse=False):
            value.data.div_(scale if value.ndim == 1 else scale[:, None])
        for layer in candidate.layers:
            self._weight(layer).mul_(scale)
