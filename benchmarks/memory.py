"""Acceptance 6: peak resident memory of quantizing 12 and 48 blocks of one width, quality measured in the same run.

Random weights in float32, written one tensor at a time; the figures are of fresh processes, above one that has
imported torch and transformers only. Children count too: the largest process of the tree is taken.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import RUNS, line
from compress.core.opening import resolve
from compress.core.safetensors_file import Pending, write_file

WIDTH, FFN, HEADS = 1024, 2816, 16
CHILD = """
import json, resource, sys
import torch, transformers
if len(sys.argv) > 1:
    from compress.pipeline.quantize import quantize
    from compress.recipe import Recipe
    record = quantize(Recipe.build(**json.loads(sys.argv[1])))
    print(json.dumps([m.name for m in record.measurements]))
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps(max(own, children) * 1024))
"""


def write_random(folder: Path, blocks: int) -> int:
    """A llama of `blocks` random blocks with the demo's tokenizer; returns the bytes of its weights."""
    from transformers import LlamaConfig

    source = resolve("demo").folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=FFN, num_hidden_layers=blocks, num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 4, vocab_size=vocabulary, tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"], dtype="float32",
    )  # fmt: skip
    config.save_pretrained(folder)
    shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH), "model.norm.weight": (WIDTH,)}
    kv = WIDTH // 4
    for n in range(blocks):
        at = f"model.layers.{n}"
        for name, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (kv, WIDTH), "self_attn.v_proj": (kv, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH),
            "mlp.down_proj": (WIDTH, FFN), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
        }.items():  # fmt: skip
            shapes[f"{at}.{name}.weight"] = shape
    generator = torch.Generator().manual_seed(0)

    def make(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02

    pieces = {name: Pending(torch.float32, shape, lambda s=shape: make(s)) for name, shape in shapes.items()}
    write_file(folder / "model.safetensors", pieces)
    return sum(piece.nbytes for piece in pieces.values())


def peak(settings: dict[str, Any] | None = None) -> int:
    """Peak resident bytes of a fresh process that imports, and with settings quantizes."""
    arguments = [json.dumps(settings)] if settings else []
    run = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    lines = run.stdout.strip().splitlines()
    if settings and "kl" not in json.loads(lines[-2]):
        raise SystemExit("quality was not measured")
    return int(lines[-1])


def run() -> dict[str, Any]:
    """Peaks of both depths and what they are held to."""
    base = peak()
    above: dict[int, int] = {}
    size = 0
    for blocks in (12, 48):
        folder, out = RUNS / f"random-{blocks}", RUNS / f"random-{blocks}-4bit"
        size = write_random(folder, blocks)
        shutil.rmtree(out, ignore_errors=True)
        above[blocks] = (
            peak({"model": str(folder), "out": str(out), "samples": 16, "seq_len": 256, "eval_samples": 4}) - base
        )
        shutil.rmtree(folder)
        shutil.rmtree(out)
        print(f"   {blocks} blocks, {size / 1e9:.2f} GB: {above[blocks] / 1e6:.0f} MB above imports", flush=True)
    difference = abs(above[48] - above[12]) / above[12]
    share = above[48] / size
    return {
        "lines": [
            line("peak RSS of 48 blocks against 12", f"{difference:.1%}", "< 5 %", difference < 0.05),
            line(f"peak RSS of 48 blocks / its {size / 1e9:.2f} GB of weights", f"{share:.1%}", "< 50 %", share < 0.5),
        ],
        "import_bytes": base,
        "above_import_bytes": above,
        "model_bytes": size,
        "page_bytes": resource.getpagesize(),
    }
