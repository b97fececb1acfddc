"""The compressed model once more, put together without the code that wrote it: what an artifact must behave like.

The original is opened with plain transformers in float32; every quantized weight is replaced by the codes read back
from the artifact's files, everything that is kept is rounded to the dtype that the artifact stores it in.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from compress.core.blocks import find_structure, steps_of, write_weight
from compress.core.numerics.affine import dequantize
from compress.core.numerics.packing import unpack_int32, unpack_zero
from compress.core.types import LayerRef, QTensor, RunRecord, Scheme, Structure
from compress.pipeline.hooks import Hooks
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe
from tests.tiny import AUTO, CORPUS

EXPERTS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "mixtral": {
        "gate_up_proj": ("block_sparse_moe", ("w1", "w3")),
        "down_proj": ("block_sparse_moe", ("w2",)),
    },
    "qwen3_moe": {
        "gate_up_proj": ("mlp", ("gate_proj", "up_proj")),
        "down_proj": ("mlp", ("down_proj",)),
    },
}
"""How checkpoints spread a fused expert: the module on disk, and the matrices whose rows follow one another."""

COMPUTED = {"marian": ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")}
"""Parameters that no checkpoint of the architecture holds: the model computes them in full precision."""


@dataclass(frozen=True)
class Run:
    """One finished `quantize`. probe: inputs and outputs that the compressed model in memory had."""

    name: str
    source: Path
    out: Path
    probe: Path
    recipe: Recipe
    record: RunRecord

    @property
    def stored(self) -> dict[str, Tensor]:
        """Every tensor of the artifact's weight files."""
        return _tensors(self.out, "*.safetensors")


def write_text(path: Path) -> Path:
    """A small text file in two languages; every line differs, so that nothing is dropped as a copy."""
    lines = [f"{n}. {text}" for n in range(12) for text in CORPUS]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(name: str, source: Path, out: Path, **settings: Any) -> Run:
    """Quantize `source` to `out` with a few short sequences; `settings` are those of Recipe."""
    small = {"samples": 4, "seq_len": 32, "eval_samples": 2, "generate": 0, "threads": 1, "verify": False}
    data = source.parent / "text.txt"
    read = None if name == "whisper" else str(data)  # which hears, and takes no text for it
    recipe = Recipe.build(**{**small, "model": str(source), "out": str(out), "data": read, **settings})
    if not data.exists():
        write_text(data)
    probe = out.with_name(f"{out.name}-probe.safetensors")

    def report(stage: str, *_: int) -> None:
        left = out / "compress" / "work" / "probe.safetensors"
        if stage == "writing" and left.is_file():
            shutil.copyfile(left, probe)

    return Run(name, source, out, probe, recipe, quantize(recipe, hooks=Hooks(report=report)))


def auto_class(name: str) -> Any:
    """The class that a user opens architecture `name` with."""
    return getattr(transformers, AUTO[name])


def open_original(run: Run) -> Any:
    """The source as plain transformers opens it, float32."""
    return auto_class(run.name).from_pretrained(run.source, dtype=torch.float32).eval()


def open_artifact(run: Run) -> Any:
    """The artifact as plain transformers opens it, float32."""
    return auto_class(run.name).from_pretrained(run.out, dtype=torch.float32).eval()


def structure_of(model: Any) -> Structure:
    """Blocks and layers of a loaded model."""
    return find_structure(model, model.config)


def _tensors(folder: Path, pattern: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob(pattern)):
        found |= load_file(path)
    return found


