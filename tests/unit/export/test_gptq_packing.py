"""GPTQ's packing against loops that know nothing of words that run on: one bit at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.core.errors import ModelError
from compress.core.numerics.affine import dequantize
from compress.core.types import LayerRef, QTensor, Scheme
from export.formats import gptq
from export.gptq.kernels import in_vllm, kernel, kernel_notes
from export.gptq.read import rule, unpack
from export.source import Coded

ROWS, COLUMNS = 32, 64


def layer(bits: int, symmetric: bool = False, group: int = 32, shape: tuple[int, int] = (ROWS, COLUMNS)) -> Coded:
    scheme = Scheme("int", bits, group, symmetric, "float16")
    return Coded(LayerRef("m.q_proj", "m.q_proj.weight", shape, 0, "q_proj"), scheme, None, False)


def drawn(coded: Coded) -> QTensor:
    generator = torch.Generator().manual_seed(3)
    rows, columns = coded.layer.shape
    top, groups = 1 << coded.scheme.bits, coded.scheme.groups(columns)
    codes = torch.randint(0, top, (rows, columns), generator=generator, dtype=torch.uint8)
    zero = torch.randint(1, top, (rows, groups), generator=generator, dtype=torch.uint8)
    scale = torch.rand(rows, groups, generator=generator).half().float()
    return QTensor(codes, scale, None if coded.scheme.symmetric else zero, coded.scheme)


def words_by_loop(values: list[int], bits: int) -> list[int]:
    """Numbers end to end, lowest bit first, cut into words of 32 bits, as signed."""
    line = [number >> bit & 1 for number in values for bit in range(bits)]
    found = [sum(bit << n for n, bit in enumerate(line[at : at + 32])) for at in range(0, len(line), 32)]
    return [word - (1 << 32) if word >> 31 else word for word in found]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_word_is_what_a_loop_makes(bits: int, form: str, symmetric: bool) -> None:
    coded = layer(bits, symmetric)
    q = drawn(coded)
    made = {name: item.make() for name, item in gptq._layer("m", coded, (0, ROWS), lambda: q, form).items()}
    zero = q.zero if q.zero is not None else torch.full((ROWS, 2), 1 << (bits - 1))
    for row in range(ROWS):
        assert made["m.qweight"][:, row].tolist() == words_by_loop(q.codes[row].tolist(), bits)
    for group in range(2):
        stored = [int(z) - (form == "gptq") for z in zero[:, group]]
        assert made["m.qzeros"][group].tolist() == words_by_loop(stored, bits)
    assert torch.equal(made["m.scales"].float(), q.scale.t())
    assert made["m.scales"].dtype == torch.float16
    assert made["m.g_idx"].tolist() == [n // 32 for n in range(COLUMNS)]


def test_golden_words() -> None:
    """Four bits: eight codes a word, the first in the lowest place. Three: as the words of AutoGPTQ's own kernel."""
    assert words_by_loop([1, 2, 3, 4, 5, 6, 7, 8], 4) == [0x87654321 - (1 << 32)]
    three = words_by_loop([n % 8 for n in range(32)], 3)
    first = sum((n % 8) << 3 * n for n in range(10)) | (10 % 8 & 3) << 30
    second = (10 % 8) >> 2 | sum((n % 8) << (3 * (n - 11) + 1) for n in range(11, 21)) | (21 % 8 & 1) << 31
    third = (21 % 8) >> 1 | sum((n % 8) << (3 * (n - 22) + 2) for n in range(22, 32))
    assert [word % (1 << 32) for word in three] == [first, second, third]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_reader_gives_back_what_was_packed(bits: int) -> None:
    coded = layer(bits)
    q = drawn(coded)
    made = {name: item.make() for name, item in gptq._layer("m", coded, (0, ROWS), lambda: q, "gptq").items()}
    codes = unpack(made["m.qweight"].numpy(), bits).T
    zero = unpack(made["m.qzeros"].numpy().T, bits) + 1
    values = (codes - np.repeat(zero, 32, 1)).astype(np.float32) * np.repeat(q.scale.numpy(), 32, 1)
    assert np.array_equal(values, dequantize(q).numpy())


