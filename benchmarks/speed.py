"""Acceptance 5: quantizing against two plain forward passes of the same tokens through the same blocks.

The demo model's first BLOCKS blocks, 64 x 512 tokens, one process, the same threads, the two in turn, three times; the
ratio is of medians. By counting, in passes of all tokens through a block: the original 1, statistics 0.15 (attention's
inputs) + 0.25 (its output) + 0.5 (all but the last matrix), outputs of the compressed block 0.25, second moments and
drift 0.9: 3.05, or 1.5 times two passes; the rest is solving, attention's own products, norms and activation functions,
and writing the activations down.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import RUNS, bbc, line
from compress.core.device import set_threads
from compress.core.opening import resolve
from compress.pipeline.hooks import Hooks
from compress.pipeline.prepare import make_streams, open_and_plan
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe

REPEATS, BLOCKS = 3, 10


def first_blocks(folder: Path) -> Path:
    """A folder with the demo model's config cut to BLOCKS blocks; its weights are the demo's own, by link."""
    source = resolve("demo").folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": BLOCKS}), encoding="utf-8")
    return folder


def plain_passes(recipe: Recipe) -> float:
    """Seconds of two forward passes of the calibration tokens through the float32 blocks, no head."""
    from transformers import AutoModelForCausalLM

    ready = open_and_plan(recipe, Hooks())
    model = AutoModelForCausalLM.from_pretrained(ready.opened.folder, dtype=torch.float32).model.eval()
    batches = [trace.inputs["input_ids"] for trace in make_streams(ready).calibration]
    with torch.no_grad():
        model(batches[0])
        started = time.perf_counter()
        for _ in range(2):
            for ids in batches:
                model(ids, use_cache=False)
    return time.perf_counter() - started


def run() -> dict[str, Any]:
    """Ratios of `quantize`'s compressing stage, and of everything it does but opening and checking, to two passes."""
    threads = set_threads(0)
    out = RUNS / "speed"
    model = str(first_blocks(RUNS / "speed-model"))
    recipe = Recipe.build(model=model, out=str(out), data=str(bbc()), eval_samples=0, generate=0, verify=False)
    plain, compressing, whole = [], [], []
    for _ in range(REPEATS):
        plain.append(plain_passes(recipe))
        shutil.rmtree(out, ignore_errors=True)
        record = quantize(recipe)
        compressing.append(record.stages["compress"])
        whole.append(sum(record.stages.values()))
        print(f"   two passes {plain[-1]:.1f} s, blocks {compressing[-1]:.1f} s, all {whole[-1]:.1f} s", flush=True)
    shutil.rmtree(out)
    shutil.rmtree(model)
    ratio = statistics.median(whole) / statistics.median(plain)
    blocks = statistics.median(compressing) / statistics.median(plain)
    tokens = recipe.samples * recipe.seq_len
    return {
        "lines": [
            line(f"quantize / two plain passes, whole run, {tokens} tokens", round(ratio, 2), "<= 2.5", ratio <= 2.5),
            line("the same, blocks only", round(blocks, 2), "<= 2.5", blocks <= 2.5),
        ],
        "threads": threads,
        "blocks": BLOCKS,
        "plain_seconds": plain,
        "compress_seconds": compressing,
        "whole_seconds": whole,
    }
