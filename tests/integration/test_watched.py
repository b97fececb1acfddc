"""What a profile records of tokens, against gradients of whole tiny models; and that builds take it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.core.journal import Journal
from compress.core.safetensors_file import read_header, read_tensor
from compress.pipeline import profiling
from compress.pipeline.importance import LEAST, MOST
from compress.pipeline.profiling import ENOUGH, MOST_DRAWS
from compress.pipeline.solve import Job, Solved, solve
from tests.profiled import planning


@pytest.mark.parametrize("name", ["llama", "bert-classifier", "bart", "gpt_neox"])
def test_gradients_at_outputs_are_those_of_the_whole_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "append", lambda self, kind, **more: self.lines.append({"kind": kind, **more}))
    moments: dict[str, Tensor] = {}

    def solved(jobs: Iterable[Job]) -> list[Solved]:
        jobs = list(jobs)
        moments.update({job.layer.name: job.stats.hessian for job in jobs if job.stats is not None})
        return solve(jobs)

    monkeypatch.setattr(profiling, "solve", solved)
    made = planning(name, tmp_path)
    assert made.builds
    made.profile()
    ready, model = made.ready, made.ready.checkpoint.model
    files = sorted(made.store.work.parent.glob("importance-*"))
    recorded = {key: read_tensor(entry) for path in files for key, entry in read_header(path).items()}
    layers = {layer.param.rpartition(".")[0]: layer.name for layer in ready.structure.layers if layer.expert is None}
    traces, answers = made.texts(judging=False)
    assert {key.split(".", 1)[1] for key in recorded} == set(layers.values())
    assert {int(key.split(".", 1)[0]) for key in recorded} == set(range(len(traces)))
    for block in ready.structure.blocks:
        ready.checkpoint.fill(block.name)
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, list[Tensor]] = {layer: [] for layer in layers.values()}
    first: dict[str, list[Tensor]] = {layer: [] for layer in layers.values()}  # |g|^2 of the first draw

    def after(path: str) -> Any:
        def seen(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[layers[path]] = output
            inputs[layers[path]].append(args[0].detach().reshape(-1, args[0].shape[-1]))

        return seen

    hooks = [model.get_submodule(path).register_forward_hook(after(path)) for path in layers]
    with made.outside.installed("original", vocabulary=True):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        for number, trace in enumerate(traces):
            output = model(**trace.inputs)
            wanted = dict.fromkeys(outputs, torch.zeros(()))
            for draw in range(min(MOST_DRAWS, -(-ENOUGH // len(traces)))):
                score = answers(number, trace, output, draw)
                found = torch.autograd.grad(score, list(outputs.values()), retain_graph=True)
                if draw == 0:
                    for key, g in zip(outputs, found, strict=True):
                        first[key].append(g.square().sum(-1).reshape(-1))
                wanted = {key: wanted[key] + g.square().sum(-1) for key, g in zip(outputs, found, strict=True)}
            for key, energy in wanted.items():
                scale = float(energy.max())
                torch.testing.assert_close(recorded[f"{number}.{key}"], energy, rtol=1e-3, atol=1e-5 * scale)
    for hook in hooks:
        hook.remove()
    for layer in ready.structure.layers:  # what codes of the bank were solved for
        energy = torch.cat(first[layer.name])
        weights, x = (energy / energy.mean()).clamp(LEAST, MOST).sqrt().double(), torch.cat(inputs[layer.name]).double()
        expected = 2 / weights.sum() * (x.T * weights) @ x
        torch.testing.assert_close(
            moments[layer.name].double(), expected, rtol=1e-2, atol=1e-3 * float(expected.diagonal().mean())
        )
