"""Our reader and writer against the safetensors library, on files that are sound and on files that are not."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from compress.core import safetensors_file
from compress.core.errors import ModelError
from compress.core.safetensors_file import from_entry, pending, read_header, read_tensor, write_file

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
SHAPES = st.lists(st.integers(0, 5), max_size=3)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
SPECS = st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=5)


def tensors_of(specs: dict[str, tuple[torch.dtype, list[int]]], seed: int) -> dict[str, torch.Tensor]:
    """Random bytes in every shape and dtype; bools are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (dtype, shape) in specs.items():
        count = int(torch.Size(shape).numel())
        high = 2 if dtype == torch.bool else 256
        raw = torch.randint(0, high, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        found[name] = raw.view(dtype).reshape(shape)
    return found


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    return not one.numel() or torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(0, 1000))
def test_the_library_reads_what_we_write(specs: dict[str, tuple[torch.dtype, list[int]]], seed: int) -> None:
    assume("__metadata__" not in specs)
    tensors = tensors_of(specs, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.safetensors"
        write_file(path, {name: pending(tensor) for name, tensor in tensors.items()}, {"format": "pt", "a": "b"})
        theirs = load_file(path)
        with safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt", "a": "b"}
        header = int(struct.unpack("<Q", path.read_bytes()[:8])[0])
        assert header % 8 == 0  # data is aligned
    assert theirs.keys() == tensors.keys()
    assert all(same(theirs[name], tensors[name]) for name in tensors)


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(0, 1000))
def test_we_read_and_copy_what_the_library_writes(specs: dict[str, tuple[torch.dtype, list[int]]], seed: int) -> None:
    assume("__metadata__" not in specs)
    tensors = tensors_of(specs, seed)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "theirs.safetensors", Path(folder) / "ours.safetensors"
        save_file(tensors, theirs)
        entries = read_header(theirs)
        found = {name: read_tensor(entry) for name, entry in entries.items()}
        write_file(ours, {name: from_entry(entry) for name, entry in entries.items()})
        copied = load_file(ours)
    assert found.keys() == tensors.keys() == copied.keys()
    assert all(same(found[name], tensors[name]) and same(copied[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.int32])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, None])
def test_reading_by_pieces_in_another_dtype(
    stored: torch.dtype, wanted: torch.dtype | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(safetensors_file, "READ_BYTES", 64)
    tensors = {"odd": (torch.randn(13, 7) * 50).to(stored), "one": torch.tensor(3.0).to(stored)}
    tensors["none"] = torch.empty(0, 4, dtype=stored)
    write_file(tmp_path / "x", {name: pending(tensor) for name, tensor in tensors.items()})
    for name, entry in read_header(tmp_path / "x").items():
        assert same(read_tensor(entry, wanted), tensors[name].to(wanted or stored))


@settings(max_examples=40, deadline=None)
@given(SPECS, st.integers(0, 1000), st.randoms())
def test_bytes_do_not_depend_on_the_order_of_names(specs: dict[str, Any], seed: int, random: Any) -> None:
    assume("__metadata__" not in specs)
    tensors = tensors_of(specs, seed)
    shuffled = list(tensors)
    random.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        write_file(one, {name: pending(tensors[name]) for name in tensors})
        write_file(two, {name: pending(tensors[name]) for name in shuffled})
        assert one.read_bytes() == two.read_bytes()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.integers(0, 7), st.integers(0, 3))
def test_a_flipped_bit_is_refused_whenever_the_library_refuses(position: int, bit: int, cut: int) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int8)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_file(tensors, path)
        raw = bytearray(path.read_bytes())
        raw[position % len(raw)] ^= 1 << bit
        path.write_bytes(raw[: len(raw) - cut])
        try:
            theirs = load_file(path)
        except (SafetensorError, KeyError, ValueError, OverflowError, MemoryError):
            with pytest.raises(ModelError):
                read_all(path)
            return
        ours = read_all(path)
    assert ours.keys() == theirs.keys()
    assert all(same(ours[name], theirs[name]) for name in theirs)


def read_all(path: Path) -> dict[str, torch.Tensor]:
    return {name: read_tensor(entry) for name, entry in read_header(path).items()}


def file_of(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\x01" * 7,
    "endless header": file_of(b"{}", length=2**63),
    "header longer than the file": file_of(b"{}", length=3),
    "no header": file_of(b""),
    "not json": file_of(b"{]"),
    "not utf-8": file_of(b'{"\xff": 1}'),
    "a list": file_of(b"[]"),
    "a number": file_of(b"7"),
    "deep nesting": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "entry is no object": file_of(b'{"a": 3}'),
    "no dtype": file_of(json.dumps({"a": {"shape": [], "data_offsets": [0, 4]}}).encode(), bytes(4)),
    "unknown dtype": file_of(json.dumps({"a": entry([1], [0, 4], "F33")}).encode(), bytes(4)),
    "dtype is a list": file_of(json.dumps({"a": entry([1], [0, 4], ["F32"])}).encode(), bytes(4)),
    "negative size": file_of(json.dumps({"a": entry([-1], [0, 4])}).encode(), bytes(4)),
    "two negative sizes": file_of(json.dumps({"a": entry([-1, -1], [0, 4])}).encode(), bytes(4)),
    "fractional size": file_of(json.dumps({"a": entry([1.0], [0, 4])}).encode(), bytes(4)),
    "size is text": file_of(json.dumps({"a": entry(["1"], [0, 4])}).encode(), bytes(4)),
    "size is true": file_of(json.dumps({"a": entry([True], [0, 4])}).encode(), bytes(4)),
    "more memory than there is": file_of(json.dumps({"a": entry([2**40, 2**40], [0, 4])}).encode(), bytes(4)),
    "overflowing empty shape": file_of(json.dumps({"a": entry([2**63, 0], [0, 0])}).encode()),
    "wrong number of bytes": file_of(json.dumps({"a": entry([2], [0, 4])}).encode(), bytes(4)),
    "three offsets": file_of(json.dumps({"a": entry([1], [0, 4, 8])}).encode(), bytes(8)),
    "negative offset": file_of(json.dumps({"a": entry([1], [-4, 0])}).encode(), bytes(4)),
    "backward offsets": file_of(json.dumps({"a": entry([1], [4, 0])}).encode(), bytes(4)),
    "beyond the end": file_of(json.dumps({"a": entry([2], [0, 8])}).encode(), bytes(4)),
    "a gap": file_of(json.dumps({"a": entry([1], [4, 8])}).encode(), bytes(8)),
    "bytes at the end": file_of(json.dumps({"a": entry([1], [0, 4])}).encode(), bytes(5)),
    "overlap": file_of(json.dumps({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}).encode(), bytes(4)),
    "partial overlap": file_of(json.dumps({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}).encode(), bytes(12)),
    "a name twice": file_of(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        bytes(1),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ModelError) as refused:
        read_header(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    found = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="cut short"):
        read_tensor(found)


def test_a_tensor_that_is_not_what_was_promised(tmp_path: Path) -> None:
    from compress.core.safetensors_file import Pending

    wrong = Pending(torch.float32, (2,), lambda: torch.ones(3))
    with pytest.raises(ValueError, match="was promised"):
        write_file(tmp_path / "x.safetensors", {"a": wrong})
    assert list(tmp_path.iterdir()) == []