def test_a_scale_that_float16_cannot_hold_is_refused() -> None:
    assert gptq._inexact(torch.tensor([0.5, 0.25])) is None
    assert "0.100000001" in (gptq._inexact(torch.tensor([0.5, 0.1])) or "")


@pytest.mark.parametrize(
    ("bits", "symmetric", "group", "shape", "runs", "because"),
    [
        (4, True, 128, (1024, 1024), "vLLM's Machete (Hopper) or Marlin", ""),
        (8, True, -1, (1024, 1024), "vLLM's Machete (Hopper) or Marlin", ""),
        (4, True, 32, (1024, 1024), "vLLM's Marlin (Turing", ""),
        (4, True, 64, (64, 128), "vLLM's Marlin (Turing", ""),
        (4, True, 64, (576, 576), "vLLM's Marlin (Turing", "padded"),
        (4, True, 64, (1536, 576), "vLLM's Machete (Hopper) or Marlin", ""),
        (4, True, 96, (1536, 1536), "vLLM's ExLlama", "96"),
        (4, False, 128, (1024, 1024), "GPTQModel's ExLlama v2", ""),
        (3, True, 128, (1024, 1024), "GPTQModel's Triton", "4 bits"),
        (4, False, 64, (48, 64), "GPTQModel's Triton", "sizes in 32s"),
    ],
)
def test_which_kernel_runs_it(
    bits: int, symmetric: bool, group: int, shape: tuple[int, int], runs: str, because: str
) -> None:
    coded = layer(bits, symmetric, group, shape)
    opened = in_vllm([coded])
    name, reason = kernel(coded, opened)
    assert name.startswith(runs)
    assert because in reason
    notes = list(kernel_notes([coded, coded]))
    assert "every layer" in notes[-1]
    assert opened or "--symmetric" in notes[0]


def test_the_first_rule_that_matches_counts() -> None:
    said = {"bits": 4, "group_size": 64, "dynamic": {r"+:^a\.b$": {"bits": 8}, r"-:^a\.": {}, "c": {"bits": 2}}}
    assert rule(said, "a.b")["bits"] == 8
    assert rule(said, "d.c")["bits"] == 4
    assert rule(said, "cde")["bits"] == 2
    with pytest.raises(ModelError, match="says that it is not"):
        rule(said, "a.c")


def test_the_patterns_cover_the_names_of_fused_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    names = ("m.0.q_proj", "m.0.k_proj")
    refs = [LayerRef(name, f"{name}.weight", (32, 32), 0, "q_proj", fused_with=names) for name in names]
    checkpoint = SimpleNamespace(sources={r.param: r.param for r in refs})
    source = SimpleNamespace(layers=refs, checkpoint=checkpoint, coded={})
    monkeypatch.setattr(gptq, "disk_parts", lambda ref, param: [(param, 0, 32)])
    found = gptq._patterns(source, "m.0.q_proj")  # type: ignore[arg-type]
    assert [bool(re.match(found[0], name)) for name in ("m.0.q_proj", "m.0.qkv_proj", "m.0.k_proj", "m.00.q_proj")] == [
        True, True, False, False
    ]  # fmt: skip


def test_weights_too_large_for_one_file_get_an_index(tmp_path: Path) -> None:
    import json

    from compress.core.checkpoint import read_index
    from compress.core.safetensors_file import pending, read_tensor
    from compress.core.shards import write_sharded

    tensors = {f"t{n}": torch.full((10,), float(n)) for n in range(5)}
    write_sharded(tmp_path, {name: pending(tensor) for name, tensor in tensors.items()}, limit=100)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == 200
    assert all(torch.equal(read_tensor(entry), tensors[name]) for name, entry in read_index(tmp_path).items())
