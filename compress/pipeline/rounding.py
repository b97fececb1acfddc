"""What rounding the inputs of layers does to the loss, beside what their codes do: for layers whose inputs are int8.

Such a layer makes Q r(x) of x, W x before: its output moves by (Q - W) x + Q (r(x) - x). The first part is the product
of the weight's gradient with Q - W, whatever x; the second one is asked here, of each text: sum over tokens of g . Q e,
g the gradient at the layer's output and e = r(x) - x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.numerics.activation import fake_quantize
from compress.core.types import ActScheme, LayerPlan, LayerRef


@dataclass(frozen=True)
class Asked:
    """One treatment of a layer whose inputs are rounded. scheme: name of its codes'."""

    layer: LayerRef
    treatment: str
    scheme: str
    activation: ActScheme


@dataclass
class Seen:
    """Inputs (..., I) and outputs (..., O) of layers in the newest forward, by layer; outputs are in its graph."""

    calls: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    @property
    def outputs(self) -> list[Tensor]:
        """Every output, layer by layer."""
        return [output for calls in self.calls.values() for _, output in calls]


def asked_of(chosen: Mapping[str, Sequence[LayerPlan]], layers: Sequence[LayerRef]) -> list[Asked]:
    """The treatments of `layers` that round inputs on dynamic grids; static ones are not known before the codes."""
    return [
        Asked(layer, plan.treatment, plan.scheme.name, plan.activation)
        for layer in layers
        for plan in chosen.get(layer.name, ())
        if plan.activation is not None and plan.activation.dynamic
    ]


@contextmanager
def watching(model: nn.Module, asked: Sequence[Asked]) -> Iterator[Seen]:
    """Inside, what the layers of `asked` read and put out is in the result; `calls` is to be cleared by each forward's
    caller."""
    seen = Seen()

    def after(name: str) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            seen.calls.setdefault(name, []).append((given.detach(), output))

        return keep

    layers = {one.layer.name: one.layer for one in asked}
    hooks = [
        model.get_submodule(layer.param.rpartition(".")[0]).register_forward_hook(after(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def moved(
    asked: Sequence[Asked], seen: Seen, gradients: Sequence[Tensor | None], weights: Mapping[tuple[str, str], Tensor]
) -> dict[tuple[str, str], float]:
    """(layer, treatment) -> sum over tokens of g . Q (r(x) - x). gradients: at `seen.outputs`, in their order.

    weights: (layer, scheme) -> Q (O, I) float32.
    """
    at = iter(gradients)
    by_layer = {name: [(x, next(at)) for x, _ in calls] for name, calls in seen.calls.items()}
    found: dict[tuple[str, str], float] = {}
    for one in asked:
        total = 0.0
        for x, gradient in by_layer.get(one.layer.name, ()):
            if gradient is None:
                continue
            error = (fake_quantize(x, one.activation) - x).flatten(0, -2)
            back = gradient.flatten(0, -2) @ weights[one.layer.name, one.scheme]
            total += float((back * error).sum())
        found[one.layer.name, one.treatment] = total
    return found
