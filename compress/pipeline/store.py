"""What a block leaves on disk: tensors under the names of the final file, and the activations to go on from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.blocks import write_weight
from compress.core.checkpoint import Checkpoint, disk_parts
from compress.core.errors import ModelError
from compress.core.journal import WORK
from compress.core.numerics.affine import dequantize
from compress.core.safetensors_file import Pending, pending, read_header, read_tensor, write_file
from compress.core.types import BlockRef, LayerRef, Plan
from compress.pipeline.replay import Trace
from compress.pipeline.solve import Solved, split_rows
from export.formats.compressed_tensors import FORMAT, Stored, side_codes

SIDE = "compress.codes."


class Store:
    """Names and writes tensors. `dtype` is that of kept weights in the final file."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, out: Path, dtype: torch.dtype) -> None:
        self.checkpoint, self.plan, self.dtype = checkpoint, plan, dtype
        self.work = out / WORK

    def block_path(self, index: int) -> Path:
        """The finished tensors of a block; -1 is what lies outside the blocks."""
        return self.work / ("outside.safetensors" if index < 0 else f"block-{index:05d}.safetensors")

    def key(self, name: str) -> str:
        """The checkpoint key of a parameter that is stored as it is."""
        source = self.checkpoint.sources[name]
        return source.keys[0] if source.converter is None else name

    def parts(self, layer: LayerRef) -> list[tuple[str, int, int]] | None:
        """Checkpoint keys and row ranges of a layer."""
        return disk_parts(layer, self.checkpoint.sources[layer.param])

    def layer_tensors(self, solved: Solved, packed: bool) -> dict[str, Pending]:
        """The final tensors of one quantized layer: packed, or dense with the codes beside it."""
        layer, q = solved.layer, solved.q
        found: dict[str, Tensor] = {}
        if packed:
            parts = self.parts(layer) or []
            stored = Stored.of(layer, self.plan.layers[layer.name])
            for (key, _, _), piece in zip(parts, split_rows(q, [b - a for _, a, b in parts]), strict=True):
                found |= FORMAT.tensors(key.removesuffix(".weight"), piece, stored, solved.grid)
            return {name: pending(tensor) for name, tensor in found.items()}
        codes = {f"{SIDE}{name}": pending(tensor) for name, tensor in side_codes(layer.name, q).items()}
        if layer.expert is not None:
            return codes
        dense = torch.empty(tuple(self.checkpoint.model.get_parameter(layer.param).shape), dtype=self.dtype)
        write_weight(layer, dense, dequantize(q))
        return {**codes, self.key(layer.param): pending(dense)}

    def apply(self, solved: Solved, model: nn.Module) -> None:
        """Put the compressed weight into the model, exactly as the final file will be read."""
        weight = dequantize(solved.q)
        if not self.plan.layers[solved.layer.name].packed:
            weight = weight.to(self.dtype).float()
        write_weight(solved.layer, model.get_parameter(solved.layer.param), weight)

    def round_kept(self, block: BlockRef) -> None:
        """Round the parameters of a block that are kept (norms, biases, routers, layers that the plan keeps) to the
        stored dtype, in memory."""
        quantized = {layer.param for layer in block.layers if self.plan.layers[layer.name].scheme.kind != "dense"}
        for name, parameter in self.checkpoint.model.get_submodule(block.name).named_parameters():
            full = f"{block.prefix}{name}"
            if full not in quantized and full not in self.checkpoint.computed:
                parameter.data.copy_(parameter.data.to(self.dtype).float())

    def write_block(self, block: BlockRef, solved: Iterable[Solved]) -> None:
        """Write a block's final tensors. The compressed block must be in the model."""
        tensors: dict[str, Pending] = {}
        packed: set[str] = set()
        for item in solved:
            tensors |= self.layer_tensors(item, self.plan.layers[item.layer.name].packed)
            if self.plan.layers[item.layer.name].packed or item.layer.expert is None:
                packed.add(item.layer.param)
        others = self.plan.layers.keys() - {layer.name for layer in block.layers}  # when the whole model is the block
        module = self.checkpoint.model.get_submodule(block.name)
        for name, parameter in module.named_parameters():
            full = f"{block.prefix}{name}"
            if full.rpartition(".")[0] in others:
                continue
            if full not in packed and full not in self.checkpoint.computed:
                tensors[self.key(full)] = pending(parameter.detach().to(self.dtype))
        for name in self.checkpoint.buffers(block.prefix):
            tensors[self.key(name)] = pending(read_tensor(self.checkpoint.entries[self.key(name)]))
        write_file(self.block_path(block.index), tensors)

    def state_path(self, index: int) -> Path:
        """The activations after a block."""
        return self.work / f"state-{index:05d}.safetensors"

    def write_state(self, block: BlockRef, traces: list[Trace]) -> None:
        """Write the activations of the block's stack, and forget those of the block before."""
        tensors: dict[str, Pending] = {}
        notes: list[dict[str, Any]] = []
        for number, trace in enumerate(traces):
            tensors[f"{number}.hidden"] = pending(trace.hidden[block.stack])
            tensors |= {f"stored.{digest}": pending(tensor) for digest, tensor in trace.stored.items()}
            notes.append({str(index): slots for index, slots in trace.shapes.items()})
        write_file(self.state_path(block.index), tensors, {"traces": json.dumps(notes)})

    def read_state(self, block: BlockRef, traces: list[Trace]) -> None:
        """Put the activations after `block` back into the traces. Raises ModelError if the file is not theirs."""
        path = self.state_path(block.index)
        entries = read_header(path)
        notes = json.loads(read_metadata(path)["traces"])
        if len(notes) != len(traces):
            raise ModelError(f"{path} holds {len(notes)} batches, this run has {len(traces)}; pass --overwrite")
        stored = {n.removeprefix("stored."): read_tensor(e) for n, e in entries.items() if n.startswith("stored.")}
        for number, (trace, shapes) in enumerate(zip(traces, notes, strict=True)):
            trace.hidden[block.stack] = read_tensor(entries[f"{number}.hidden"])
            trace.shapes |= {int(index): [(kind, value) for kind, value in slots] for index, slots in shapes.items()}
            trace.stored |= stored


def read_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file of ours."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        metadata: dict[str, str] = json.loads(file.read(length))["__metadata__"]
    return metadata
