"""record.json: the contract, the way back, and files that are not one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.core.errors import CompressError, DataError, InputError, StorageError
from compress.core.types import Measurement, RunRecord
from compress.report import record as records
from tests import fake_record as fake

FACTORIES = (
    fake.quantize_record,
    fake.bench_record,
    fake.encoder_record,
    fake.empty_record,
    fake.chinese_record,
)


def test_contract_keys_come_first_and_measurements_hold_what_the_contract_says() -> None:
    data = records.to_json(fake.quantize_record(2))
    contract = ["command", "model", "artifact", "plan", "measurements", "verified", "environment"]
    assert list(data)[: len(contract)] == contract
    wanted = {"subject", "name", "unit", "median", "low", "high", "n"}
    assert all(wanted <= set(row) for row in data["measurements"])
    assert data["measurements"][0]["median"] == fake.quantize_record(2).measurements[0].median


@pytest.mark.parametrize("factory", FACTORIES)
def test_round_trip_through_a_file(factory: Any, tmp_path: Path) -> None:
    first = factory()
    path = tmp_path / "compress" / "record.json"
    records.write(first, path)
    again = records.read(path)
    # NaN equals nothing, so compare the JSON, and the parts without NaN in memory.
    assert records.to_json(again) == records.to_json(first)
    assert [x.layer for x in again.layers] == [x.layer for x in first.layers]
    assert again.generations == first.generations
    assert again.notes == first.notes
    assert again.stages == first.stages
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_numbers_that_json_lacks_are_null_and_come_back_as_nan(tmp_path: Path) -> None:
    odd = Measurement("x", "perplexity", "", math.inf, None, math.nan, 1, {"p95": math.nan})
    base = fake.encoder_record()
    record = replace(base, measurements=(odd,), stages={"open": math.nan})
    text = records.dumps(record)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    data = json.loads(text, parse_constant=refuse)
    assert data["measurements"][0]["median"] is None
    back = records.from_json(data)
    assert math.isnan(back.measurements[0].median)
    assert back.measurements[0].high is None
    assert math.isnan(back.stages["open"])
    missing = [x.role for x in back.layers if math.isnan(x.output_error)]
    assert set(missing) == {"v_proj"}
    assert len(missing) == 6


def test_free_form_values_become_plain_json() -> None:
    odd = {
        "path": Path("a/b"),
        "pair": (1, 2),
        "set": {"b", "a"},
        "numpy": np.float32(0.5),
        "numpy_int": np.int64(7),
        "torch": torch.tensor(3),
        "dtype": torch.bfloat16,
        "lone": "\ud800x",
        3: True,
        "inf": np.float64("inf"),
    }
    data = records.to_json(RunRecord("quantize", odd, None))["model"]
    assert data == {
        "path": "a/b",
        "pair": [1, 2],
        "set": ["a", "b"],
        "numpy": 0.5,
        "numpy_int": 7,
        "torch": 3,
        "dtype": "torch.bfloat16",
        "lone": "\ufffdx",
        "3": True,
        "inf": None,
    }


GOOD = records.to_json(fake.quantize_record(1))
BROKEN = {
    "empty": (b"", "is not JSON"),
    "cut": (json.dumps(GOOD).encode()[:-40], "is not JSON"),
    "binary": (b"\xff\xfe\x00{", "not UTF-8"),
    "list": (b"[]", "must be a JSON object"),
    "no command": (json.dumps({"model": {}, "artifact": None}).encode(), "command is missing"),
    "wrong type": (
        json.dumps({**GOOD, "layers": [{**GOOD["layers"][0], "block": "x"}]}).encode(),
        "layers.0.block",
    ),
    "not rows": (json.dumps({**GOOD, "measurements": 3}).encode(), "measurements"),
    "newer": (json.dumps({**GOOD, "record_version": 99}).encode(), "99"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "long number": (b'{"command": ' + b"9" * 5000 + b"}", "is not JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    content, said = BROKEN[case]
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        records.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    assert caught.value.exit_code == 3


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        records.read(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        records.read(tmp_path)


def test_unknown_fields_of_a_later_minor_version_are_ignored() -> None:
    data = {**GOOD, "new_field": 1, "blocks": [{**b, "extra": 2} for b in GOOD["blocks"]]}
    assert records.dumps(records.from_json(data)) == records.dumps(records.from_json(GOOD))


def test_a_write_that_fails_leaves_the_old_record_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    records.write(fake.empty_record(), path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        records.write(fake.quantize_record(1), path)
    assert isinstance(caught.value, CompressError)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