class Codes:
    """Reads quantized weights back from an artifact."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stored = run.stored
        self.side = _tensors(run.out / "compress", "codes*.safetensors")
        self.plan = json.loads((run.out / "compress" / "plan.json").read_text(encoding="utf-8"))["layers"]
        self.dtype = getattr(torch, json.loads((run.out / "config.json").read_text(encoding="utf-8"))["dtype"])

    def quantized(self, name: str) -> bool:
        """Whether the plan gives this layer codes."""
        return name in self.plan and self.plan[name]["scheme"].startswith("int")

    def weight(self, layer: LayerRef) -> Tensor:
        """The (O, I) matrix of a quantized layer, as a server will use it."""
        scheme = Scheme.parse(self.plan[layer.name]["scheme"])
        if not self.plan[layer.name]["packed"]:
            parts = {part: self.side.get(f"{layer.name}.{part}") for part in ("codes", "scale", "zero")}
            assert parts["codes"] is not None
            assert parts["scale"] is not None
            q = QTensor(parts["codes"], parts["scale"].float(), parts["zero"], scheme)
            return dequantize(q).to(self.dtype).float()
        return torch.cat([self._unpack(key, scheme) for key in self._keys(layer)])

    def _keys(self, layer: LayerRef) -> list[str]:
        if layer.container in ("linear", "embedding"):
            return [layer.name]
        home, matrices = EXPERTS[self.run.name][layer.param.rpartition(".")[2]]
        block = layer.param.split(".mlp.")[0]
        return [f"{block}.{home}.experts.{layer.expert}.{matrix}" for matrix in matrices]

    def _unpack(self, key: str, scheme: Scheme) -> Tensor:
        if f"{key}.weight" in self.stored:  # int-quantized
            return self.stored[f"{key}.weight"].float() * self.stored[f"{key}.weight_scale"].float()
        rows, columns = (int(n) for n in self.stored[f"{key}.weight_shape"])
        zero = self.stored.get(f"{key}.weight_zero_point")
        q = QTensor(
            unpack_int32(self.stored[f"{key}.weight_packed"], scheme.bits, columns),
            self.stored[f"{key}.weight_scale"].float(),
            None if zero is None else unpack_zero(zero, scheme.bits, rows),
            scheme,
        )
        return dequantize(q)


@torch.no_grad()
def compress_in_memory(run: Run, model: Any, blocks: int | None = None, steps: int = 0) -> Any:
    """Turn the loaded original into the compressed model, in place; returns it.

    blocks: only the first so many are compressed, and of the next one the first `steps` steps and what is kept, as when
    the loop is there; None for all.
    """
    codes = Codes(run)
    found = structure_of(model)
    later: tuple[str, ...] = ()
    waiting: set[str] = set()
    if blocks is not None:
        later = tuple(f"{block.name}." for block in found.blocks[blocks + 1 :])
        waiting = {layer.name for step in steps_of(found.blocks[blocks])[steps:] for layer in step.layers}
    ends = [end for end in (found.embedding, found.head) if end is not None and end.tied_to is None]
    done = set()
    for layer in (*found.layers, *found.outside, *ends):
        if layer.param.startswith(later) and later:
            continue
        if codes.quantized(layer.name):
            done.add(id(model.get_parameter(layer.param)))
            if layer.name not in waiting:
                write_weight(layer, model.get_parameter(layer.param), codes.weight(layer))
    for name, parameter in model.named_parameters():
        kept = id(parameter) not in done and name not in COMPUTED.get(run.name, ())
        if kept and not (later and name.startswith(later)):
            parameter.copy_(parameter.to(codes.dtype).float())
    return model


def first_output(output: Any) -> Tensor:
    """Logits, or the hidden states of a model without a head."""
    found: Tensor = next(v for v in output.to_tuple() if isinstance(v, Tensor) and v.is_floating_point())
    return found


def layer_inputs(model: Any, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The inputs (n, I) float64 of every layer inside blocks, by plain hooks while `model` runs `batches`.

    Those of fused experts are worked out from what their router decided.
    """
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    layers = structure_of(model).layers
    for layer in layers:
        if layer.expert is None:
            hooks.append(_watch(model, layer.name, seen))
    homes = {layer.param.rpartition(".")[0] for layer in layers if layer.expert is not None}
    for home in homes:
        hooks.append(_watch_experts(model, home, seen))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    widths = {layer.name: layer.shape[1] for layer in layers}
    return {name: torch.cat(seen[name]) if name in seen else torch.empty(0, width) for name, width in widths.items()}


def _watch(model: Any, name: str, seen: dict[str, list[Tensor]]) -> Any:
    def before(_: Any, args: tuple[Any, ...]) -> None:
        seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]).double())

    return model.get_submodule(name).register_forward_pre_hook(before)


def _watch_experts(model: Any, home: str, seen: dict[str, list[Tensor]]) -> Any:
    experts = model.get_submodule(home)

    def before(_: Any, args: tuple[Any, ...]) -> None:
        hidden, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]
        for number in range(experts.gate_up_proj.shape[0]):
            mine = hidden[(chosen == number).any(-1)]
            gate, up = (mine @ experts.gate_up_proj[number].T).chunk(2, dim=-1)
            seen.setdefault(f"{home}.{number}.gate_up_proj", []).append(mine.double())
            seen.setdefault(f"{home}.{number}.down_proj", []).append((experts.act_fn(gate) * up).double())

    return experts.register_forward_pre_hook(before)


def block_outputs(model: Any, batches: list[dict[str, Tensor]]) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Hidden states (B, L, D) of every block for every batch, and the model's outputs, by its own plain forward."""
    blocks = [model.get_submodule(block.name) for block in structure_of(model).blocks]
    hidden: list[list[Tensor]] = [[] for _ in blocks]

    def keep(number: int) -> Any:
        def after(_: Any, __: Any, output: Any) -> None:
            hidden[number].append(output if isinstance(output, Tensor) else output[0])

        return after

    hooks = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks)]
    with torch.no_grad():
        made = [first_output(model(**batch)) for batch in batches]
    for hook in hooks:
        hook.remove()
    return hidden, made
