"""Input statistics of the layers of one block, gathered while the model's own forward runs through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.core.errors import CompressError, ModelError
from compress.core.numerics.error import all_finite
from compress.core.types import BlockRef, LayerRef, LayerStats, ValueCounts
from compress.pipeline.importance import weighed
from compress.pipeline.replay import Reached
from compress.pipeline.writers import Writers
from compress.pipeline.writes import Writes


class Collector(Protocol):
    """Second moments of one input, as calibrate/collectors/hessian.py sums them."""

    def add(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Take tokens (..., I), each counted by its weight (...,) or as 1."""

    @property
    def finite(self) -> bool:
        """False when an input was NaN or Inf."""

    def stats(self) -> LayerStats:
        """What was gathered."""


class Values(Protocol):
    """How often values of one input occur, as calibrate/collectors/values.py counts them."""

    def add(self, x: Tensor) -> None:
        """Take tokens (..., I)."""

    def counts(self) -> ValueCounts:
        """What was gathered."""


class Counted:
    """A collector that counts the values of its input as well, for static int8 grids."""

    def __init__(self, moments: Collector, values: Values) -> None:
        self._moments, self._values = moments, values

    def add(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Take tokens (..., I); values are counted once, whatever the weight."""
        self._moments.add(x, weight)
        self._values.add(x)

    @property
    def finite(self) -> bool:
        """False when an input was NaN or Inf."""
        return self._moments.finite

    def stats(self) -> LayerStats:
        """What was gathered, with the values."""
        return replace(self._moments.stats(), values=self._values.counts())


MakeCollector = Callable[[int], Collector]
_Identity = tuple[int, tuple[int, ...], tuple[int, ...], int]  # address, shape, strides, version


class Collecting:
    """Collectors of the layers of one block, or of one step of it; layers that read one and the same input share one.

    Servers fuse q, k and v because they read one input, but not every model keeps to it: deberta's query and key are
    also multiplied with relative positions, its value is not. So the first forward decides: the inputs of fused layers
    are held until it ends, and only layers that were given the same tensors share a collector from then on.
    Where tokens count by gradients (`apart`), each layer has a collector of its own: what values err by on a token that
    many attend to is in every output, and counted as queries and keys have it they lose nearly twice as much.
    Memory beyond the collectors: two copies of one batch's distinct inputs of fused layers, until that forward ends.
    """

    def __init__(
        self, block: BlockRef, make: MakeCollector, writers: Writers | None = None, apart: bool = False
    ) -> None:
        self.block = block
        self.writers = writers
        self.mask: Tensor | None = None  # (rows, L) of the batch that runs: what is not padding; None: everything
        # of the same batch, layer -> what compress.pipeline.importance knows of its tokens; None: it is not asked
        self.energies: Mapping[str, Tensor] | None = None
        self._make = make
        self._left: dict[str, int] | None = None
        self._by_layer: dict[str, Collector] = {}
        self._of_drift: dict[str, Collector] = {}  # of layers that write, each token counted as in their drift
        self._owner: dict[str, str] = {}
        self._tokens: dict[str, int] = {layer.name: 0 for layer in block.layers}
        self._held: dict[str, list[_Identity]] | None = None
        # the tensor itself, so that its address is not used again; its values, should it be changed in place; weights
        self._kept: dict[_Identity, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._fused = {layer.name: layer for layer in block.layers if layer.fused_with and not apart}
        for layer in block.layers:
            if layer.name not in self._fused:
                self._owner[layer.name] = layer.name
                self._by_layer[layer.name] = make(layer.shape[1])

    def begin(self) -> None:
        """A forward through the block starts."""
        self._left = self._calls()
        if self._held is not None:
            self._settle()
        elif not self._decided:
            self._held = {name: [] for name in self._fused}

    def _calls(self) -> dict[str, int] | None:
        """How often a forward calls each layer; None when that depends on the tokens, or is not known."""
        if self.writers is None or any(layer.expert is not None for layer in self.block.layers):
            return None
        return {layer.name: self.writers.calls.get(layer.name, 0) for layer in self.block.layers}

    def _seen(self, layer: LayerRef) -> None:
        """A layer is done with; the forward is unwound when it was the last. Raises Reached."""
        if self._left is not None:
            self._left[layer.name] -= 1
            if not any(self._left.values()):
                raise Reached

    @property
    def _decided(self) -> bool:
        return len(self._owner) == len(self.block.layers)

    def add(self, layer: LayerRef, x: Tensor) -> None:
        """Take the input (..., I) of a layer; of layers that share it only the first is counted."""
        weight = self.writers.reads(layer, x) if self.writers is not None else None
        writes = weight is not None
        if self.energies is not None:
            weight = self._weighed(layer, x, weight)
        weight = None if weight is None else self._text(weight, 0)
        self._tokens[layer.name] += x.numel() // x.shape[-1]
        if layer.name not in self._owner:
            self._hold(layer.name, x, weight)
        elif self._owner[layer.name] == layer.name:
            self._by_layer[layer.name].add(self._text(x), weight)
        if not writes:
            self._seen(layer)

    def _weighed(self, layer: LayerRef, x: Tensor, weight: Tensor | None) -> Tensor:
        """Weights with what gradients say. Corrections do without: they are fitted to few tokens as it is."""
        assert self.energies is not None
        if weight is None:
            return weighed(torch.ones(x.shape[:-1], device=x.device), self.energies.get(layer.name))
        if layer.name not in self._of_drift:
            self._of_drift[layer.name] = self._make(layer.shape[1])
        self._of_drift[layer.name].add(self._text(x), self._text(weight, 0))
        return weighed(weight, self.energies.get(layer.name))

    def written(self, name: str, stream: Tensor) -> None:
        """A layer was added to the residual stream, which is `stream` (B, L, D) now."""
        layer = next((layer for layer in self.block.layers if layer.name == name), None)
        if layer is not None and self.writers is not None and self.writers.writes(layer):
            self.writers.wrote(name, stream)
            self._seen(layer)

    def _hold(self, name: str, x: Tensor, weight: Tensor | None) -> None:
        assert self._held is not None
        rows = x.reshape(-1, x.shape[-1])
        identity = (rows.data_ptr(), tuple(rows.shape), rows.stride(), rows._version)
        if identity not in self._kept:
            self._kept[identity] = (rows, self._text(rows).clone(), weight)
        self._held[name].append(identity)

    def _text(self, x: Tensor, last: int = 1) -> Tensor:
        """Without padding: (n, I) of x (..., I), with last=0 (n,) of x (...,). What has other tokens stays as it is."""
        if self.mask is None or math.prod(x.shape[: x.dim() - last]) != self.mask.numel():
            return x
        return x.reshape(-1, *x.shape[x.dim() - last :])[self.mask.reshape(-1)]

    def _settle(self) -> None:
        """Give every distinct list of inputs one collector, and add what was held."""
        held, self._held = self._held or {}, None
        kept, self._kept = self._kept, {}
        owners: dict[tuple[object, ...], str] = {}
        for name, layer in self._fused.items():
            inputs = held.get(name, [])
            self._owner[name] = owners.setdefault((layer.fused_with, *inputs), name)
            if self._owner[name] == name:
                self._by_layer[name] = self._make(layer.shape[1])
                for identity in inputs:
                    self._by_layer[name].add(*kept[identity][1:])

    def inputs(self) -> list[list[LayerRef]]:
        """The layers of the block, those that share an input together, in execution order."""
        if not self._decided:
            self._settle()
        groups: dict[str, list[LayerRef]] = {}
        for layer in self.block.layers:
            groups.setdefault(self._owner[layer.name], []).append(layer)
        return list(groups.values())

    def take(self, layer: LayerRef) -> LayerStats:
        """The statistics of a layer's input. Raises ModelError when an input was NaN or Inf."""
        if not self._decided:
            self._settle()
        owner = self._owner[layer.name]
        if self._tokens[layer.name] != self._tokens[owner]:
            raise CompressError(
                f"{layer.name} read {self._tokens[layer.name]} tokens and {owner} {self._tokens[owner]}, in the first "
                "forward they read the same; use --method rtn, which reads none"
            )
        collector = self._by_layer[owner]
        if not collector.finite:
            raise ModelError(
                f"the input of {layer.name} (block {self.block.index}) holds NaN or Inf values; "
                "the model overflows on this text, or its weights are broken"
            )
        stats = collector.stats()
        lacks = self.writers.take(layer) if self.writers is not None else None
        drift = lacks.drift() if lacks is not None else None
        if drift is not None and not all_finite(drift):
            raise ModelError(
                f"the residual stream after {layer.name} (block {self.block.index}) holds NaN or Inf values"
            )
        if lacks is None:
            return stats
        plain = self._of_drift.get(owner)
        moments = None if plain is None else plain.stats().hessian
        return replace(stats, drift=drift, half=lacks.half(), drift_hessian=moments)

    def drop(self, layer: LayerRef) -> None:
        """Give the memory of a layer's statistics back."""
        del self._by_layer[self._owner[layer.name]]
        self._of_drift.pop(layer.name, None)


@contextmanager
def collecting(
    model: nn.Module, block: BlockRef, make: MakeCollector, writers: Writers | None = None, apart: bool = False
) -> Iterator[Collecting]:
    """Inside, every forward through `block` adds its inputs. The block's parameters must be in memory.

    writers: what the original model's forwards left, to compare what is written to the residual stream with; each
    forward is then unwound (Reached) as soon as the layers of `block`, which may be one step of it, have been seen.
    apart: no two layers share a collector.
    """
    gathered = Collecting(block, make, writers, apart)
    writes = Writes(gathered.written, writers.adds if writers is not None else {})
    # prepended: the block itself may be one of the layers
    home = model.get_submodule(block.name)

    def begin(*_: Any) -> None:
        writes.forget()
        gathered.begin()

    hooks = [home.register_forward_pre_hook(begin, prepend=True)]
    slices: dict[int, list[LayerRef]] = {}
    for layer in block.layers:
        if layer.expert is None or layer.container == "linear":
            module = model.get_submodule(layer.param.rpartition(".")[0])
            hooks.append(module.register_forward_pre_hook(_hook(gathered, layer), with_kwargs=True))
            if writers is not None and writers.writes(layer):
                hooks.append(module.register_forward_hook(writes.after(layer.name)))
        else:
            pointer = model.get_parameter(layer.param).untyped_storage().data_ptr()
            slices.setdefault(pointer, []).append(layer)
    try:
        with _Experts(gathered, slices), writes:
            yield gathered
    finally:
        writes.forget()
        for hook in hooks:
            hook.remove()


def _hook(gathered: Collecting, layer: LayerRef) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        gathered.add(layer, args[0] if args else next(iter(kwargs.values())))

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
