"""The model in memory that runtimes are compared with: which of its layers are rounded as a runtime rounds them."""

from __future__ import annotations

from pathlib import Path

import torch

from export.reference import Reference
from export.runtimes._kind import Arithmetic
from export.source import Source
from tests.exporting import artifact


def test_a_head_that_is_tied_to_codes_is_rounded_like_a_layer_with_codes(tmp_path: Path) -> None:
    """llama.cpp multiplies by the blocks of the embedding there: with int8 inputs, not with 16-bit ones."""
    source = Source(artifact("qwen2", tmp_path, bits=4, group_size=32, embeddings="int8"))
    assert source.structure.head is not None
    assert source.structure.head.tied_to == "model.embed_tokens.weight"
    packed = list(source.coded)
    assert "model.embed_tokens" in packed
    seen = {}
    for dense in ("bfloat16", "float16"):
        reference = Reference(source, packed)
        seen[dense] = reference.run({"input_ids": torch.arange(8)[None]}, Arithmetic(coded="int8-32", dense=dense))
    assert torch.equal(seen["bfloat16"], seen["float16"])  # nothing but layers with codes multiplies
