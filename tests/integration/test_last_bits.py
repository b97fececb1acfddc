"""Inputs in int8 by token: the last bit of a sum decides between two codes, and what may come of it is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.core.numerics.activation import codes_of, dynamic_grid
from compress.core.types import ActScheme
from export import folder
from export.reference import LAST_BITS, Reference
from tests.exporting import Bench, judged, subject, wrong

pytestmark = pytest.mark.usefixtures("in_process")
ACTED = subject("bert-classifier", "W8A8 dynamic")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bits"))


def test_the_largest_value_of_a_token_lies_on_a_tie_where_it_is_negative() -> None:
    """max |x| / 127.5, as compressed-tensors has it; at the other end codes are cut off at 127."""
    x = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    scaled = x / dynamic_grid(x, ActScheme("token", True, True)).scale
    lowest = scaled.amin(-1)[scaled.abs().argmax(-1) == scaled.argmin(-1)]
    assert len(lowest) > 400
    assert float((lowest + 127.5).abs().max()) < 1e-4
    assert {-127.0, -128.0} == set(lowest.round().tolist())


def test_other_last_bits_are_another_answer_only_where_inputs_are_rounded(bench: Bench) -> None:
    source = bench.source(ACTED)
    ids = torch.arange(10, 74)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    acted, floats = Reference(source, list(source.coded), codes_of), Reference(source, list(source.coded))
    exact = acted.run(given)
    draws = [acted.shaken(given, seed) for seed in range(4)]
    assert torch.equal(draws[0], acted.shaken(given, 0))
    assert torch.equal(exact, acted.run(given))  # nothing of it stays
    assert max(float((drawn - exact).abs().max()) for drawn in draws) > 100 * LAST_BITS
    assert torch.equal(floats.shaken(given, 0), floats.run(given))


def test_onnxruntime_is_one_more_draw(bench: Bench) -> None:
    """It was refused: 2.35 times what rounding alone does, for the codes of a few values at -127.5."""
    where, out = bench.export("onnx", ACTED), bench.artifact(ACTED)
    lines = judged(where, out, "onnxruntime")
    assert wrong(lines) == []
    assert lines[0]["arithmetic_last_bits"] > 0
    assert lines[0]["tolerance"] < 0.03 * 1.27  # of the largest logit


@pytest.mark.parametrize("fault", ["off-by-one zero", "transposed block", "dropped bias"])
def test_faults_are_beyond_what_last_bits_do(bench: Bench, fault: str) -> None:
    where, out = bench.export("onnx", ACTED, fault), bench.artifact(ACTED)
    assert folder.card(where)["packed"]
    (line,) = [line for line in judged(where, out, "onnxruntime") if line["check"].startswith("outputs")]
    assert not line["passed"]
    assert line["difference"] > 1.5 * line["tolerance"]  # codes that are one too low, .037 against .022, is the least


def test_the_reference_of_an_artifact_without_int8_inputs_is_not_drawn(bench: Bench, tmp_path: Path) -> None:
    of = subject("bert-classifier", "8 bit rows")
    lines = judged(bench.export("onnx", of), bench.artifact(of), "onnxruntime")
    assert wrong(lines) == []
    assert "arithmetic_last_bits" not in lines[0]
