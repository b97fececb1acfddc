"""The parameters that are in no block: embedding, norms, head. Original and compressed, one set in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from compress.core.blocks import read_weight
from compress.core.checkpoint import Checkpoint, fill_tied
from compress.core.device import trim_memory
from compress.core.numerics.affine import dequantize
from compress.core.safetensors_file import Pending, pending, read_header, read_tensor, write_file
from compress.core.types import LayerResult, Plan, QTensor, Structure, torch_dtype
from compress.pipeline.replay import without_vocabulary
from compress.pipeline.solve import Job, kept_row, solve
from compress.pipeline.store import Store

Which = Literal["original", "compressed"]
DECODED_ROWS = 4096


class Outside:
    """Installs the original's or the compressed model's parameters around the blocks.

    The vocabulary matrices (embedding, head) are the largest of many models; they are read when a stack begins and
    when logits are made, and are not in memory in between.
    """

    def __init__(self, checkpoint: Checkpoint, structure: Structure, plan: Plan, store: Store) -> None:
        self.checkpoint, self.structure, self.plan, self.store = checkpoint, structure, plan, store
        ends = [layer for layer in (structure.embedding, structure.head) if layer is not None]
        self._layers = {layer.param: layer for layer in [*structure.outside, *ends] if layer.tied_to is None}
        around = checkpoint.outside(block.name for block in structure.blocks)
        self.names = around if all(block.name for block in structure.blocks) else list(self._layers)
        self._vocabulary = {layer.param for layer in ends if layer.tied_to is None}
        self._small: dict[Which, dict[str, Tensor]] = {"original": {}, "compressed": {}}

    def compress(self, path: Path) -> list[LayerResult]:
        """Write the compressed parameters to `path`; returns a row for every weight matrix, kept ones too."""
        tensors: dict[str, Pending] = {}
        results: list[LayerResult] = []
        for name in self.names:
            if name in self.checkpoint.computed:
                continue  # every opener computes it anew, in full precision
            layer = self._layers.get(name)
            plan = self.plan.layers.get(layer.name) if layer else None
            if layer is not None and plan is not None and plan.scheme.kind != "dense":
                weight = read_weight(layer, self.checkpoint.load(name))
                before = self.checkpoint.dtype_of(name).itemsize * weight.numel()
                bits = self.store.dtype.itemsize * 8
                solved = solve([Job(layer, plan, weight, None, before, bits)])[0]
                results.append(solved.result)
                tensors |= self.store.layer_tensors(solved, plan.packed)
                tensors |= _keep_codes(name, solved.q)
            else:
                tensors[self.store.key(name)] = self._kept(name)
                if layer is not None and plan is not None:
                    before = self.checkpoint.dtype_of(name).itemsize
                    results.append(kept_row(layer, plan, before, self.store.dtype.itemsize))
        for name in self.checkpoint.buffers(without=tuple(f"{b.name}." for b in self.structure.blocks)):
            tensors[self.store.key(name)] = pending(read_tensor(self.checkpoint.entries[self.store.key(name)]))
        write_file(path, tensors)
        return results

    def _kept(self, name: str) -> Pending:
        shape = tuple(self.checkpoint.model.get_parameter(name).shape)
        return Pending(self.store.dtype, shape, lambda: self.checkpoint.load(name).to(self.store.dtype))

    def load_small(self, path: Path) -> None:
        """Read everything but the vocabulary, original and compressed, once."""
        self.checkpoint.fill_buffers(without=tuple(f"{b.name}." for b in self.structure.blocks))
        self._path, self._entries = path, read_header(path)
        for name in self.names:
            if name not in self._vocabulary:
                original = self.checkpoint.load(name, torch.float32)
                self._small["original"][name] = original
                self._small["compressed"][name] = self._stored(name)

    def _stored(self, name: str) -> Tensor:
        if name in self.checkpoint.computed:
            return self.checkpoint.load(name, torch.float32)
        if f"compress.{name}.codes" in self._entries:
            parts = {p: self._entries.get(f"compress.{name}.{p}") for p in ("codes", "scale", "zero", "minimum")}
            tensors = {p: read_tensor(entry) for p, entry in parts.items() if entry is not None}
            plan = self.plan.layers[self._layers[name].name]
            minimum = tensors.get("minimum")
            q = QTensor(
                tensors["codes"],
                tensors["scale"].float(),
                tensors.get("zero"),
                plan.scheme,
                None if minimum is None else minimum.float(),
            )
            return _decoded(q, torch.float32 if plan.packed else self.store.dtype)
        return read_tensor(self._entries[self.store.key(name)], torch.float32)

    @contextmanager
    def installed(self, which: Which, vocabulary: bool) -> Iterator[None]:
        """Inside, the model's parameters around the blocks are those of `which`; without `vocabulary`, look-ups
        of the embedding return zeros and the head must not be reached."""
        model = self.checkpoint.model
        for name, tensor in self._small[which].items():
            fill_tied(model, name, tensor)
        if not vocabulary:
            embedding = self.structure.embedding
            with without_vocabulary(model, model.get_parameter(embedding.param) if embedding else None):
                yield
            return
        with self.vocabularies((which,)) as use:
            use(which)
            yield

    @contextmanager
    def vocabularies(self, which: tuple[Which, ...]) -> Iterator[Callable[[Which], None]]:
        """Holds the vocabulary matrices of each of `which` in memory; the function installs one whole set.

        A matrix that the compressed model keeps as it is in the file is held once.
        """
        model = self.checkpoint.model
        held: dict[Which, dict[str, Tensor]] = {w: {} for w in which}
        for name in sorted(self._vocabulary):
            for chosen in which:
                known = held[which[0]].get(name) if self._same(name) else None
                held[chosen][name] = self._matrix(chosen, name) if known is None else known

        def use(chosen: Which) -> None:
            for name, tensor in {**self._small[chosen], **held[chosen]}.items():
                fill_tied(model, name, tensor)

        try:
            yield use
        finally:
            for name in sorted(self._vocabulary):
                fill_tied(model, name, torch.empty(model.get_parameter(name).shape, device="meta"))

    def _same(self, name: str) -> bool:
        coded = f"compress.{name}.codes" in self._entries
        return not coded and self.checkpoint.dtype_of(name) == self.store.dtype

    def _matrix(self, which: Which, name: str) -> Tensor:
        trim_memory()
        return self.checkpoint.load(name, torch.float32) if which == "original" else self._stored(name)


def _decoded(q: QTensor, through: torch.dtype) -> Tensor:
    """The matrix of `q` in float32, as rounded to `through`; by rows, so that it is in memory once."""
    decoded = torch.empty(q.codes.shape)
    for start in range(0, len(decoded), DECODED_ROWS):
        rows = slice(start, start + DECODED_ROWS)
        zero, minimum = (None if part is None else part[rows] for part in (q.zero, q.minimum))
        part = QTensor(q.codes[rows], q.scale[rows], zero, q.scheme, minimum)
        decoded[rows] = dequantize(part).to(through)
    return decoded


def _keep_codes(name: str, q: QTensor) -> dict[str, Pending]:
    """The codes once more under names that the artifact drops, so that the compressed embedding can be read back."""
    found = {f"compress.{name}.codes": pending(q.codes)}
    found[f"compress.{name}.scale"] = pending(q.scale.to(torch_dtype(q.scheme.scale_dtype)))
    if q.zero is not None:
        found[f"compress.{name}.zero"] = pending(q.zero.to(torch.uint8))
    if q.minimum is not None:
        found[f"compress.{name}.minimum"] = pending(q.minimum.to(torch_dtype(q.scheme.scale_dtype)))
    return found
