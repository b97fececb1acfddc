"""gptq: the checkpoint layout of AutoGPTQ and GPTQModel; vLLM, SGLang, transformers with GPTQModel open it.

Per packed linear (O, I), codes of b bits: `qweight` int32 (I * b / 32, O), packed down the inputs; `qzeros` int32
(G, O * b / 32), packed along the outputs; `scales` float16 (G, O); `g_idx` int32 (I,), the group of each input. Codes
are dense bits from the lowest up, so 32 codes of 3 bits fill 3 words and two of them straddle.

Zero points, by `checkpoint_format` of `quantization_config`:
- `gptq` (v1) stores zero - 1. GPTQModel adds 1 to all fields of a packed word at once, so that a zero of 0 would carry
  into its neighbour (utils/model.py, convert_gptq_v1_to_v2_format_module: "sym=False ... will overflow"), and vLLM's
  older gptq_gemm and SGLang's add 1 to each. A zero of 0 is therefore never written as v1.
- `gptq_v2` stores zero. GPTQModel reads it, and so did vLLM's gptq_gemm (layers/quantization/gptq.py, use_v2_format).
- vLLM 0.32 reads neither: it opens symmetric checkpoints only (layers/quantization/auto_gptq.py, TYPE_MAP).
`auto` is v1 for symmetric checkpoints, and v2 where there are zero points: GPTQModel 7 opens v1 of its own with them,
and nobody else's.

`dynamic` names the modules that differ: `+:pattern` other bits or groups, `-:pattern` stays in float; the first pattern
that matches the beginning of a module's name counts (vLLM layers/quantization/utils/gptq_utils.py,
get_dynamic_override). vLLM asks by the name of fused modules (`qkv_proj`), which the patterns therefore match too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from compress.core.checkpoint import disk_parts
from compress.core.errors import RecipeError
from compress.core.files import write_json
from compress.core.numerics.affine import dequantize, symmetric_zero
from compress.core.numerics.packing import pack_int32
from compress.core.safetensors_file import Pending, from_entry, pending
from compress.core.shards import write_sharded
from compress.core.types import FormatCaps, LayerRef, QTensor, Scheme
from export.gptq.kernels import kernel_notes
from export.gptq.read import kept, read_back
from export.kinds import ExportFormat, Report, Sizes, Written
from export.source import Coded, Source

V1, V2, AUTO = "gptq", "gptq_v2", "auto"
CAPS = FormatCaps(
    bits=(2, 3, 4, 8),
    auto_groups=(128, 64, 32),
    symmetric_only=frozenset(),
    containers=frozenset({"linear", "conv1d", "experts", "experts_t"}),
    notes=("inputs and outputs must be multiples of 32 / bits (of 32 at 3 bits), groups must divide the inputs",),
    fusing=(2, 3, 4, 8),
)
ENTRY, HEADER = 96, 1024
"""Bytes of a tensor's line in a safetensors header beside the name of its layer, and of a header beside its lines, at
most."""
_FUSED = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}


@dataclass(frozen=True)
class Options:
    """Settings of the format."""

    checkpoint_format: Literal["auto", "gptq", "gptq_v2"] = "auto"  # gptq stores zero - 1, gptq_v2 zero


def refuses(source: Source, options: Options) -> str | None:
    """Why `source` cannot be a GPTQ checkpoint; None when it can."""
    if options.checkpoint_format not in (AUTO, V1, V2):
        return f"checkpoint_format={options.checkpoint_format} is unknown; use auto, gptq or gptq_v2"
    held = _held(source)
    if not held:
        return "no linear layer has integer codes; quantize with --bits 4"
    for name, coded in held.items():
        if (because := _misfit(source, coded)) is not None:
            return f"{name} {because}"
    for name, coded in held.items():
        if coded.scheme.bits == 8 and (because := _inexact(source.codes(name).scale)) is not None:
            return f"{name} {because}"
    if options.checkpoint_format == V1 and not _above_zero(source, held):
        return "a zero point of 0 cannot be stored as zero - 1; use --option gptq.checkpoint_format=gptq_v2"
    return None


def write(source: Source, folder: Path, options: Options, report: Report) -> Written:
    """Write weights and settings into `folder`."""
    held = _held(source)
    wanted = options.checkpoint_format
    symmetric = all(coded.scheme.symmetric for coded in held.values())
    form = wanted if wanted != AUTO else V1 if symmetric else V2  # GPTQModel opens zero points as v2 only
    tensors, done = _tensors(source, held, form), 0

    def counted(item: Pending) -> Callable[[], Tensor]:
        def make() -> Tensor:
            nonlocal done
            done += 1
            report("writing gptq", done, len(tensors))
            return item.make()

        return make

    write_sharded(folder, {name: replace(item, make=counted(item)) for name, item in tensors.items()})
    said = quantization_config(source, held, form)
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    write_json(folder / "config.json", {**config, "quantization_config": said})
    write_json(folder / "quantize_config.json", said)
    notes = list(kernel_notes(held.values()))
    if not symmetric:
        why = "GPTQModel 7 opens no other" if wanted == AUTO else "asked for"
        stores = "zero - 1" if form == V1 else "zero itself"
        notes.insert(0, f"zero points are stored as {stores} (checkpoint_format {form}: {why})")
    facts = {"checkpoint_format": form, "sym": symmetric, "dynamic_rules": len(said.get("dynamic", {}))}
    return Written(tuple(held), facts, tuple(notes))


def quantization_config(source: Source, held: Mapping[str, Coded], form: str) -> dict[str, Any]:
    """`quantization_config` of config.json, which is quantize_config.json too."""
    counts = Counter(coded.scheme.name for coded in held.values())
    main = Scheme.parse(counts.most_common(1)[0][0])
    head = source.structure.head
    found: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": main.bits,
        "group_size": main.group_size,
        "sym": main.symmetric,
        "desc_act": False,
        "lm_head": head is not None and head.name in held,
        "checkpoint_format": form,
        "pack_dtype": "int32",
    }
    rules: dict[str, dict[str, Any]] = {}
    for layer in source.layers:
        coded = held.get(layer.name)
        plain = (
            layer.container != "embedding" and layer.tied_to is None and layer != head
        )  # `lm_head` says it of the head
        if coded is None and plain:
            rules |= {f"-:{pattern}": {} for pattern in _patterns(source, layer.name)}
        elif coded is not None and coded.scheme.name != main.name:
            scheme = coded.scheme
            said = {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric}
            rules |= {f"+:{pattern}": said for pattern in _patterns(source, layer.name)}
    return {**found, "dynamic": rules} if rules else found


def _patterns(source: Source, name: str) -> list[str]:
    """Patterns of the modules on disk that make the layer `name`, servers' names of what they fuse with it included,
    where all that is fused has one scheme."""
    layer = next(layer for layer in source.layers if layer.name == name)
    one = len({source.coded[mate].scheme.name if mate in source.coded else "" for mate in layer.fused_with}) == 1
    found = []
    for key, _, _ in disk_parts(layer, source.checkpoint.sources[layer.param]) or []:
        path, _, leaf = key.removesuffix(".weight").rpartition(".")
        fused = _FUSED.get(leaf) if one and len(layer.fused_with) > 1 else None
        ending = f"(?:{leaf}|{fused})" if fused else re.escape(leaf)
        prefix = re.escape(f"{path}.") if path else ""
        found.append(f"^{prefix}{ending}$")
    return found


def _held(source: Source) -> dict[str, Coded]:
    """The layers whose codes the checkpoint holds: all that have some, but embeddings."""
    return {name: coded for name, coded in source.coded.items() if coded.layer.container in CAPS.containers}


def _misfit(source: Source, coded: Coded) -> str | None:
    layer, scheme = coded.layer, coded.scheme
    if scheme.kind != "int" or scheme.bits not in CAPS.bits:
        return f"is {scheme.name}; gptq holds integer codes of 2, 3, 4 and 8 bits (--bits)"
    if coded.activation is not None:
        return "takes int8 inputs, which gptq cannot say; quantize without --activations"
    parts = disk_parts(layer, source.checkpoint.sources[layer.param])
    if parts is None:
        return "is stored in several pieces that cannot be told apart; keep it, or export compressed-tensors"
    columns, unit = layer.shape[1], 32 if scheme.bits == 3 else 32 // scheme.bits
    if columns % unit or any((last - first) % unit for _, first, last in parts):
        return f"has shape {layer.shape}; gptq packs multiples of {unit} at {scheme.bits} bits"
    if scheme.group_size != -1 and columns % scheme.group_size:
        return f"has {columns} inputs, which groups of {scheme.group_size} do not divide; quantize with --group-size 32"
    return None


def _inexact(scale: Tensor) -> str | None:
    wrong = scale.half().float() != scale
    if not bool(wrong.any()):
        return None
    return f"has the scale {float(scale[wrong][0]):.9g}, which float16 cannot hold; quantize it to 4 bits, or keep it"


def _above_zero(source: Source, held: Mapping[str, Coded]) -> bool:
    zeros = (source.codes(name).zero for name, coded in held.items() if not coded.scheme.symmetric)
    return all(zero is None or int(zero.min()) > 0 for zero in zeros)


def _tensors(source: Source, held: Mapping[str, Coded], form: str) -> dict[str, Pending]:
    """Everything the weight files hold: packed layers under the names they have on disk, and the rest as OUT has it."""
    found: dict[str, Pending] = {}
    keys = set()

    @lru_cache(maxsize=1)
    def codes(name: str) -> QTensor:
        return source.codes(name)

    for name, coded in held.items():
        for key, first, last in disk_parts(coded.layer, source.checkpoint.sources[coded.layer.param]) or []:
            keys.add(key)
            found |= _layer(key.removesuffix(".weight"), coded, (first, last), lambda n=name: codes(n), form)  # type: ignore[misc]
    for key, entry in source.checkpoint.entries.items():
        if key in keys:
            continue
        base = key.removesuffix(".weight")
        if base in source.checkpoint.bases and base != key:  # codes of an embedding, which the layout has no place for
            found[key] = Pending(torch.float32, entry.shape, lambda b=base: dequantize(source.checkpoint.codes(b)))  # type: ignore[misc]
        else:
            found[key] = from_entry(entry)
    return found


def _layer(
    base: str, coded: Coded, rows: tuple[int, int], codes: Callable[[], QTensor], form: str
) -> dict[str, Pending]:
    """The four tensors of one module; rows: those of the layer that it holds."""
    first, last = rows
    count, columns = last - first, coded.layer.shape[1]
    bits, groups = coded.scheme.bits, coded.scheme.groups(columns)
    size = columns if coded.scheme.group_size == -1 else coded.scheme.group_size

    def weight() -> Tensor:
        return pack_int32(codes().codes[first:last], bits).t()

    def zeros() -> Tensor:
        zero = codes().zero
        whole = torch.full((count, groups), symmetric_zero(coded.scheme)) if zero is None else zero[first:last]
        return pack_int32((whole.int() - int(form == V1)).to(torch.uint8).t().contiguous(), bits)

    def scales() -> Tensor:
        scale = codes().scale[first:last]
        if (because := _inexact(scale)) is not None:
            raise RecipeError(f"{base} {because}")
        return scale.half().t()

    return {
        f"{base}.qweight": Pending(torch.int32, (columns * bits // 32, count), weight),
        f"{base}.qzeros": Pending(torch.int32, (groups, count * bits // 32), zeros),
        f"{base}.scales": Pending(torch.float16, (groups, count), scales),
        f"{base}.g_idx": pending((torch.arange(columns) // size).to(torch.int32)),
    }


def sizes(source: Source, options: Options, dtype: torch.dtype, names: Collection[str]) -> Sizes:
    """Of the weight files, a few kB too many: what headers take is not known to the byte."""
    del options
    chosen = [layer for layer in source.layers if layer.name in names]
    apart = {layer.param for layer in chosen}
    fixed = HEADER
    for name, value in source.model.named_parameters():
        if name not in apart:
            fixed += ENTRY + len(name) + value.numel() * (4 if name in source.by_param else dtype.itemsize)
    sources = source.checkpoint.sources
    for layer in chosen:
        keys = [key for key, *_ in disk_parts(layer, sources[layer.param]) or [(layer.param, 0, 0)]]
        fixed += sum(4 * (ENTRY + len(key)) + 4 * layer.shape[1] for key in keys)  # g_idx of each

    def layer_bytes(of: LayerRef, scheme: Scheme) -> int:
        rows, columns = of.shape
        if scheme.kind == "dense":
            return rows * columns * dtype.itemsize
        if of.container not in CAPS.containers:  # an embedding, decoded
            return rows * columns * 4
        groups = scheme.groups(columns)
        return columns * scheme.bits // 32 * rows * 4 + groups * (2 * rows + rows * scheme.bits // 32 * 4)

    return Sizes(fixed, layer_bytes)


def readme(folder: Path) -> list[str]:
    """How to serve it, and one request."""
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    rules = [rule for rule in said.get("dynamic", {}).values() if rule]
    if all(each["sym"] and each["bits"] in (4, 8) for each in (said, *rules)):
        return [
            "```",
            "vllm serve . --served-model-name model",
            "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\",
            '  -d \'{"model": "model", "messages": [{"role": "user", "content": "Name three fruits, please."}]}\'',
            "```",
            "",
            "transformers opens it with `AutoModelForCausalLM.from_pretrained` where GPTQModel is installed.",
        ]
    return [
        "```python",
        "from gptqmodel import BACKEND, GPTQModel",
        "model = GPTQModel.load('.')   # without a GPU: GPTQModel.load('.', device='cpu', backend=BACKEND.GPTQ_TORCH)",
        "messages = [{'role': 'user', 'content': 'Name three fruits, please.'}]",
        "ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors='pt')",
        "print(model.tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=100)[0]))",
        "```",
    ]


EXPORT = ExportFormat(
    summary="A GPTQ checkpoint, for vLLM, SGLang and transformers with GPTQModel",
    caps=CAPS,
    runtimes=("vllm", "gptqmodel"),
    options=Options,
    refuses=refuses,
    write=write,
    read_back=read_back,
    readme=readme,
    kept=kept,
    sizes=sizes,
)
