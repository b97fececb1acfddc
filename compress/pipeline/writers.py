"""What the residual stream lacks after each layer that writes to it, gathered batch by batch.

The original model's forward goes first and leaves the stream as it should be; the compressed model's forward of the
same tokens follows, and the difference is what the layer can make good (calibrate/collectors/drift.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from compress.core.errors import CompressError
from compress.core.types import BlockRef, HalfStats, LayerRef
from compress.pipeline.writes import Writes

FLOOR = 0.01  # a token's energy counts as this share of the batch's median at least: none counts for all the others


class Drift(Protocol):
    """What a stream lacks against a layer's input, as calibrate/collectors/drift.py sums it."""

    def add(self, x: Tensor, missing: Tensor, weight: Tensor) -> None:
        """Take tokens (..., I), what the stream lacks (..., O), and weights (...,)."""

    def drift(self) -> Tensor:
        """What was gathered, (O, I)."""

    def half(self) -> HalfStats | None:
        """The same of half of the text."""


class Writers:
    """The layers of one block that write to the residual stream, and what it is after each in the original model.

    `original` runs the original's forward of every batch; the first decides which layers write: those of which every
    output is added to the stream. `batch` then says which one the compressed model is about to run. Memory: the stream
    after each writer for all batches, the block's own output, which the caller has already, counted once; two
    (O, I) and a (I, I) matrix for each writer of the layers being solved.
    """

    def __init__(self, block: BlockRef, make: Callable[[int, int], Drift]) -> None:
        self.calls: dict[str, int] = {}
        self._block = block
        self._make = make
        self._able = {la.name: la for la in block.layers if la.expert is None and not la.fused_with}
        self.adds: dict[str, int] = {}
        self._streams: list[dict[str, list[Tensor]]] = []
        self._now: dict[str, list[Tensor]] = {}
        self._inputs: dict[str, list[Tensor]] = {}
        self._mask: Tensor | None = None
        self._drift: dict[str, Drift] = {}

    def original(self, model: nn.Module, forward: Callable[[], Tensor]) -> None:
        """Run `forward`, the original `model`'s of the next batch; it returns the block's output (B, L, D)."""
        found: dict[str, list[Tensor]] = {}
        calls: dict[str, int] = {}

        def written(name: str, stream: Tensor) -> None:
            found.setdefault(name, []).append(stream.detach().clone())  # it may be added to in place

        def count(name: str) -> Callable[..., None]:
            return lambda *_: calls.update({name: calls.get(name, 0) + 1})

        writes = Writes(written)
        hooks = [_module(model, la).register_forward_hook(writes.after(la.name)) for la in self._able.values()]
        for layer in self._block.layers:
            if layer.expert is None:
                hooks.append(_module(model, layer).register_forward_pre_hook(count(layer.name)))
        try:
            with writes:
                output = forward()
        finally:
            for hook in hooks:
                hook.remove()
        if not self._streams:
            self.calls = calls
            width = output.shape[-1]
            self.adds = {
                name: writes.adds[name]
                for name, streams in found.items()
                if len(streams) == calls[name] and all(stream.shape[-1] == width for stream in streams)
            }
        kept = {name: streams for name, streams in found.items() if name in self.adds}
        for streams in kept.values():
            if streams[-1].shape == output.shape and torch.equal(streams[-1], output):
                streams[-1] = output
        self._streams.append(kept)

    def batch(self, number: int, mask: Tensor | None = None) -> None:
        """The compressed model's forward of this batch is about to run. mask: (rows, L), what is not padding."""
        self._mask = mask
        self._now = {name: list(streams) for name, streams in self._streams[number].items()}
        self._inputs.clear()

    def writes(self, layer: LayerRef) -> bool:
        """Whether `layer` is known to write to the stream."""
        return layer.name in self.adds

    def reads(self, layer: LayerRef, x: Tensor) -> Tensor | None:
        """`layer` reads x (..., I): the weights (...,) of its tokens, None when it does not write.

        Raises CompressError when it did not write in the original model's forward of the same tokens.
        """
        if not self.writes(layer):
            return None
        inputs, streams = self._inputs.setdefault(layer.name, []), self._now.get(layer.name, [])
        if not streams or streams[0].shape[:-1] != x.shape[:-1]:
            raise CompressError(
                f"{layer.name} (block {self._block.index}) writes to the residual stream for some tokens and not for "
                "others; use --option correct=false"
            )
        inputs.append(x)
        return token_weights(streams[0])

    def wrote(self, name: str, stream: Tensor) -> None:
        """The layer whose input was read last has written: the stream (B, L, D) is this now."""
        x, wanted = self._inputs[name].pop(0), self._now[name].pop(0)
        if name not in self._drift:
            self._drift[name] = self._make(*self._able[name].shape)
        weights = token_weights(wanted)
        if self._mask is not None and self._mask.shape == weights.shape:
            weights = weights * self._mask
        self._drift[name].add(x, wanted - stream, weights)

    def forget(self, step: BlockRef) -> None:
        """The layers of `step` are solved: what the stream after them should be is needed no longer."""
        for streams in self._streams:
            for layer in step.layers:
                streams.pop(layer.name, None)

    def take(self, layer: LayerRef) -> Drift | None:
        """What a layer's stream lacks, given away; None when it does not write, or was never reached."""
        return self._drift.pop(layer.name, None)


def _module(model: nn.Module, layer: LayerRef) -> nn.Module:
    return model.get_submodule(layer.param.rpartition(".")[0])


def token_weights(stream: Tensor) -> Tensor:
    """What each token counts, (...,): 1 / mean(r^2) for the stream r (..., D), so that an error counts as it does after
    the norm that reads the stream; a token of outsize activations (attention sinks) would else count for all."""
    energy = stream.square().mean(-1)
    return 1.0 / torch.maximum(energy, FLOOR * energy.median()).clamp_min(torch.finfo(energy.dtype).tiny)
