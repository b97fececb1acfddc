"""Faults put into exports, as if the writer had made them: export.json is told that all is as it was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compress.core.errors import VerificationError
from compress.core.fingerprint import file_sha256
from compress.core.registry import load
from compress.pipeline.expected import VerifySettings
from compress.pipeline.hooks import Hooks
from compress.pipeline.static import static_lines
from compress.pipeline.verify import Verified, raise_if_wrong, verify
from export import folder
from export.source import Source


def judged(where: Path, source: Path) -> Verified:
    """Judge an export on one thread."""
    return verify(where, Source(source), VerifySettings(threads=1), Hooks())


def failed_without_a_runtime(where: Path, source: Path) -> list[str]:
    """What is wrong with the files themselves: hashes, companions, codes read back."""
    told = folder.card(where)
    form = load("format", told["format"])
    return [
        str(line["check"]) for line in static_lines(where, told, Source(source), form, Hooks()) if not line["passed"]
    ]


def agrees(where: Path, source: Path) -> bool:
    """Whether an export stands; what `compress verify` would exit with."""
    try:
        raise_if_wrong(where, judged(where, source))
    except VerificationError:
        return False
    return True


def sealed(where: Path) -> None:
    """Tell export.json that the files of an export are those that were written."""
    card = json.loads((where / folder.EXPORT).read_text())
    card["files"] = {name: file_sha256(where / name) for name in card["files"] if (where / name).is_file()}
    (where / folder.EXPORT).write_text(json.dumps(card))


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Edit a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
