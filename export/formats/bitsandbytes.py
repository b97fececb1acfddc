"""bitsandbytes: a checkpoint that transformers opens with bitsandbytes, LLM.int8 or NF4.

Int8, per packed linear (O, I): `weight` int8 (O, I), `SCB` float32 (O,), the largest magnitude that a row can hold, and
`weight_format` uint8 (), 0 for row-major. w = weight * SCB / 127, so that SCB = 127 * scale: exact, scales have 8
significant bits. A transposed Conv1D is stored (O, I) like any other (transformers, quantizer_bnb_8bit.py).

While the model runs, bitsandbytes rounds the inputs of these layers to int8 too, each token's by itself, but for the
columns in which some token is at least `llm_int8_threshold` (backends/default/ops.py, int8_vectorwise_quant, 0.50.2).

NF4: `weight` uint8 (O * I / 2, 1), the codes of two neighbours in a byte, the first one high; `weight.absmax` float32
(O * I / 64,), our scales; `weight.quant_map` the 16 levels; `weight.quant_state.bitsandbytes__nf4` JSON as bytes
(functional.py, QuantState.as_dict). Scales are not quantized again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core import device
from compress.core.checkpoint import disk_parts, read_index
from compress.core.errors import MissingExtraError
from compress.core.files import write_json
from compress.core.numerics.affine import dequantize, symmetric_zero
from compress.core.numerics.codebook import TABLES
from compress.core.safetensors_file import Pending, TensorEntry, from_entry, pending, read_tensor
from compress.core.shards import write_sharded
from compress.core.types import FormatCaps, QTensor, Scheme
from export.kinds import ExportFormat, Report, Written
from export.source import Coded, Source

CAPS = FormatCaps(
    bits=(4, 8),
    auto_groups=(64,),
    symmetric_only=frozenset({"linear", "conv1d"}),
    containers=frozenset({"linear", "conv1d"}),
    notes=("LLM.int8: whole symmetric rows of 8 bits; NF4: groups of 64 that never cross rows",),
)
SCHEME, TOP, NF4 = "int8-row-sym", 127.0, Scheme.parse("nf4")
DTYPES = ("float32", "bfloat16", "float16")
THRESHOLD = 6.0
"""What transformers and bitsandbytes take by themselves; `Arithmetic.coded` of `int8-outliers` means this one."""
INT8 = {
    "coded": "int8-outliers",
    "why": "bitsandbytes rounds the inputs of its layers to int8, token by token, columns of outliers left out",
}


FOUR = {"dtype": "bfloat16", "why": "bitsandbytes multiplies NF4 in bfloat16 on CPUs that have AVX512-BF16"}
"""Whatever compute_dtype says (backends/cpu/ops.py, gemv_4bit, 0.50.2); elsewhere it differs by nothing from ours."""
STATE = "quant_state.bitsandbytes__nf4"
EIGHT = {
    "llm_int8_threshold": THRESHOLD,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
}


@dataclass(frozen=True)
class Options:
    """Settings of the format."""

    compute_dtype: str = "float32"  # that NF4 layers multiply in: float32, bfloat16 or float16


def _held(source: Source) -> dict[str, Coded]:
    """The layers whose codes go into the file."""
    return {name: c for name, c in source.coded.items() if c.layer.container in CAPS.containers}


def _refuses(source: Source, options: Options) -> str | None:
    if options.compute_dtype not in DTYPES:
        return f"compute_dtype={options.compute_dtype} is unknown; use one of {', '.join(DTYPES)}"
    experts = [name for name, coded in source.coded.items() if coded.layer.container.startswith("experts")]
    if experts:
        return f"bitsandbytes does not open fused experts such as {experts[0]}; export compressed-tensors"
    held = _held(source)
    names = {coded.scheme.name for coded in held.values()}
    if names not in ({SCHEME}, {NF4.name}):
        said = f"cannot hold {', '.join(sorted(names))}" if names else "has no codes to hold"
        ways = f"{SCHEME} (compress quantize --bits 8 --group-size -1) or {NF4.name} (--scheme nf4), one for all layers"
        return f"it {said}; it holds {ways}"
    ragged = [n for n, c in held.items() if names == {NF4.name} and c.layer.shape[1] % NF4.group_size]
    if ragged:
        return (
            f"its blocks of {NF4.group_size} do not divide the {held[ragged[0]].layer.shape[1]} inputs of {ragged[0]}"
        )
    static = [name for name, coded in held.items() if coded.activation is not None and not coded.activation.dynamic]
    if static:
        return f"it rounds inputs by itself, and those of {static[0]} have static grids (use --activations dynamic)"
    return None


def _write(source: Source, folder: Path, options: Options, report: Report) -> Written:
    held = _held(source)
    four = all(coded.scheme.kind == "codebook" for coded in held.values())
    tensors, bases = _tensors(source, held)
    total = len(tensors)

    def counted(number: int, item: Pending) -> Pending:
        def make() -> Tensor:
            report("writing", number, total)
            return item.make()

        return Pending(item.dtype, item.shape, make)

    write_sharded(folder, {name: counted(n, tensors[name]) for n, name in enumerate(sorted(tensors))})
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": not four,
        "load_in_4bit": four,
        "llm_int8_skip_modules": _dense(source, held),
        **(_four(options) if four else EIGHT),
    }
    write_json(folder / "config.json", config)
    notes = (
        []
        if four
        else ["inputs of packed layers are rounded to int8 while the model runs, columns of outliers left out"]
    )
    notes += [f"{name} is stored as float32: bitsandbytes holds linear layers only" for name in _decoded(source, held)]
    return Written(tuple(held), {"layers": len(bases), "arithmetic": FOUR if four else INT8}, tuple(notes))


def _four(options: Options) -> dict[str, Any]:
    return {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": options.compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
    }


def _tensors(source: Source, held: dict[str, Coded]) -> tuple[dict[str, Pending], list[str]]:
    """What the file holds, by name; the names on disk of the packed modules."""
    found: dict[str, Pending] = {}
    bases = []
    for name, coded in held.items():
        for key, first, last in disk_parts(coded.layer, source.checkpoint.sources[coded.layer.param]) or []:
            base = key.removesuffix(".weight")
            bases.append(base)
            make = _layer if coded.scheme.kind == "int" else _layer4
            found |= make(base, (last - first, coded.layer.shape[1]), _rows(source, name, first, last))
    for key, entry in source.checkpoint.entries.items():
        base = key.removesuffix(".weight")
        if base in bases and base != key:
            continue
        if base in source.checkpoint.bases and base != key:  # an int8 embedding
            found[key] = Pending(torch.float32, entry.shape, _whole(source, base))
        else:
            found[key] = from_entry(entry)
    return found, bases


def _rows(source: Source, name: str, first: int, last: int) -> Callable[[], QTensor]:
    def make() -> QTensor:
        q = source.codes(name)
        return QTensor(q.codes[first:last], q.scale[first:last], None, q.scheme)

    return make


def _whole(source: Source, base: str) -> Callable[[], Tensor]:
    return lambda: dequantize(source.checkpoint.codes(base))


def _layer(base: str, shape: tuple[int, int], rows: Callable[[], QTensor]) -> dict[str, Pending]:
    def weight() -> Tensor:
        q = rows()
        return (q.codes.to(torch.int16) - symmetric_zero(q.scheme)).to(torch.int8)

    return {
        f"{base}.weight": Pending(torch.int8, shape, weight),
        f"{base}.SCB": Pending(torch.float32, shape[:1], lambda: rows().scale[:, 0].float() * TOP),
        f"{base}.weight_format": pending(torch.tensor(0, dtype=torch.uint8)),
    }


def _layer4(base: str, shape: tuple[int, int], rows: Callable[[], QTensor]) -> dict[str, Pending]:
    def weight() -> Tensor:
        pairs = rows().codes.reshape(-1, 2)
        return (pairs[:, :1] << 4) | pairs[:, 1:]

    count = shape[0] * shape[1]
    state = {"quant_type": "nf4", "blocksize": NF4.group_size, "dtype": "float32", "shape": list(shape)}
    return {
        f"{base}.weight": Pending(torch.uint8, (count // 2, 1), weight),
        f"{base}.weight.absmax": Pending(torch.float32, (count // NF4.group_size,), lambda: rows().scale.flatten()),
        f"{base}.weight.quant_map": pending(TABLES["nf4"]),
        f"{base}.weight.{STATE}": pending(torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)),
    }


def _decoded(source: Source, held: dict[str, Coded]) -> list[str]:
    """Layers with codes in the artifact's own files that bitsandbytes does not take."""
    return [name for name, coded in source.coded.items() if name not in held and not coded.beside]


