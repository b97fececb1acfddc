"""A model folder on disk, opened lazily: names and shapes first, weights one block at a time.

The model is built on the meta device; parameters are filled from the files when a block's turn comes and dropped
again afterwards. transformers 5 stores some checkpoints under other names than its modules have (legacy prefixes,
experts kept apart on disk and fused in memory); its own conversion tables are read, never copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.core.numerics.error import all_finite
from compress.core.safetensors_file import TensorEntry, read_header, read_tensor
from compress.core.skeleton import build_skeleton, compute_parameters, has_base, read_config
from compress.core.types import LayerRef

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Factor:
    """What a parameter is divided or multiplied by when it is read. values: (O,) of rows, which are divided, or (I,) of
    columns, which are multiplied."""

    rows: bool
    values: Tensor

    def apply(self, tensor: Tensor) -> Tensor:
        """`tensor`, a matrix (O, I) or of rows alone (O,), in float32, in place."""
        if self.rows:
            return tensor.div_(self.values if tensor.ndim == 1 else self.values.unsqueeze(1))
        return tensor.mul_(self.values)


@dataclass(frozen=True)
class ParamSource:
    """How one parameter of the model is made: the checkpoint keys, and transformers' converter unless it is a copy."""

    keys: tuple[str, ...]
    converter: Any = None
    pattern_of: dict[str, str] | None = None


class Checkpoint:
    """An opened model folder. Nothing but headers is read until `load` or `fill` is called."""

    packed = False
    """Whether the folder may hold packed weights; see export.source."""

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.entries = self._index()
        self.config = read_config(folder, trust_remote_code, self.packed)
        self.trust_remote_code = trust_remote_code
        self.model: Any = build_skeleton(self.config, folder, trust_remote_code)
        self.sources = map_sources(self.model, self.entries)
        if self._only_head_missing():
            self.model = build_skeleton(self.config, folder, base=True)
            self.sources = map_sources(self.model, self.entries)
        self.computed = compute_parameters(self.model, self._missing())
        self.factors: dict[str, list[Factor]] = {}
        self._check_complete()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(int(p.numel()) for p in self.model.parameters())

    def dtype_of(self, param: str) -> torch.dtype:
        """The dtype that a parameter has on disk, or was computed in."""
        if param in self.computed:
            return self.computed[param].dtype
        return self.entries[self.sources[param].keys[0]].dtype

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor that is stored as `key`, in `dtype` or the file's."""
        return read_tensor(self.entries[key], dtype)

    def load(self, param: str, dtype: torch.dtype | None = None) -> Tensor:
        """One parameter as the model has it, in `dtype` or the file's; in float32 where `factors` change it, which keep
        the model's function. Raises ModelError for NaN, Inf, bad shapes."""
        if param in self.factors:
            tensor = self._stored(param, torch.float32)
            for factor in self.factors[param]:
                tensor = factor.apply(tensor)
            return tensor
        return self._stored(param, dtype)

    def _stored(self, param: str, dtype: torch.dtype | None) -> Tensor:
        if param in self.computed:
            return self.computed[param].to(dtype or self.computed[param].dtype, copy=True)
        source = self.sources[param]
        expected = tuple(self.model.get_parameter(param).shape)
        tensor: Tensor
        if source.converter is None:
            tensor = self.read(source.keys[0], dtype)
        else:
            tensor = self._convert(param, source).to(dtype or self.dtype_of(param))
        if tuple(tensor.shape) != expected:
            raise ModelError(
                f"{param} has shape {tuple(tensor.shape)} in {self.folder}, config.json asks for {expected}; "
                "the config belongs to another model"
            )
        if tensor.is_floating_point() and not all_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(f"{param} holds {bad} NaN or Inf values; repair or download the model again")
        return tensor

    def _convert(self, param: str, source: ParamSource) -> Tensor:
        converter = deepcopy(source.converter)
        assert source.pattern_of is not None
        for key in source.keys:
            converter.add_tensor(param, key, source.pattern_of[key], self.read(key))
        made = converter.convert(param, model=self.model, config=self.config)
        tensor: Tensor | list[Tensor] = made[param]
        return tensor[0] if isinstance(tensor, list) else tensor

    def fill(self, prefix: str, dtype: torch.dtype = torch.float32) -> None:
        """Materialise every parameter and stored buffer of the module at path `prefix`; floats in `dtype`."""
        module = self.model.get_submodule(prefix)
        for name, parameter in list(module.named_parameters()):
            if parameter.is_meta:
                set_parameter(module, name, self.load(f"{prefix}.{name}" if prefix else name, dtype))
        self.fill_buffers(f"{prefix}." if prefix else "")

    def fill_buffers(self, prefix: str = "", without: tuple[str, ...] = ()) -> None:
        """Load the stored buffers whose names begin with `prefix` and with none of `without`."""
        for name in self.buffers(prefix, without):
            buffer = self.model.get_buffer(name)
            stored = self.read(self.sources[name].keys[0])
            if stored.shape == buffer.shape:
                buffer.copy_(stored)

    def buffers(self, prefix: str = "", without: tuple[str, ...] = ()) -> list[str]:
        """Names of the buffers that the checkpoint stores."""
        names = [name for name, _ in self.model.named_buffers() if name in self.sources]
        return [name for name in names if name.startswith(prefix) and not (without and name.startswith(without))]

    def outside(self, blocks: Iterable[str]) -> list[str]:
        """Names of the parameters that are in none of the modules `blocks`; tied ones once."""
        inside = tuple(f"{name}." for name in blocks)
        return [n for n, _ in self.model.named_parameters() if not n.startswith(inside)]

    def _index(self) -> dict[str, TensorEntry]:
        return read_index(self.folder)

    def _missing(self) -> list[str]:
        return [n for n, _ in self.model.named_parameters() if n not in self.sources]

    def _only_head_missing(self) -> bool:
        """Whether everything is there but the head: encoders are often saved without the one their config names."""
        prefix = f"{getattr(self.model, 'base_model_prefix', '')}."
        missing = self._missing()
        if not missing or self.trust_remote_code or not has_base(self.model) or self.model.can_generate():
            return False
        return not any(name.startswith(prefix) for name in missing)

    def _check_complete(self) -> None:
        missing = [n for n in self._missing() if n not in self.computed]
        if missing:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ModelError(
                f"{self.folder} lacks the weights {shown} that {type(self.model).__name__} needs; "
                "name the class that was saved in config.json's 'architectures'"
            )


