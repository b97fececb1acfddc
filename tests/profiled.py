"""Everything that plans are made with, over a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.core.journal import Journal
from compress.core.types import torch_dtype
from compress.pipeline import budgeted
from compress.pipeline.hooks import Hooks
from compress.pipeline.outside import Outside
from compress.pipeline.planning import Planning
from compress.pipeline.prepare import open_and_plan
from compress.pipeline.store import Store
from compress.recipe import Recipe
from tests.tiny import save_tiny

TEXT = "The harbour was quiet at dawn, and 47 boats lay there. " * 40


def planning(name: str, folder: Path) -> Planning:
    """Of a tiny model with text and room for any plan; nothing has been asked yet."""
    (folder / "text.txt").write_text("\n\n".join(TEXT[n:] for n in range(0, 400, 40)), encoding="utf-8")
    settings: dict[str, Any] = {"data": str(folder / "text.txt"), "samples": 8, "seq_len": 32, "threads": 1}
    ready = open_and_plan(Recipe.build(model=str(save_tiny(name, folder / name)), max_bytes="1GB", **settings), Hooks())
    out = folder / "out"
    store = Store(ready.checkpoint, ready.plan, out, torch_dtype(ready.dtype))
    store.work.mkdir(parents=True)
    outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
    outside.compress(store.block_path(-1))
    outside.load_small(store.block_path(-1))
    chosen = budgeted.choices(ready)
    journal = Journal(out, [])
    limits = budgeted.limits_of(ready, chosen)
    return Planning(ready, chosen, limits, store, outside, journal, Hooks().report)
