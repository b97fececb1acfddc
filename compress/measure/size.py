"""Where a subject's files are and how many bytes they take on disk."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import ModelError, UsageError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Located:
    """A subject as transformers wants it: a folder (or a hub id) and, for GGUF, the file's name in it."""

    name: str
    folder: str
    gguf_file: str | None
    local: bool


def locate(subject: str, allow_pickle: bool = False) -> Located:
    """Find `subject`: a folder, a .gguf file, or else a hub id.

    Raises ModelError when it is not there or holds no weights that may be opened.
    """
    path = Path(subject).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{subject} is a file of another kind; give a model folder or a .gguf file")
        return Located(subject, str(path.parent), path.name, True)
    if path.is_dir():
        return Located(subject, str(path), _gguf_inside(path, allow_pickle), True)
    if HUB_ID.fullmatch(subject) and path.suffix != ".gguf":
        return Located(subject, subject, None, False)
    raise ModelError(f"{subject} is not there; give the folder of a model, a .gguf file or a hub id")


def weight_bytes(folder: str | Path) -> int:
    """Bytes of the weight files that are loaded: headers, scales and embeddings included.

    A file counts itself. A folder counts its safetensors (with an index: those it names), or else its
    .gguf files, or else its .bin files; not what lies in subfolders. Raises ModelError when there are none.
    """
    return sum(file.stat().st_size for file in weight_files(folder))


def weight_files(folder: str | Path) -> list[Path]:
    """The files that `weight_bytes` counts, sorted. Raises ModelError when one is missing, or all."""
    place = Path(folder).expanduser()
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ModelError(f"{place} is not there; give the folder of a model or a .gguf file")
    if (place / INDEX).is_file():
        return _indexed(place)
    for pattern in ("*.safetensors", "*.gguf", "*.bin"):
        if files := sorted(f for f in place.glob(pattern) if f.is_file() and f.name != "training_args.bin"):
            return files
    raise ModelError(f"{place} holds no weights (*.safetensors, *.gguf); give a folder saved by save_pretrained")


def folder_bytes(folder: str | Path) -> int:
    """Bytes of everything in `folder`, subfolders included; of the file itself when it is one."""
    place = Path(folder).expanduser()
    if place.is_file():
        return place.stat().st_size
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def bits_per_weight(size: int, parameters: int) -> float:
    """Stored bits for each of the original model's `parameters`. Raises UsageError when there are none."""
    if parameters < 1:
        raise UsageError(f"bits per weight of {parameters} parameters is undefined; give the original's count")
    return 8 * size / parameters


def _indexed(folder: Path) -> list[Path]:
    try:
        mapping = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in mapping.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder / INDEX} cannot be read ({error!r}); fetch or save the model again") from None
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{folder / INDEX} points at {name!r}, outside its folder; fetch the model again")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, which its index names; fetch or save the model again")
    return [folder / name for name in names]


def _gguf_inside(folder: Path, allow_pickle: bool) -> str | None:
    """The one GGUF file of a folder without other weights; None for one transformers opens as it is."""
    files = weight_files(folder)
    if files[0].suffix == ".gguf":
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:4])
            raise ModelError(f"{folder} holds {len(files)} .gguf files ({names}); name one of them")
        return files[0].name
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; give a folder saved by save_pretrained")
    if files[0].suffix == ".bin" and not allow_pickle:
        raise ModelError(
            f"{folder} holds only .bin pickles, which can run code when opened; pass --allow-pickle, "
            "or convert them to safetensors"
        )
    return None
