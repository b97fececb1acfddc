"""Input statistics of the layers of one block, gathered while the model's own forward runs through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.core.errors import ModelError
from compress.core.types import BlockRef, LayerRef, LayerStats


class Collector(Protocol):
    """What a file of calibrate/collectors provides."""

    def add(self, x: Tensor) -> None:
        """Take tokens (..., I)."""

    @property
    def finite(self) -> bool:
        """False when an input was NaN or Inf."""

    def stats(self) -> LayerStats:
        """What was gathered."""


MakeCollector = Callable[[int], Collector]


class Collecting:
    """Collectors of one block. Layers that servers fuse read one input, so they share one collector."""

    def __init__(self, block: BlockRef, make: MakeCollector) -> None:
        self.block = block
        self._by_layer: dict[str, Collector] = {}
        self._owner: dict[str, str] = {}
        for layer in block.layers:
            owner = layer.fused_with[0] if layer.fused_with else layer.name
            self._owner[layer.name] = owner
            if owner not in self._by_layer:
                self._by_layer[owner] = make(layer.shape[1])

    def add(self, layer: LayerRef, x: Tensor) -> None:
        """Take the input of a layer; of fused layers only the first is counted."""
        if self._owner[layer.name] != layer.name:
            return
        self._by_layer[layer.name].add(x)

    def take(self, layer: LayerRef) -> LayerStats:
        """The statistics of a layer's input. Raises ModelError when an input was NaN or Inf."""
        collector = self._by_layer[self._owner[layer.name]]
        if not collector.finite:
            raise ModelError(
                f"the input of {layer.name} (block {self.block.index}) holds NaN or Inf values; "
                "the model overflows on this text, or its weights are broken"
            )
        return collector.stats()

    def drop(self, layer: LayerRef) -> None:
        """Give the memory of a layer's statistics back."""
        del self._by_layer[self._owner[layer.name]]


@contextmanager
def collecting(model: nn.Module, block: BlockRef, make: MakeCollector) -> Iterator[Collecting]:
    """Inside, every forward through `block` adds its inputs. The block's parameters must be in memory."""
    gathered = Collecting(block, make)
    hooks = []
    slices: dict[int, list[LayerRef]] = {}
    for layer in block.layers:
        if layer.expert is None:
            module = model.get_submodule(layer.param.rpartition(".")[0])
            hooks.append(module.register_forward_pre_hook(_hook(gathered, layer)))
        else:
            pointer = model.get_parameter(layer.param).untyped_storage().data_ptr()
            slices.setdefault(pointer, []).append(layer)
    try:
        with _Experts(gathered, slices):
            yield gathered
    finally:
        for hook in hooks:
            hook.remove()


def _hook(gathered: Collecting, layer: LayerRef) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        gathered.add(layer, args[0])

    return before


class _Experts(TorchFunctionMode):
    """Sees the matrix products with slices of fused expert weights, by where the slice lies in the storage."""

    def __init__(self, gathered: Collecting, slices: dict[int, list[LayerRef]]) -> None:
        super().__init__()
        self.gathered = gathered
        self.slices = slices

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.slices and func in _PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor):
            layers = self.slices.get(args[1].untyped_storage().data_ptr())
            if layers:
                rows, columns = layers[0].shape
                self.gathered.add(layers[args[1].storage_offset() // (rows * columns)], args[0])
        return func(*args, **(kwargs or {}))


_PRODUCTS = {torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
