"""The trial build: layers' parts in its loss against gradients by hand, on whole tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.core.blocks import read_weight, write_weight
from compress.core.journal import Journal
from compress.core.numerics.affine import dequantize
from compress.core.safetensors_file import read_header, read_tensor
from compress.core.types import torch_dtype
from compress.pipeline import trial
from compress.pipeline.bank import Bank
from compress.pipeline.outside import Outside
from compress.pipeline.store import Store
from compress.plan import budget
from tests.profiled import planning

BITS = 3


@pytest.mark.parametrize("name", ["llama", "bert-classifier", "bart"])
def test_parts_are_what_autograd_says_of_the_built_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "append", lambda self, kind, **more: self.lines.append({"kind": kind, **more}))
    monkeypatch.setattr(trial.shutil, "rmtree", lambda path: None)
    made = planning(name, tmp_path)
    found, _ = made.profile()
    ready, model = made.ready, made.ready.checkpoint.model
    chosen = {layer: (next(p for p in plans if p.scheme.bits == BITS or len(plans) < 3),)
              for layer, plans in made.chosen.items()}  # fmt: skip
    planned = budget.within(made.limits, ready.plan, ready.structure, chosen, found)
    told = trial.Trial(made, planned).run()
    parts, place = dict(told["parts"]), made.store.work / trial.FOLDER
    layers = [layer for layer in ready.structure.layers if planned.plan.layers[layer.name].scheme.kind != "dense"]
    assert set(parts) == {layer.name for layer in layers}
    bank = Bank(place / "compress" / "work", {plan.scheme for plan in planned.plan.layers.values()})
    blocks = ready.structure.blocks
    codes = {layer: dequantize(q) for block in blocks for (layer, _), q in bank.read(block.index).items()}
    errors = {
        key: read_tensor(entry, torch.float32)
        for path in sorted(bank.work.glob("errors-*"))
        for key, entry in read_header(path).items()
    }
    store = Store(ready.checkpoint, planned.plan, place, torch_dtype(ready.dtype))
    outside = Outside(ready.checkpoint, ready.structure, planned.plan, store)
    outside.load_small(store.block_path(-1))
    traces, answers = made.texts(judging=True)
    for block in blocks:
        ready.checkpoint.fill(block.name)
    with made.outside.installed("original", vocabulary=True), torch.no_grad():
        before = [answers.outputs(n, trace, model(**trace.inputs)) for n, trace in enumerate(traces)]
    moved = 0
    for block in blocks:
        store.round_kept(block)
    for layer in layers:
        parameter = model.get_parameter(layer.param)
        off = codes[layer.name] - read_weight(layer, parameter)
        moved += not torch.allclose(errors[layer.name], off, rtol=0.01, atol=1e-6)
        write_weight(layer, parameter, codes[layer.name])
    assert 0 < moved < len(layers)  # layers that write to the stream are rounded from other weights
    with outside.installed("compressed", vocabulary=True):
        for n, trace in enumerate(traces):
            for parameter in model.parameters():
                parameter.requires_grad_(True)
                parameter.grad = None
            loss = answers.loss(before[n], answers.outputs(n, trace, model(**trace.inputs)))
            loss.backward()
            assert told["losses"][n] == pytest.approx(float(loss.detach()), rel=1e-3)
            wanted = {
                layer.name: float(
                    (read_weight(layer, model.get_parameter(layer.param).grad) * errors[layer.name]).sum()
                )
                for layer in layers
            }
            scale = max(map(abs, wanted.values()))
            for key, value in wanted.items():
                assert parts[key][n] == pytest.approx(value / 2, abs=1e-3 * scale, rel=1e-2), key


def test_an_even_plan_has_as_many_bits_everywhere_as_fit(tmp_path: Path) -> None:
    made = planning("llama", tmp_path)
    found, _ = made.profile()
    assert trial.even(made, found) is None  # eight bits fit
    size = made.limits[0]
    for bits, share in ((4, 4.9), (3, 3.9), (2, 2.9)):
        weights = sum(layer.shape[0] * layer.shape[1] for layer in made.ready.structure.layers)
        room = replace(size, limit=size.fixed + share * weights / 8)
        planned = trial.even(replace(made, limits=[room]), found)
        assert planned is not None
        assert {planned.plan.layers[name].scheme.bits for name in made.chosen} == {bits}
        assert planned.totals[budget.BYTES] <= room.limit
