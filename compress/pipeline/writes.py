"""Which layers of a block write to the residual stream, seen while the model's own forward runs.

A layer writes when its output, or a sum of such outputs, is added to anything else of the same shape; the sum is the
stream after it. Nothing is known of architectures: what is never added as it is (normalised, scaled or gated first) is
no write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SUMS = {torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__}


class Writes(TorchFunctionMode):
    """Inside, `written(layer, stream)` is called at every write; stream: the sum, of the output's shape.

    Of layers whose outputs are added to each other first (gpt-neox' parallel attention) only the last to run is named:
    each of them would make good the same loss. `adds` has how many additions lie between a layer's output and the
    stream; given it, they are counted instead, so that not every layer needs to run. Holds the outputs that were not
    added yet; `forget` drops them.
    """

    def __init__(self, written: Callable[[str, Tensor], None], adds: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.adds: dict[str, int] = dict(adds or {})
        self._known = adds is not None
        self._written = written
        self._outputs: dict[int, tuple[Tensor, str, int]] = {}
        self._order: list[str] = []

    def forget(self) -> None:
        """A forward starts, or has ended."""
        self._outputs.clear()
        self._order.clear()

    def after(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook for the module of `layer`."""

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs[id(output)] = (output, layer, 0)
                self._order.append(layer)

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._outputs and func in _SUMS and not kwargs and len(args) == 2:
            self._added(args[0], args[1], result)
        return result

    def _added(self, one: Any, other: Any, result: Any) -> None:
        if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape):
            return
        found = [entry for term in (one, other) if (entry := self._outputs.pop(id(term), None)) is not None]
        if not found:
            return
        _, layer, count = max(found, key=lambda entry: self._order.index(entry[1]))
        if len(found) == 2 if not self._known else count + 1 < self.adds[layer]:
            self._outputs[id(result)] = (result, layer, count + 1)
        else:
            self.adds[layer] = count + 1
            self._written(layer, result)
