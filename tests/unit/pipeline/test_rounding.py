"""What rounding a layer's inputs does to the loss, against the change itself in float64."""

from __future__ import annotations

import torch
from torch import nn

from compress.core.numerics.activation import fake_quantize
from compress.core.types import ActScheme, LayerPlan, LayerRef, Scheme
from compress.pipeline.rounding import asked_of, moved, watching

INT8, TOKEN = Scheme.parse("int8-row-sym"), ActScheme()


class Small(nn.Module):
    """Two layers, the first of which is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A number for each token."""
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


def test_the_sum_is_the_change_of_the_output_times_its_gradient() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(2, 5, 6)
    layers = [LayerRef("first", "first.weight", (6, 6), 0, "first"), LayerRef("last", "last.weight", (1, 6), 0, "last")]
    plans = {
        "first": (LayerPlan("first", INT8, "rtn", "", activation=TOKEN), LayerPlan("first", INT8, "rtn", "")),
        "last": (LayerPlan("last", INT8, "rtn", ""),),
    }
    asked = asked_of(plans, layers)
    assert [(one.layer.name, one.treatment) for one in asked] == [("first", "int8-row-sym a8-token-dynamic-sym")]
    coded = model.first.weight.detach() + 0.01 * torch.randn(6, 6)
    with watching(model, asked) as seen:
        model(x), model(x)
    key = ("first", asked[0].treatment)
    assert len(seen.calls["first"]) == 4  # of two forwards: who asks clears them in between
    with watching(model, asked) as seen:
        gradients = torch.autograd.grad(model(x).sum(), seen.outputs)
    found = moved(asked, seen, gradients, {("first", "int8-row-sym"): coded})[key]
    wanted = 0.0
    for (given, _), gradient in zip(seen.calls["first"], gradients, strict=True):
        change = (fake_quantize(given, TOKEN).double() - given.double()) @ coded.double().T
        wanted += float((gradient.double() * change).sum())
    assert abs(wanted) > 1e-4
    assert abs(found - wanted) < 1e-5 * abs(wanted) + 1e-7
