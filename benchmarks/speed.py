"""Acceptance 5: quantizing against two plain forward passes of the same tokens through the same blocks.

One process, the same threads, the two in turn, three times; the ratio is of medians. The lower bound by counting:
two passes of the tokens (statistics, outputs of the compressed block) and second moments of about one more pass.
16 x 512 tokens: solving costs the same for any number of tokens, so the ratio of the default 64 x 512 is lower.
"""

from __future__ import annotations

import shutil
import statistics
import time
from typing import Any

import torch

from benchmarks.shared import RUNS, line
from compress.core.device import set_threads
from compress.pipeline.quantize import Hooks, make_streams, open_and_plan, quantize
from compress.recipe import Recipe

REPEATS = 3


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
    recipe = Recipe.build(out=str(out), samples=16, eval_samples=0, generate=0, verify=False)
    plain, compressing, whole = [], [], []
    for _ in range(REPEATS):
        plain.append(plain_passes(recipe))
        shutil.rmtree(out, ignore_errors=True)
        record = quantize(recipe)
        compressing.append(record.stages["compress"])
        whole.append(sum(record.stages.values()))
        print(f"   two passes {plain[-1]:.1f} s, blocks {compressing[-1]:.1f} s, all {whole[-1]:.1f} s", flush=True)
    shutil.rmtree(out)
    ratio = statistics.median(whole) / statistics.median(plain)
    blocks = statistics.median(compressing) / statistics.median(plain)
    tokens = recipe.samples * recipe.seq_len
    return {
        "lines": [
            line(f"quantize / two plain passes, whole run, {tokens} tokens", round(ratio, 2), "<= 2.5", ratio <= 2.5),
            line("the same, blocks only", round(blocks, 2), "<= 2.5", blocks <= 2.5),
        ],
        "threads": threads,
        "plain_seconds": plain,
        "compress_seconds": compressing,
        "whole_seconds": whole,
    }
