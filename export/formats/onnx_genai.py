"""onnx-genai: a decoder for onnxruntime-genai, its graph made by onnxruntime-genai's own model builder.

The builder reads GPTQ checkpoints, but rounds what they keep in float by itself (embedding and head to 4 bits, inputs
to int8: measured with 0.18). Here it is given the weights that the codes stand for, in float32, and told to round
nothing; every matrix in its graph that is one of our layers, found by its value, then becomes a MatMulNBits (or a
GatherBlockQuantized, for an embedding with codes) with our codes, scales and zero points. Nothing is rounded twice, and
bits, groups and zero points may differ from layer to layer.

accuracy_level is what MatMulNBits may do with its inputs: 0 multiplies in float32, 4 rounds them to int8 by blocks of
the weight, which is faster and is then what the runtime is judged by.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core import device
from compress.core.errors import CompressError, MissingExtraError, MissingRuntimeError
from compress.core.files import write_json
from compress.core.types import BITS, FormatCaps
from export import environments
from export.genai.nbits import block_of
from export.genai.whole import names_by_digest, write_whole
from export.kinds import ExportFormat, Report, Written
from export.runtimes import _genai_builder
from export.source import Coded, Source

Array = np.ndarray[Any, Any]
RUNTIME = "onnxruntime-genai"
PATIENCE_SECONDS = 7200.0
INT8 = "inputs of MatMulNBits are rounded to int8 by the weight's blocks (accuracy_level 4)"
HEAD = 16  # GroupQueryAttention: "head_size shall be a multiple of 16"
KNOWN = frozenset({
    "Ernie4_5ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM", "GraniteForCausalLM",
    "HunYuanDenseV1ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "NemotronForCausalLM", "OlmoForCausalLM",
    "Phi3ForCausalLM", "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
})  # fmt: skip
"""Text decoders without experts that the builder of the pinned version has a graph for (models/builder.py)."""
ROPE = {
    "LlamaForCausalLM": ("default", "llama3"), "NemotronForCausalLM": ("default", "llama3"),
    "SmolLM3ForCausalLM": ("default", "llama3"), "Gemma3ForCausalLM": ("default",),
    "Phi3ForCausalLM": ("default", "linear", "longrope"),
}  # fmt: skip
"""Kinds of rope that it computes as transformers does: builders/llama.py passes over every kind but these in silence,
its gemma3 scales windows too, its base class ends with an error, or rounds yarn otherwise."""
USUAL_ROPE = ("default", "linear")
CAPS = FormatCaps(
    bits=BITS,
    auto_groups=(128, 64, 32),
    symmetric_only=frozenset(),
    containers=frozenset({"linear", "embedding"}),
    notes=("2 and 3 bits are stored in 4, 5 and 6 in 8; groups must be multiples of 16",),
)


@dataclass(frozen=True)
class Options:
    """Settings of the format."""

    accuracy_level: int = 0  # 0: inputs stay float32; 4: inputs become int8 by blocks, faster and less exact


def refuses(source: Source, options: Options) -> str | None:
    """Why onnxruntime-genai cannot have `source`; None when it can.

    Raises MissingRuntimeError when its builder is not there, MissingExtraError when onnx is not.
    """
    if options.accuracy_level not in (0, 4):
        return f"accuracy_level={options.accuracy_level} is none of its CPU kernels; use 0 or 4"
    if source.structure.architecture not in KNOWN:
        return f"its builder has no graph for {source.structure.architecture}; export gguf or compressed-tensors"
    config = source.checkpoint.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % HEAD:
        return f"its attention takes heads of a multiple of {HEAD}, and these have {size}; export gguf"
    told = getattr(config, "rope_parameters", None) or {}
    kind, kinds = told.get("full_attention", told).get("rope_type", "default"), ROPE.get(source.structure.architecture)
    if kind not in (kinds or USUAL_ROPE):
        return f"its builder does not compute the rope scaling {kind!r} of {source.structure.architecture}; export gguf"
    for name, coded in source.coded.items():
        if (because := _misfit(coded)) is not None:
            return f"{name} {because}"
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("onnx", "onnx")
    where = environments.place(RUNTIME)
    if where.interpreter is None:
        raise MissingRuntimeError(where.name, where.install)
    return None


def _misfit(coded: Coded) -> str | None:
    if coded.scheme.kind != "int":
        return f"is {coded.scheme.name}; MatMulNBits holds integer codes (--bits 4)"
    if coded.activation is not None:
        return "takes int8 inputs on a grid of its own, which MatMulNBits has no place for (--activations none)"
    if coded.layer.container not in CAPS.containers:
        return f"is a {coded.layer.container} weight, which the builder's graph does not multiply so; export gguf"
    columns = coded.layer.shape[1]
    if (block := block_of(coded.scheme, columns)) is None:
        return f"has groups of {coded.scheme.group_size}; blocks are multiples of 16: quantize with --group-size 32"
    if coded.layer.container == "embedding" and columns % block:
        return f"has rows of {columns}, which are looked up in blocks of {block}; quantize with --embeddings keep"
    return None


def write(source: Source, folder: Path, options: Options, report: Report) -> Written:
    """Build the graph in a folder aside, and write it with our codes into `folder`."""
    from export.genai.graph import Rewriter

    aside, built = folder / ".float", folder / ".built"
    try:
        names = names_by_digest(source)
        write_whole(source, aside, report)
        report("onnxruntime-genai builds the graph", 0, 1)
        _build(aside, built)
        report("onnxruntime-genai builds the graph", 1, 1)
        shutil.rmtree(aside)
        Rewriter(built, names, source.codes, options.accuracy_level).write(folder)
        write_json(folder / "genai_config.json", json.loads((built / "genai_config.json").read_text(encoding="utf-8")))
    finally:
        for path in (aside, built):
            shutil.rmtree(path, ignore_errors=True)
    place = environments.place(RUNTIME)
    facts: dict[str, Any] = {"builder": f"{RUNTIME} {place.version}", "accuracy_level": options.accuracy_level}
    notes = []
    if options.accuracy_level == 4:
        facts["arithmetic"] = {"coded": "int8-group", "why": INT8}
        notes.append("inputs of packed layers are rounded to int8 while it runs (accuracy_level 4)")
    if any(coded.scheme.bits not in (4, 8) for coded in source.coded.values()):
        notes.append("codes of 2 and 3 bits are stored in 4, of 5 and 6 in 8: the same values")
    if options.accuracy_level == 0 and any(coded.scheme.bits == 8 for coded in source.coded.values()):
        notes.append(
            "8-bit layers have no fast float32 kernel and decode slowly; accuracy_level=4 is far faster for them"
        )
    return Written(tuple(source.coded), facts, tuple(notes))


def _build(aside: Path, built: Path) -> None:
    where = environments.place(RUNTIME)
    if where.interpreter is None:
        raise MissingRuntimeError(where.name, where.install)
    command = [str(where.interpreter), str(_genai_builder.__file__), str(aside.resolve()), str(built.resolve())]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, env=device.plain_environment() | offline, check=False,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CompressError(f"{RUNTIME}'s builder did not end within {PATIENCE_SECONDS:.0f} s") from None
    if run.returncode or not (built / "model.onnx").is_file():
        said = " | ".join((run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-3:])
        raise CompressError(f"{RUNTIME}'s builder failed: {said[-600:]}")


def read_back(folder: Path, source: Source) -> Iterator[tuple[str, Tensor]]:
    """(layer, weight (O, I) float32) of every layer with codes, read with onnx and numpy by the operators' definition.

    A layer that two operators share is read by both, and must be one; one that is cut is put together.
    """
    from export.genai.graph import attributes, read

    pieces: dict[str, dict[int, Array]] = {}
    for layer, start, node, held in read(folder / "model.onnx"):
        said, product = attributes(node), node.op_type == "MatMulNBits"
        codes = held[1] if product else held[0]
        columns = said["K"] if product else source.coded[layer].layer.shape[1]
        value = _values(codes, held[2], held[3] if len(held) > 3 else None, (said["bits"], said["block_size"], columns))
        parts = pieces.setdefault(layer, {})
        if start in parts and not np.array_equal(parts[start], value):
            raise CompressError(f"{layer} is another weight where it multiplies than where rows are looked up")
        parts[start] = value
        if layer not in _ends(source) and sum(map(len, parts.values())) == source.coded[layer].layer.shape[0]:
            yield layer, torch.from_numpy(_joined(pieces.pop(layer)))
    for layer, parts in pieces.items():
        yield layer, torch.from_numpy(_joined(parts))


def _ends(source: Source) -> set[str]:
    """The embedding, which two operators may share."""
    return {source.structure.embedding.name} if source.structure.embedding is not None else set()


def _joined(parts: dict[int, Array]) -> Array:
    found: Array = np.concatenate([part for _, part in sorted(parts.items())])
    return found


def _values(codes: Array, scales: Array, zeros: Array | None, how: tuple[int, int, int]) -> Array:
    """(O, I) float32. how: bits, inputs in a block, I."""
    bits, block, columns = how
    rows = scales.shape[0]
    blocks = scales.reshape(rows, -1)
    whole = _numbers(codes.reshape(rows, -1), bits)
    zero = np.full(blocks.shape, 1 << (bits - 1), np.float32)
    if zeros is not None:
        zero = _numbers(zeros.reshape(rows, -1), bits)[:, : blocks.shape[1]]
    every = (whole - np.repeat(zero, block, 1)) * np.repeat(blocks, block, 1)
    found: Array = np.ascontiguousarray(every[:, :columns])
    return found


def _numbers(packed: Array, bits: int) -> Array:
    digits = np.unpackbits(packed, axis=1, bitorder="little")
    found: Array = (digits.reshape(len(packed), -1, bits) @ (1 << np.arange(bits))).astype(np.float32)
    return found


def readme(_: Path) -> list[str]:
    """How to run it, and one request."""
    return [
        "```python",
        "import json, onnxruntime_genai as og",
        "model = og.Model('.')",
        "tokenizer = og.Tokenizer(model)",
        "messages = json.dumps([{'role': 'user', 'content': 'Name three fruits, please.'}])",
        "params = og.GeneratorParams(model)",
        "params.set_search_options(max_length=200)",
        "generator = og.Generator(model, params)",
        "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)",
        "generator.append_tokens(tokenizer.encode(prompt))",
        "while not generator.is_done():",
        "    generator.generate_next_token()",
        "print(tokenizer.decode(generator.get_sequence(0)))",
        "```",
    ]


EXPORT = ExportFormat(
    summary="An ONNX decoder for onnxruntime-genai",
    caps=CAPS,
    runtimes=(RUNTIME,),
    options=Options,
    refuses=refuses,
    write=write,
    read_back=read_back,
    readme=readme,
    writer=RUNTIME,
)
