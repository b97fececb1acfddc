"""Whole plans through the bank's codes, against the whole model with those codes put in by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.blocks import write_weight
from compress.core.journal import Journal
from compress.core.numerics.affine import dequantize
from compress.core.types import torch_dtype
from compress.pipeline import budgeted
from compress.pipeline.draws import Draws, Picks
from compress.pipeline.hooks import Hooks
from compress.pipeline.outside import Outside
from compress.pipeline.planning import Planning
from compress.pipeline.prepare import open_and_plan
from compress.pipeline.store import Store
from compress.plan.uniform import all_layers
from compress.recipe import Recipe
from tests.rebuild import auto_class, write_text
from tests.tiny import save_tiny


def planning(name: str, folder: Path, **settings: Any) -> Planning:
    """Everything that planning works with, its bank filled."""
    text = write_text(folder / "text.txt")
    recipe = Recipe.build(
        model=str(save_tiny(name, folder / name)), data=str(text), samples=12, seq_len=32, eval_samples=2, threads=1,
        max_bytes="1GB", **settings,
    )  # fmt: skip
    ready = open_and_plan(recipe, Hooks())
    out = folder / "out"
    journal = Journal.open(out, {"test": name})
    store = Store(ready.checkpoint, ready.plan, out, torch_dtype(ready.dtype))
    outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
    outside.compress(store.block_path(-1))
    outside.load_small(store.block_path(-1))
    chosen = budgeted.choices(ready)
    made = Planning(ready, chosen, budgeted.limits_of(ready, chosen), store, outside, journal, Hooks().report)
    made.profile()
    return made


def some_plans(made: Planning) -> list[Picks]:
    """All at the fewest bits; one layer of the second block only; both with the embedding, where it is chosen for."""
    layers = made.ready.structure.layers
    fewest = {layer.name: made.chosen[layer.name][0].scheme.name for layer in layers}
    late = next(layer.name for layer in layers if layer.block == 1)
    plans: list[Picks] = [fewest, {late: fewest[late]}, {**fewest, late: made.chosen[late][-1].scheme.name}]
    table = made.ready.structure.embedding
    if table is not None and table.name in made.chosen:
        plans += [{**plan, table.name: "int8-row-sym"} for plan in plans[:2]] + [{table.name: "int8-row-sym"}]
    return plans


@pytest.mark.parametrize(("name", "settings"), [("llama", {}), ("bart", {}), ("bert-classifier", {})])
def test_draws_are_what_the_whole_model_gives(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    made = planning(name, tmp_path, **settings)
    plans = some_plans(made)
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 200, (2, 12), generator=draw) for _ in range(3)]
    second = {"decoder_input_ids"} if name == "bart" else set()
    inputs = [{"input_ids": one, **dict.fromkeys(second, one.flip(0))} for one in ids]
    seen: dict[tuple[int, int], torch.Tensor] = {}
    order: list[int] = []

    def see(plan: int, number: int, _: Any, output: Any) -> None:
        order.append(plan)
        seen[plan, number] = output.logits.clone()

    Draws(made.ready, made.outside, made.bank, made.report).run(plans, inputs, see)
    assert len(seen) == (len(plans) + 1) * len(inputs)
    assert order[0] == -1
    layers = {layer.name: layer for layer in all_layers(made.ready.structure)}
    for number, picks in enumerate([{}, *plans], -1):
        model = auto_class(name).from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for layer, scheme in picks.items():
            q = made.bank.read(layers[layer].block)[layer, scheme]
            write_weight(layers[layer], model.get_parameter(layers[layer].param), dequantize(q))
        for text, given in enumerate(inputs):
            with torch.no_grad():
                wanted = model(**given).logits
            torch.testing.assert_close(seen[number, text], wanted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(seen[-1, 0], seen[0, 0])


def test_plans_are_judged_by_text_that_their_codes_have_not_seen(tmp_path: Path) -> None:
    made = planning("llama", tmp_path)
    first, _ = made.texts(judging=False)
    second, _ = made.texts(judging=True)
    ids = [{tuple(t.inputs["input_ids"][0].tolist()) for t in some} for some in (first, second)]
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]


def test_without_plans_the_original_is_seen(tmp_path: Path) -> None:
    made = planning("bert-classifier", tmp_path)
    seen: list[tuple[int, int]] = []

    def see(plan: int, number: int, _: Any, output: Any) -> None:
        assert output.logits.shape[0] == 2
        seen.append((plan, number))

    inputs = [{"input_ids": torch.arange(4, 16).reshape(2, 6)}] * 2
    Draws(made.ready, made.outside, made.bank, made.report).run([], inputs, see)
    assert seen == [(-1, 0), (-1, 1)]