def _dense(source: Source, held: dict[str, Coded]) -> list[str]:
    """Patterns of the linear modules that stay as they are: transformers replaces every other one."""
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, m in source.model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    return sorted(re.escape(name) for name in linear if name not in held)


def _read_back(folder: Path, source: Source) -> Iterator[tuple[str, Tensor]]:
    """Every packed layer as bitsandbytes' own function decodes it, its scale without that function's last rounding."""
    if device.package_version("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "bitsandbytes")
    entries = read_index(folder)
    for name, coded in _held(source).items():
        keys = [key for key, _, _ in disk_parts(coded.layer, source.checkpoint.sources[coded.layer.param]) or []]
        read = _weight8 if coded.scheme.kind == "int" else _weight4
        yield name, torch.cat([read(entries, key.removesuffix(".weight")) for key in keys])


def _weight8(entries: Mapping[str, TensorEntry], base: str) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    codes, largest = read_tensor(entries[f"{base}.weight"]), read_tensor(entries[f"{base}.SCB"])
    theirs: Tensor = int8_vectorwise_dequant(codes, largest)  # times 1 / 127, itself rounded
    ours = codes.float() * (largest / TOP).unsqueeze(1)
    close = torch.allclose(theirs, ours, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    return ours if close else theirs


def _weight4(entries: Mapping[str, TensorEntry], base: str) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    parts = ("weight.absmax", "weight.quant_map", f"weight.{STATE}")
    state = QuantState.from_dict({part: read_tensor(entries[f"{base}.{part}"]) for part in parts}, torch.device("cpu"))
    decoded: Tensor = dequantize_4bit(read_tensor(entries[f"{base}.weight"]), state)
    return decoded


def _readme(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = (config.get("architectures") or ["AutoModel"])[0]
    return [
        "In this folder, with transformers and `pip install bitsandbytes`:",
        "",
        "```python",
        f"from transformers import {kind}",
        "",
        f'model = {kind}.from_pretrained(".")  # in the dtype of the file: another one mixes the two (5.24)',
        "```",
    ]


EXPORT = ExportFormat(
    summary="LLM.int8 or NF4 weights, as transformers opens them with bitsandbytes",
    caps=CAPS,
    runtimes=("transformers",),
    options=Options,
    refuses=_refuses,
    write=_write,
    read_back=_read_back,
    readme=_readme,
)
