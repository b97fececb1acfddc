"""The output folder: a checkpoint that servers open as it is, plus `compress/` with where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.errors import ModelError, RecipeError
from compress.core.files import PART, atomic_write, read_pieces, write_json
from compress.core.fingerprint import file_sha256
from compress.core.journal import JOURNAL
from compress.core.safetensors_file import TensorEntry, from_entry, read_header
from compress.core.shards import write_sharded

SIDE = "compress.codes."
OWN = "compress."
MANIFEST = Path("compress") / "manifest.json"
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ckpt", ".ot",
    ".tflite", ".npz", ".pkl", ".mlmodel",
)  # fmt: skip
WRITTEN = {"config.json", "README.md", "report.html", "report.txt"}


@dataclass(frozen=True)
class Artifact:
    """A finished output folder."""

    path: Path
    manifest: dict[str, Any]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(p.stat().st_size for p in self.path.glob("*.safetensors"))


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `1.5GiB`, `4096`. Raises RecipeError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise RecipeError(f"size {text!r} is not understood; write it like 5GB or 500MB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def assemble(out: Path, parts: Iterable[Path], max_shard: int) -> None:
    """Write the final weight files from the finished pieces, one tensor in memory at a time.

    Atomic file by file and repeatable: after a kill the same call ends in the same bytes.
    """
    weights: dict[str, TensorEntry] = {}
    codes: dict[str, TensorEntry] = {}
    for part in parts:
        for name, entry in read_header(part).items():
            if name.startswith(SIDE):
                codes[name.removeprefix(SIDE)] = entry
            elif not name.startswith(OWN):
                weights[name] = entry
    write_sharded(out, {name: from_entry(entry) for name, entry in weights.items()}, max_shard)
    if codes:
        write_sharded(out / "compress", {n: from_entry(e) for n, e in codes.items()}, max_shard, "codes")


def companions(source: Path, out: Path) -> list[Path]:
    """Every file of a model folder that is no weight (tokenizer, template, generation config, pooling), relative.

    Left out: what is written anew, hidden files, and outputs of this program that lie in the folder, `out` among them.
    """
    found = []
    foreign = {path.parent.parent.resolve() for path in source.rglob(str(JOURNAL))} - {source.resolve()}
    foreign.add(out.resolve())
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        skip = path.suffix in _WEIGHTS or str(relative) in WRITTEN or relative.name.endswith(".index.json")
        hidden = relative.parts[0] == "compress" or any(part.startswith(".") for part in relative.parts)
        folder = path.parent.resolve()
        if skip or hidden or not path.is_file() or foreign & {folder, *folder.parents}:
            continue
        found.append(relative)
    return found


def copy_companions(source: Path, out: Path, names: Iterable[Path]) -> None:
    """Copy files byte for byte, each atomically. Raises StorageError when the disk refuses."""
    for name in names:
        atomic_write(out / name, read_pieces(source / name))


def write_config(source: Path, out: Path, dtype: str, quantization: dict[str, Any] | None) -> None:
    """The source's config.json with the dtype of the kept weights and how to open the packed ones."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config["dtype"] = dtype
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    if quantization:
        config["quantization_config"] = quantization
    write_json(out / "config.json", config)


def hashes(out: Path) -> dict[str, str]:
    """sha256 of every file of the artifact but its manifest, journal, work files and reports."""
    own = {"manifest.json", "journal.jsonl", "record.json", ".lock"}
    files = {}
    for path in sorted(out.rglob("*")):
        relative = path.relative_to(out)
        inside = relative.parts[0] == "compress"
        if not path.is_file() or (inside and (relative.name in own or relative.parts[1] == "work")):
            continue
        if relative.name in ("report.html", "report.txt") or relative.parts[0] == "exports":
            continue
        if not relative.name.endswith(PART):
            files[relative.as_posix()] = file_sha256(path)
    return files


def open_artifact(path: Path, verify: bool = True) -> Artifact:
    """Open a finished output folder. Raises ModelError when it is none, or when a file does not have its hash."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ModelError(f"{path} is not an artifact of compress ({MANIFEST} is missing); run compress quantize first")
    try:
        loaded = json.loads(manifest.read_text(encoding="utf-8"))
        expected = dict(loaded["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{manifest} is damaged; run compress quantize again with --overwrite") from None
    for name, sha in expected.items():
        if not (path / name).is_file() or (verify and file_sha256(path / name) != sha):
            raise ModelError(
                f"{path / name} is missing or changed since it was written; "
                "run compress quantize again with --overwrite"
            )
    return Artifact(path, loaded)
