"""Faults that exporters make, planted in what an exporter reads: what it then writes is wrong in just that way.

Each fault changes the files of a copy of an artifact. The copy is exported by the real exporter, whichever that is, and
the export is judged against the true artifact: whatever catches a fault has found it in the written file or in what
the runtime makes of it. So no format needs code here, the one that is a copy of the artifact included.

The second half is for the few faults that only a file has (a mask left out of a graph, a convention of a layout that
its settings misname): a finished export is edited, and export.json made to fit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.core.artifact import MANIFEST, hashes
from compress.core.fingerprint import file_sha256
from compress.core.types import QTensor
from export.folder import EXPORT, OWN
from export.formats.compressed_tensors import FORMAT, Stored, side_codes
from export.source import Source

TEMPLATE = "chat_template.jinja"
Tensors = dict[str, Tensor]


def off_by_one(source: Source, copy: Path) -> None:
    """Every zero point is one too high: GPTQ's oldest fault. Codes are one too low where no zero point is stored."""

    def change(q: QTensor) -> QTensor:
        if q.zero is not None:
            return replace(q, zero=(q.zero.int() + 1).clamp(max=2**q.scheme.bits - 1).to(q.zero.dtype))
        if q.minimum is not None:
            return replace(q, minimum=(q.minimum - q.scale).half().float())
        return replace(q, codes=q.codes.clamp(min=1) - 1)

    _recode(source, copy, source.coded, change)


def transposed_block(source: Source, copy: Path) -> None:
    """In one layer the two halves of every 32 inputs have changed places."""

    def change(q: QTensor) -> QTensor:
        rows, columns = q.codes.shape
        halves = q.codes.reshape(rows, columns // 32, 2, 16)
        return replace(q, codes=halves.flip(2).reshape(rows, columns).contiguous())

    _recode(source, copy, list(source.coded)[:1], change)


def dropped_bias(source: Source, copy: Path) -> None:
    """The biases of one block are zeros."""
    for name in _biases(source):
        edit_weights(copy, lambda tensors, name=name: tensors[name].zero_() if name in tensors else None)  # type: ignore[misc]


def untied_head(source: Source, copy: Path) -> None:
    """The head is no longer the embedding, but a matrix of its own: rows have moved by one."""
    head, tied = source.structure.head, source.model.all_tied_weights_keys
    assert head is not None

    def change(tensors: Tensors) -> None:
        for name, other in tied.items():
            if other in tensors:
                tensors[name] = tensors[other].roll(1, 0) if name == head.param else tensors[other].clone()

    edit_weights(copy, change)
    edit_json(copy / "config.json", lambda config: config.update(tie_word_embeddings=False))


def wrong_rope(source: Source, copy: Path) -> None:
    """Positions are turned by another base."""
    edit_json(
        copy / "config.json", lambda config: [part.update(rope_theta=100 * theta) for part, theta in _ropes(config)]
    )


def no_template(source: Source, copy: Path) -> None:
    """The chat template is left behind."""
    (copy / TEMPLATE).unlink()


FAULTS: dict[str, Callable[[Source, Path], None]] = {
    "off-by-one zero": off_by_one,
    "transposed block": transposed_block,
    "dropped bias": dropped_bias,
    "untied head": untied_head,
    "wrong rope theta": wrong_rope,
    "no chat template": no_template,
}


def cannot_have(source: Source, fault: str) -> str | None:
    """Why there is no such fault in this model; None where there is."""
    if fault == "dropped bias" and not _biases(source):
        return f"{source.structure.architecture} has no bias"
    if fault == "untied head" and (source.structure.head is None or source.structure.head.tied_to is None):
        return f"{source.structure.architecture} has no tied head"
    if fault == "wrong rope theta" and not _ropes(source.config):
        return f"{source.structure.architecture} turns no positions"
    if fault == "no chat template" and not (source.folder / TEMPLATE).is_file():
        return "there is no chat template"
    return None


def plant(fault: str, source: Source, copy: Path) -> Path:
    """A copy of an artifact with a fault in it, as whole as the artifact is."""
    shutil.copytree(source.folder, copy, ignore=shutil.ignore_patterns("exports"))
    FAULTS[fault](source, copy)
    edit_json(copy / MANIFEST, lambda manifest: manifest.update(files=hashes(copy)))
    return copy


def _recode(source: Source, copy: Path, names: Iterable[str], change: Callable[[QTensor], QTensor]) -> None:
    """Write the codes of some layers anew, where and how they lie."""
    fresh: Tensors = {}
    for name in names:
        coded, q = source.coded[name], change(source.codes(name))
        stored = Stored(q.scheme, coded.activation, coded.layer.container)
        base = source.checkpoint.sources[coded.layer.param].keys[0].removesuffix(".weight")
        fresh |= side_codes(name, q) if coded.beside else FORMAT.tensors(base, q, stored)
    edit_weights(copy, lambda tensors: tensors.update({key: fresh[key] for key in fresh if key in tensors}))


def _biases(source: Source) -> list[str]:
    first = source.structure.blocks[0].prefix
    return [key for key in source.checkpoint.entries if key.startswith(first) and key.endswith(".bias")]


def _ropes(config: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
    """The parts of a config that say a base, and what they say."""
    told = config.get("rope_parameters") or {}
    parts = [config, told, *(part for part in told.values() if isinstance(part, dict))]
    return [(part, part["rope_theta"]) for part in parts if "rope_theta" in part]


# ---- files, edited


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told)
    path.write_text(json.dumps(told), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Change the safetensors files of a folder, those of codes beside it included."""
    for path in [*folder.glob("*.safetensors"), *(folder / "compress").glob("codes*.safetensors")]:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        path.unlink()  # an export's may be the artifact's own by another name
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def reseal(where: Path) -> None:
    """Make export.json say of the files what they now are."""
    files = [path for path in sorted(where.rglob("*")) if path.is_file() and path.name not in OWN - {"README.md"}]
    found = {path.relative_to(where).as_posix(): file_sha256(path) for path in files}
    edit_json(where / EXPORT, lambda told: told.update(files=found))
