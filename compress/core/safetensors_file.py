"""Reading and writing safetensors one tensor at a time, without mapping files into memory.

A mapped file counts towards the resident set as soon as it is read, so the streaming loop reads with `pread` into
memory that it owns. The layout is the public one: u64 little-endian header length, JSON header, data. Files are
hostile until proven: every offset is checked against the file's size before anything is allocated.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.errors import ModelError
from compress.core.files import atomic_write

MAX_HEADER = 100_000_000
READ_BYTES = 1 << 24
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: file, dtype, shape, first byte, number of bytes."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, by name. Raises ModelError when the file is truncated or its header is not sound.

    As strict as the safetensors library: no name twice, no byte of the data unclaimed or claimed twice.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else MAX_HEADER + 1
            if length > min(MAX_HEADER, size - 8):
                raise ModelError(f"{path} is not a whole safetensors file ({size} bytes); download it again")
            header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; download the model again") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} has a damaged header; download it again") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path} has a damaged header; download it again")
    start = 8 + length
    entries = {name: _entry(path, name, info, start, size) for name, info in header.items() if name != "__metadata__"}
    _check_gapless(path, entries, start, size)
    return entries


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _check_gapless(path: Path, entries: Mapping[str, TensorEntry], start: int, size: int) -> None:
    """Overlaps would let a small file ask for any amount of memory; gaps can hide what nobody sees."""
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            raise ModelError(f"tensor {name} of {path} begins at byte {entry.offset}, not at {end}; download it again")
        end += entry.nbytes
    if end != size:
        raise ModelError(f"{path} has {size - end} bytes that belong to no tensor; download it again")


def _entry(path: Path, name: str, info: Any, start: int, size: int) -> TensorEntry:
    try:
        dtype, shape = _DTYPES[info["dtype"]], tuple(_natural(n) for n in info["shape"])
        begin, end = (_natural(n) for n in info["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"tensor {name} of {path} has a damaged entry or unknown dtype; download it again") from None
    if math.prod(max(n, 1) for n in shape) >= 1 << 62:
        raise ModelError(f"tensor {name} of {path} has the impossible shape {shape}; download it again")
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize:
        raise ModelError(
            f"tensor {name} of {path} has {end - begin} bytes, its shape {shape} needs {count * dtype.itemsize}; "
            "download it again"
        )
    if start + end > size:
        raise ModelError(f"{path} is truncated: tensor {name} ends at byte {start + end} of {size}; download it again")
    return TensorEntry(path, dtype, shape, start + begin, end - begin)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no natural number")
    return value


def read_tensor(entry: TensorEntry, dtype: torch.dtype | None = None) -> Tensor:
    """One tensor in memory of its own, in `dtype` if given: converted by pieces, so that no second copy of it is held.

    Raises ModelError when the file ends early.
    """
    tensor = torch.empty(entry.shape, dtype=dtype or entry.dtype)
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        for part in torch.split(tensor.view(-1), READ_BYTES // entry.dtype.itemsize):
            if part.dtype == entry.dtype:
                _read_into(file, part, entry)
            elif part.numel():
                piece = torch.empty(part.shape, dtype=entry.dtype)
                _read_into(file, piece, entry)
                part.copy_(piece)
    return tensor


def _read_into(file: FileIO, tensor: Tensor, entry: TensorEntry) -> None:
    view = _bytes_of(tensor) if tensor.numel() else memoryview(b"")
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise ModelError(f"{entry.path} ended while reading; it was cut short by another program")
        done += count


@dataclass(frozen=True)
class Pending:
    """A tensor still to be written: dtype, shape, and a function that makes it when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes it will take."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def pending(tensor: Tensor) -> Pending:
    """A tensor that is in memory already."""
    return Pending(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def from_entry(entry: TensorEntry) -> Pending:
    """A tensor to be copied from another file."""
    return Pending(entry.dtype, entry.shape, lambda: read_tensor(entry))


def write_file(path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str] | None = None) -> None:
    """Write one file atomically (temporary name, fsync, rename), holding one tensor at a time.

    Raises StorageError when the disk is full; the previous file of that name is then untouched.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    # Widest first keeps every tensor aligned to its own dtype; then by name, so that bytes do not depend on dict order.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        item = tensors[name]
        header[name] = {
            "dtype": _NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [offset, offset + item.nbytes],
        }
        offset += item.nbytes
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-(len(encoded) + 8) % 64)
    atomic_write(path, _chunks(encoded, [(name, tensors[name]) for name in order]))


def _chunks(header: bytes, tensors: Iterable[tuple[str, Pending]]) -> Iterable[bytes | memoryview]:
    yield struct.pack("<Q", len(header)) + header
    for name, item in tensors:
        tensor = item.make().detach().contiguous()
        if tensor.dtype != item.dtype or tuple(tensor.shape) != item.shape:
            raise ValueError(
                f"{name} became {tensor.dtype} {tuple(tensor.shape)}, {item.dtype} {item.shape} was promised"
            )
        if item.nbytes:
            yield _bytes_of(tensor)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, shared, not copied."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
