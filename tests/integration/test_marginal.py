"""What other choices would do to a plan: against gradients by hand, on whole tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.core.blocks import read_weight, write_weight
from compress.core.journal import Journal
from compress.core.numerics.affine import dequantize
from compress.core.types import LayerPlan, Plan, Scheme, Sensitivity
from compress.pipeline.draws import Draws
from compress.pipeline.marginal import Marginal
from compress.plan.budget import Planned
from compress.plan.variants import at_a_plan
from tests.profiled import planning


@pytest.mark.parametrize("name", ["llama", "bert-classifier", "bart"])
def test_it_is_what_autograd_says_of_the_whole_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both terms, at a plan of two and three bits, by the gradients of the model with these weights in memory."""
    monkeypatch.setattr(Journal, "append", lambda self, kind, **more: self.lines.append({"kind": kind, **more}))
    made = planning(name, tmp_path)
    made.profile()
    traces, answers = made.texts(judging=False)
    ready, model = made.ready, made.ready.checkpoint.model
    blocks = ready.structure.blocks
    for block in {block.stack: block for block in blocks}.values():
        made.store.read_state(block, traces)
    draws = Draws(ready, made.outside, made.bank, made.report)
    layers = ready.structure.layers
    codes = {key: dequantize(q) for block in blocks for key, q in made.bank.read(block.index).items()}
    bits = {
        layer.name: next(p.treatment for p in made.chosen[layer.name] if p.scheme.bits == 2 + n % 2)
        for n, layer in enumerate(layers)
    }
    moves = Marginal(draws, made.store, made.report).moves(bits, traces, answers)
    assert {key for key in moves if key[0] in bits} == set(codes)
    assert not list((made.store.work / "marginal").iterdir())
    wanted = dict.fromkeys(codes, 0.0)
    with made.outside.installed("original", vocabulary=True):
        for block in blocks:
            ready.checkpoint.fill(block.name)
        with torch.no_grad():
            before = [answers.outputs(n, trace, model(**trace.inputs)) for n, trace in enumerate(traces)]
        for layer in layers:
            write_weight(layer, model.get_parameter(layer.param), codes[layer.name, bits[layer.name]])
        for n, trace in enumerate(traces):
            for term in (0, 1):
                for parameter in model.parameters():
                    parameter.requires_grad_(True)
                    parameter.grad = None
                output = model(**trace.inputs)
                if term == 0:
                    loss = answers.loss(before[n], answers.outputs(n, trace, output))
                else:
                    loss = answers(n, trace, output, 1)
                loss.backward()
                for layer in layers:
                    parameter = model.get_parameter(layer.param)
                    gradient, here = read_weight(layer, parameter.grad), read_weight(layer, parameter.detach())
                    for scheme in [s for la, s in codes if la == layer.name]:
                        dot = float((gradient.double() * (codes[layer.name, scheme] - here)).sum())
                        wanted[layer.name, scheme] += dot if term == 0 else dot * dot / 2
    total = sum(answers.counts[n] for n in range(len(traces)))
    scale = max(abs(value) for value in wanted.values()) / total
    for key, value in wanted.items():
        assert moves[key] == pytest.approx(value / total, abs=1e-4 * scale, rel=1e-3), key


def test_costs_at_a_plan() -> None:
    """By hand: of two layers one is asked about, its least cost stays, its other ones move by half of what was said."""
    schemes = [Scheme("int", bits, 32, True) for bits in (2, 4)]
    found = [
        Sensitivity(layer, scheme.name, value, value, value, scheme.bits, 0.1)
        for layer in ("a", "b")
        for scheme, value in zip(schemes, (0.5, 0.1), strict=True)
    ]
    layers = {name: LayerPlan(name, schemes[0], "gptq", "") for name in ("a", "b")}
    planned = Planned(Plan(layers, 0), {}, 0.0, 0.0, 0.0)
    moves = {("a", schemes[0].name): 0.0, ("a", schemes[1].name): -0.8}
    costs = at_a_plan(found, moves, planned, 0.5)
    # asked: .8 less; alone: .4 less; half of each: .6 less
    assert [one.value for one in costs] == pytest.approx([0.7, 0.1, 0.5, 0.1])
