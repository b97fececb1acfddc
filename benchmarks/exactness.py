"""Acceptance 7 and 9: from_pretrained(OUT) against the compressed model in memory; the same command twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import RUNS, line
from compress.core.artifact import open_artifact
from compress.core.blocks import find_structure, write_weight
from compress.core.checkpoint import Checkpoint, read_index
from compress.core.numerics.affine import dequantize
from compress.core.numerics.packing import unpack_int32, unpack_zero
from compress.core.opening import resolve
from compress.core.safetensors_file import read_tensor
from compress.core.types import QTensor, Scheme
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe

TOKENS = 64


def in_memory(source: Path, out: Path, bits: int, group: int) -> torch.nn.Module:
    """The original model with every packed weight replaced by what our own code unpacks from the artifact."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    entries = read_index(out)
    for name, parameter in model.named_parameters():
        if name in entries:
            parameter.data.copy_(read_tensor(entries[name]).float())
    for layer in find_structure(model, model.config).layers:
        rows, columns = layer.shape
        part = {p: read_tensor(entries[f"{layer.name}.weight_{p}"]) for p in ("packed", "scale", "zero_point")}
        zero = unpack_zero(part["zero_point"], bits, rows)
        codes = unpack_int32(part["packed"], bits, columns)
        scheme = Scheme("int", bits, group, False, str(part["scale"].dtype).removeprefix("torch."))
        write_weight(
            layer, model.get_parameter(layer.param), dequantize(QTensor(codes, part["scale"].float(), zero, scheme))
        )
    return model


def run() -> dict[str, Any]:
    """Quantize the demo model twice, load one with plain transformers, compare logits and greedy tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outs = [RUNS / "exact-a", RUNS / "exact-b"]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
        quantize(Recipe.build(out=str(out), samples=8, eval_samples=4, generate=0))
    source = resolve("demo").folder
    ours = in_memory(source, outs[0], 4, 64)
    theirs = AutoModelForCausalLM.from_pretrained(outs[0], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(outs[0])
    text = "The main reason why people compress models is"
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        difference = float((ours(ids).logits - theirs(ids).logits).abs().max())
        greedy = [
            m.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
            )
            for m in (ours, theirs)
        ]
    same = int((greedy[0][0, ids.shape[1] :] == greedy[1][0, ids.shape[1] :]).sum())
    files = [open_artifact(out).manifest["files"] for out in outs]
    equal = {n: s for n, s in files[0].items() if "safetensors" in n} == {
        n: s for n, s in files[1].items() if "safetensors" in n
    }
    blocks = len(Checkpoint(source).model.model.layers)
    return {
        "lines": [
            line("largest logit difference of from_pretrained(OUT)", difference, "<= 1e-3", difference <= 1e-3),
            line("identical greedy tokens", f"{same} of {TOKENS}", f"{TOKENS}", same == TOKENS),
            line("two runs in two folders: weights", "identical" if equal else "differ", "identical", equal),
        ],
        "blocks": blocks,
        "text": tokenizer.decode(greedy[1][0]),
    }
