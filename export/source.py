"""An artifact as exporters read it: codes of one layer at a time, kept weights, config, tokenizer files.

Codes come from where they were written: packed in OUT's own files (compressed-tensors), or beside them in
`compress/codes*.safetensors` where compressed-tensors cannot hold them. Nothing is quantized here or anywhere in
export.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.artifact import WRITTEN, open_artifact
from compress.core.blocks import find_structure, write_weight
from compress.core.checkpoint import Checkpoint, disk_parts, read_index
from compress.core.errors import CompressError, ModelError
from compress.core.numerics.activation import Grid
from compress.core.numerics.affine import dequantize, symmetric_zero
from compress.core.numerics.packing import unpack_int32, unpack_zero
from compress.core.safetensors_file import TensorEntry, read_header, read_tensor
from compress.core.types import ActScheme, LayerRef, QTensor, Scheme, Structure

CODES = "codes*.safetensors"


@dataclass(frozen=True)
class Coded:
    """A layer with codes. scheme: of its weight. activation: of its input, None when that stays in float.

    beside: the codes lie in `compress/`, and OUT's own files hold the weight rounded to 16 bits.
    """

    layer: LayerRef
    scheme: Scheme
    activation: ActScheme | None
    beside: bool


class Source:
    """A finished output folder of `compress quantize`."""

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        """Open `folder`. Raises ModelError when it is no finished artifact, or when a file of it changed."""
        self.folder = folder
        self.manifest = open_artifact(folder).manifest
        self.checkpoint = Unpacked(folder, trust_remote_code)
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.structure: Structure = find_structure(self.checkpoint.model, self.checkpoint.config)
        self.plan: dict[str, Any] = json.loads((folder / "compress" / "plan.json").read_text(encoding="utf-8"))
        self._beside = _side_entries(folder)

    @property
    def model(self) -> Any:
        """The model, its parameters on the meta device."""
        return self.checkpoint.model

    @property
    def name(self) -> str:
        """What a person would call the model."""
        return str(self.manifest["model"])

    @cached_property
    def layers(self) -> tuple[LayerRef, ...]:
        """Every weight matrix: blocks in order, others outside, embedding, head; a tied head is there too."""
        ends = [layer for layer in (self.structure.embedding, self.structure.head) if layer is not None]
        return (*self.structure.layers, *self.structure.outside, *ends)

    @cached_property
    def coded(self) -> dict[str, Coded]:
        """The layers that have codes, by name, in the order of `layers`."""
        found = {}
        for layer in self.layers:
            planned = self.plan["layers"].get(layer.name)
            if planned is None or layer.tied_to is not None:
                continue
            scheme = Scheme.parse(planned["scheme"])
            if scheme.kind == "dense":
                continue
            activation = ActScheme.parse(planned["activation"]) if planned.get("activation") else None
            found[layer.name] = Coded(layer, scheme, activation, not planned["packed"])
        return found

    @cached_property
    def by_param(self) -> dict[str, Coded]:
        """The layers that have codes, by the name of the model's parameter; experts share one and are left out."""
        return {c.layer.param: c for c in self.coded.values() if c.layer.expert is None}

    def codes(self, name: str) -> QTensor:
        """Codes, scale (float32, on the grid it is stored in) and zero of a layer of `coded`."""
        coded = self.coded[name]
        if coded.beside:
            return self._side_codes(coded)
        parts = disk_parts(coded.layer, self.checkpoint.sources[coded.layer.param]) or []
        pieces = [self.checkpoint.codes(key.removesuffix(".weight")) for key, _, _ in parts]
        if len(pieces) == 1:
            return pieces[0]
        zeros = [piece.zero for piece in pieces if piece.zero is not None]
        return QTensor(
            torch.cat([piece.codes for piece in pieces]),
            torch.cat([piece.scale for piece in pieces]),
            torch.cat(zeros) if zeros else None,
            pieces[0].scheme,
        )

    def input_grid(self, name: str) -> Grid | None:
        """The static int8 grid of a layer's input; None where inputs are float or get a grid while running."""
        coded = self.coded[name]
        if coded.activation is None or coded.activation.dynamic:
            return None
        base = self.checkpoint.sources[coded.layer.param].keys[0].removesuffix(".weight")
        raw = self.checkpoint.raw
        zero = raw.get(f"{base}.input_zero_point")
        return Grid(read_tensor(raw[f"{base}.input_scale"]), read_tensor(zero) if zero is not None else None)

    def weight(self, param: str) -> Tensor:
        """A parameter as the compressed model has it, in the model's own shape, float32: by its codes where it has
        any."""
        coded = self.by_param.get(param)
        if coded is None or not coded.beside:
            return self.checkpoint.load(param, torch.float32)
        made = torch.empty(tuple(self.model.get_parameter(param).shape))
        write_weight(coded.layer, made, dequantize(self.codes(coded.layer.name)))
        return made

    def dtype_of(self, param: str) -> torch.dtype:
        """The dtype that a kept parameter has in OUT."""
        return self.checkpoint.dtype_of(param)

    def companions(self) -> list[Path]:
        """Files that every server needs as they are: tokenizer, template, generation config; relative to the folder."""
        own = {*WRITTEN, "compress"}
        found = []
        for name in sorted(self.manifest["files"]):
            path = Path(name)
            if path.parts[0] not in own and path.suffix != ".safetensors" and not name.endswith(".index.json"):
                found.append(path)
        return found

    def _side_codes(self, coded: Coded) -> QTensor:
        name, entries = coded.layer.name, self._beside
        if f"{name}.codes" not in entries:
            raise ModelError(f"{self.folder / 'compress'} lacks the codes of {name}; run compress quantize again")
        scale = read_tensor(entries[f"{name}.scale"])
        zero = entries.get(f"{name}.zero")
        minimum = entries.get(f"{name}.minimum")
        return QTensor(
            read_tensor(entries[f"{name}.codes"]),
            scale.float(),
            read_tensor(zero) if zero is not None else None,
            replace(coded.scheme, scale_dtype=str(scale.dtype).removeprefix("torch.")),
            read_tensor(minimum).float() if minimum is not None else None,
        )