def read_index(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a folder by checkpoint key. Raises ModelError for missing, foreign or damaged files."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return read_header(folder / SINGLE)
        raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}; give a folder with safetensors weights")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is damaged: it must map tensor names to files; download it again") from None
    root = folder.resolve()
    entries: dict[str, TensorEntry] = {}
    for name in files:
        # A hub cache links its files into ../blobs, so the name is judged, not where the link leads.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{index} points outside its folder ({name}); do not use this model")
        entries.update(read_header(root / name))
    absent = [key for key in weight_map if key not in entries]
    if absent:
        raise ModelError(f"{index} names the tensor {absent[0]}, {weight_map[absent[0]]} does not hold it")
    return entries


def map_sources(model: nn.Module, entries: dict[str, TensorEntry]) -> dict[str, ParamSource]:
    """Which checkpoint keys make which parameter, by transformers' own conversion tables."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, ParamSource] = {}
    for key in sorted(entries, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if name not in state:
            continue
        if pattern is None:
            found[name] = ParamSource((key,))
            continue
        before = found.get(name, ParamSource((), None, {}))
        found[name] = ParamSource((*before.keys, key), by_pattern[pattern], {**(before.pattern_of or {}), key: pattern})
    _expand_one_to_many(model, found)
    _untie(model, found, entries)
    _follow_ties(model, found)
    return found


def _expand_one_to_many(model: nn.Module, found: dict[str, ParamSource]) -> None:
    """A converter with several targets (a fused weight split on loading) makes each of them from the same keys."""
    state = model.state_dict()
    for name, source in list(found.items()):
        targets = source.converter.target_patterns if source.converter is not None else []
        for target in targets[1:]:
            sibling = name.replace(targets[0], target)
            if sibling in state and sibling not in found:
                found[sibling] = source


def _untie(model: nn.Module, found: dict[str, ParamSource], entries: dict[str, TensorEntry]) -> None:
    """Two tensors that the config ties, stored both and with different values, are two: transformers 5 says so too."""
    announced: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in list(announced.items()):
        stored = [found[n].keys[0] for n in (target, source) if n in found and found[n].converter is None]
        if len(stored) == 2 and not same_bytes(entries[stored[0]], entries[stored[1]]):
            path, _, leaf = target.rpartition(".")
            shape = model.get_parameter(target).shape
            set_parameter(model.get_submodule(path), leaf, torch.empty(shape, device="meta"))
            announced.pop(target)


def same_bytes(one: TensorEntry, other: TensorEntry, chunk: int = 1 << 24) -> bool:
    """Whether two stored tensors are the same to the bit, dtype included; a chunk of each in memory."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        left = one.nbytes
        while left > 0:
            size = min(chunk, left)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _follow_ties(model: nn.Module, found: dict[str, ParamSource]) -> None:
    """A tied parameter may be stored under any of its names; `named_parameters` asks for the first."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for names in groups.values():
        stored = [n for n in names if n in found]
        for name in names:
            if stored and name not in found:
                found[name] = found[stored[0]]


def set_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter `name` (dotted) of `module`; it needs no gradient."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def fill_tied(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter under every name that shares it, so that ties survive."""
    old = model.get_parameter(name)
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is old]
    new = nn.Parameter(tensor, requires_grad=False)
    for each in names:
        path, _, leaf = each.rpartition(".")
        owner = model.get_submodule(path) if path else model
        owner._parameters[leaf] = new


def empty(module: nn.Module) -> None:
    """Give the memory of every parameter of a module back."""
    for name, parameter in list(module.named_parameters()):
        set_parameter(module, name, torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))


def disk_parts(layer: LayerRef, source: ParamSource) -> list[tuple[str, int, int]] | None:
    """Where a layer's rows live on disk: (checkpoint key, first row, last row + 1). None when they cannot be told.

    A plain weight is one key. An expert of a fused parameter is spread over as many keys as its converter
    concatenates (w1 and w3 of mixtral), the e-th of each kind.
    """
    rows = layer.shape[0]
    if source.converter is None:
        return [(source.keys[0], 0, rows)] if not layer.container.startswith("experts") else None
    operations = [type(op).__name__ for op in source.converter.operations]
    if layer.expert is None or operations not in (["MergeModulelist"], ["MergeModulelist", "Concatenate"]):
        return None
    assert source.pattern_of is not None
    by_pattern: dict[str, list[str]] = {pattern: [] for pattern in source.converter.source_patterns}
    for key in source.keys:
        by_pattern[source.pattern_of[key]].append(key)
    step = rows // len(by_pattern)
    return [(keys[layer.expert], n * step, (n + 1) * step) for n, keys in enumerate(by_pattern.values())]
