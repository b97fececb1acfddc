"""What can be multiplied into one part of a block and divided out of another: for scales and rotations.

A candidate is a norm, or the values of attention, or the ungated half of an FFN, and the layers that read what it puts
out. Which candidates leave the function alone is found by trying, not by knowing architectures: scales that are powers
of two change no bit of the block's output where the candidate is right; where it is not (post-norm blocks add the
norm's output to the stream as well), it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.core.types import BlockRef, LayerRef
from compress.pipeline.replay import Replay, Trace

FOLLOWS = {"o_proj": "v_proj", "down_proj": "up_proj"}
"""Roles whose input is linear in another layer's output, channel by channel."""


class Reparam(Protocol):
    """Changes a block's weights in place so that its function stays and its layers lose less when they are rounded."""

    name: str

    def change(self, block: BlockRef, replay: Replay, traces: Sequence[Trace]) -> list[str]:
        """Names of the layers whose inputs are changed. The block's original weights are in memory; traces, at least
        one, are the calibration text at its input."""


@dataclass(frozen=True)
class Heads:
    """Values of attention: `groups` heads of `width` channels, each read by `repeat` heads of queries (GQA)."""

    groups: int
    repeat: int
    width: int

    def spread(self, values: Tensor) -> Tensor:
        """One figure for each channel of the values -> one for each of attention's output."""
        return values.view(self.groups, 1, self.width).expand(-1, self.repeat, -1).reshape(-1)

    def gathered(self, outputs: Tensor) -> Tensor:
        """(repeat, V): the figures of attention's output that belong to each channel of the values."""
        return outputs.view(self.groups, self.repeat, self.width).transpose(0, 1).reshape(self.repeat, -1)


@dataclass(frozen=True)
class Candidate:
    """A module whose output channels can be scaled, and the layers that read them; heads: of values, else None."""

    source: str
    layers: tuple[LayerRef, ...]
    heads: Heads | None = None

    def of_source(self, inputs: Tensor) -> Tensor:
        """(n, C): the figures, one for each input of the layers, that belong to each of the source's C channels."""
        return inputs.unsqueeze(0) if self.heads is None else self.heads.gathered(inputs)

    def of_layers(self, scale: Tensor) -> Tensor:
        """The source's scale (C,) as one for each input of the layers."""
        return scale if self.heads is None else self.heads.spread(scale)


class Folding:
    """The candidates of one block, and what is done to them. The block's weights must be in memory."""

    def __init__(self, model: nn.Module, block: BlockRef) -> None:
        self.model, self.block = model, block
        self._layers = [layer for layer in block.layers if layer.container == "linear"]

    @torch.no_grad()
    def candidates(self, replay: Replay, trace: Trace) -> list[Candidate]:
        """Those that leave the block's output of `trace` the same to the last bit when they are scaled."""
        found = self._possible(self._sources(replay, trace))
        wanted = replay.run(trace, self.block.index) if found else None
        kept = []
        for candidate in found:
            rows = self.weight(candidate.layers[0]).shape[1] if candidate.heads is None else self._values(candidate)
            probe = torch.exp2((torch.arange(rows) % 3 - 1).float())
            self.scale(candidate, probe)
            same = wanted is not None and torch.equal(replay.run(trace, self.block.index), wanted)
            self.scale(candidate, 1 / probe)
            kept += [candidate] if same else []
        return kept

    def weight(self, layer: LayerRef) -> Tensor:
        """A layer's weight (O, I), itself."""
        return self.model.get_parameter(layer.param).data

    def module(self, layer: LayerRef) -> nn.Module:
        """The module of a layer."""
        return self.model.get_submodule(layer.param.rpartition(".")[0])

    def scale(self, candidate: Candidate, scale: Tensor) -> None:
        """Divide what the source puts out by `scale` (C,), and multiply the columns that read it."""
        for value in self.model.get_submodule(candidate.source).parameters(recurse=False):
            value.data.div_((scale if value.ndim == 1 else scale[:, None]).to(value.dtype))
        for layer in candidate.layers:
            self.weight(layer).mul_(candidate.of_layers(scale).to(self.weight(layer).dtype))

    def _values(self, candidate: Candidate) -> int:
        assert candidate.heads is not None
        return candidate.heads.groups * candidate.heads.width

    def _sources(self, replay: Replay, trace: Trace) -> dict[str, str]:
        """Layer -> the norm that its input comes from, where it is one's output."""
        sources: dict[str, str] = {}
        outputs: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is held, so that its id stays its own

        def reads(layer: LayerRef) -> Callable[..., None]:
            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                if id(x) in outputs:
                    sources[layer.name] = outputs[id(x)][0]

            return before

        def puts_out(name: str) -> Callable[..., None]:
            def after(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    outputs[id(output)] = (name, output)

            return after

        hooks = [self.module(la).register_forward_pre_hook(reads(la), with_kwargs=True) for la in self._layers]
        hooks += [module.register_forward_hook(puts_out(name)) for name, module in self._norms()]
        try:
            replay.visit(trace, self.block.index)
        finally:
            for hook in hooks:
                hook.remove()
        return sources

    def _norms(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules of the block whose parameters are vectors: norms, under whatever name."""
        for name, module in self.model.get_submodule(self.block.name).named_modules():
            own = dict(module.named_parameters(recurse=False))
            if isinstance(own.get("weight"), Tensor) and all(value.ndim == 1 for value in own.values()):
                yield f"{self.block.name}.{name}" if name else self.block.name, module

    def _possible(self, sources: dict[str, str]) -> list[Candidate]:
        by_norm: dict[str, list[LayerRef]] = {}
        for layer in self._layers:
            if layer.name in sources:
                by_norm.setdefault(sources[layer.name], []).append(layer)
        found = [Candidate(norm, tuple(layers)) for norm, layers in by_norm.items()]
        for layer in self._layers:
            before = [la for la in self._layers if la.role == FOLLOWS.get(layer.role)]
            if len(before) != 1 or layer.name in sources:
                continue
            heads = self._heads(before[0], layer) if layer.role == "o_proj" else None
            if heads is not None or before[0].shape[0] == layer.shape[1]:
                found.append(Candidate(before[0].param.rpartition(".")[0], (layer,), heads))
        return found

    def _heads(self, values: LayerRef, output: LayerRef) -> Heads | None:
        """How values are divided into heads, by the model's config; None where that does not fit the two layers."""
        config: Any = self.model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        every = getattr(text, "num_attention_heads", None)
        groups = getattr(text, "num_key_value_heads", None) or every
        rows, columns = values.shape[0], output.shape[1]
        if not isinstance(groups, int) or groups < 1 or rows % groups or columns % rows:
            return None
        return Heads(groups, columns // rows, rows // groups)