class NotSolvedError(CompressError):
    """Codes of an artifact that is still to be made."""


class Planned(Source):
    """An artifact that is still to be made: names, shapes and schemes, no codes. For `refuses`, before any work."""

    def __init__(
        self, folder: Path, name: str, checkpoint: Checkpoint, structure: Structure, plan: dict[str, Any]
    ) -> None:
        """folder: of the original model. plan: as plan.json will have it."""
        files = {path.name: "" for path in sorted(folder.iterdir()) if path.is_file()}
        self.folder, self.manifest = folder, {"model": name, "files": files}
        self.checkpoint, self.structure, self.plan = checkpoint, structure, plan  # type: ignore[assignment]
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._beside = {}

    def codes(self, name: str) -> QTensor:
        """There are none yet. Raises NotSolvedError."""
        raise NotSolvedError(f"{name} is not solved yet")

    def input_grid(self, name: str) -> Grid | None:
        """There is none yet. Raises NotSolvedError."""
        raise NotSolvedError(f"{name} is not solved yet")


class Unpacked(Checkpoint):
    """OUT's own files, packed weights decoded as they are read: under `X.weight` is what transformers would have."""

    packed = True

    def _index(self) -> dict[str, TensorEntry]:
        self.raw = read_index(self.folder)
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.groups: dict[str, Any] = (config.get("quantization_config") or {}).get("config_groups", {})
        self.bases = {name.removesuffix(".weight_scale") for name in self.raw if name.endswith(".weight_scale")}
        parts = (
            "weight_packed",
            "weight_scale",
            "weight_shape",
            "weight_zero_point",
            "input_scale",
            "input_zero_point",
        )
        found = {}
        for name, entry in self.raw.items():
            base, _, part = name.rpartition(".")
            if base not in self.bases or part not in (*parts, "weight"):
                found[name] = entry
        for base in sorted(self.bases):
            shape = self._shape(base)
            scale = self.raw[f"{base}.weight_scale"]
            # what it would be unpacked: only dtype and shape are ever asked of it
            found[f"{base}.weight"] = TensorEntry(scale.path, scale.dtype, shape, 0, 0)
        return found

    def _shape(self, base: str) -> tuple[int, ...]:
        if f"{base}.weight" in self.raw:
            return self.raw[f"{base}.weight"].shape
        return tuple(int(n) for n in read_tensor(self.raw[f"{base}.weight_shape"]))

    def codes(self, base: str) -> QTensor:
        """The codes that are packed under the checkpoint name `base`."""
        scale = read_tensor(self.raw[f"{base}.weight_scale"])
        dtype = str(scale.dtype).removeprefix("torch.")
        group = next((g for g in self.groups.values() if base in g["targets"]), self.groups.get("group_0"))
        if group is None:
            raise ModelError(f"{self.folder}: config.json does not say how {base} is packed; quantize it again")
        said = group["weights"]
        size = said["group_size"] if said["strategy"] == "group" else -1
        scheme = Scheme("int", said["num_bits"], size, said["symmetric"], dtype)
        if f"{base}.weight" in self.raw:
            whole = read_tensor(self.raw[f"{base}.weight"]).to(torch.int16) + symmetric_zero(scheme)
            return QTensor(whole.to(torch.uint8), scale.float(), None, scheme)
        rows, columns = self._shape(base)
        packed_zero = self.raw.get(f"{base}.weight_zero_point")
        zero = unpack_zero(read_tensor(packed_zero), scheme.bits, rows) if packed_zero is not None else None
        codes = unpack_int32(read_tensor(self.raw[f"{base}.weight_packed"]), scheme.bits, columns)
        return QTensor(codes, scale.float(), zero, scheme)

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor that is stored as `key`, decoded where it is packed."""
        base = key.removesuffix(".weight")
        if base not in self.bases or base == key:
            return super().read(key, dtype)
        decoded = dequantize(self.codes(base))
        return decoded.to(dtype or self.entries[key].dtype)


def _side_entries(folder: Path) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for path in sorted((folder / "compress").glob(CODES)):
        found |= read_header(path)
    return found
