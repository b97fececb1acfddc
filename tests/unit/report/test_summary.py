"""What a record says, against figures worked out by hand."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

import pytest

from compress.core.types import Measurement
from compress.report import summary
from compress.report.steps import auto_class, next_steps
from tests import fake_record as fake


def test_headline_of_a_quantized_model() -> None:
    record = fake.quantize_record()
    before, after = (m.median for m in record.measurements if m.name == "bytes")
    figures = {f.label: f for f in summary.headline(record)}
    assert figures["Size"].before == f"{before / 1e6:.1f} MB"
    assert figures["Size"].value == f"{after / 1e6:.1f} MB"
    assert figures["Size"].note == f"{before / after:.2f}× smaller"
    assert (figures["Perplexity"].before, figures["Perplexity"].value) == ("19.03", f"{19.031 * 1.083:.2f}")
    assert figures["Perplexity"].note == "×1.083 [1.071, 1.096]"
    assert (figures["KL to the original"].value, figures["KL to the original"].before) == ("0.127", "")
    assert figures["Top-1 agreement"].value == "84.3 %"
    assert figures["Verified"].good is True


def test_headline_takes_what_there_is() -> None:
    assert summary.headline(fake.empty_record()) == []
    labels = [f.label for f in summary.headline(fake.encoder_record())]
    assert labels == ["Size", "Hidden-state cosine", "Verified"]
    only_layers = replace(fake.quantize_record(2), measurements=())
    saved = sum(x.bytes_before - x.bytes_after for x in only_layers.layers)
    assert summary.total_bytes(only_layers) == (
        only_layers.model["bytes"],
        only_layers.model["bytes"] - saved,
    )


def test_a_failed_verification_is_said_loudly() -> None:
    record = replace(fake.quantize_record(1), verified=({"runtime": "transformers", "passed": True}, {"passed": False}))
    figure = summary.headline(record)[-1]
    assert (figure.value, figure.good) == ("DISAGREES", False)


def test_speed_before_and_after() -> None:
    bench = fake.bench_record()
    two = ("original", "out/SmolLM2-135M-Instruct-int8")
    record = replace(bench, measurements=tuple(m for m in bench.measurements if m.subject in two))
    figures = {f.label: f for f in summary.headline(record)}
    assert figures["Decode"].note == f"[37.64, 39.96], {38.8 / 31.2:.2f}× faster"
    assert figures["Prefill"].note == "[352.4, 385.8], no clear difference"
    base, ours = (
        Measurement(name, "prefill_tokens_per_s", "tokens/s", median, median - 1, median + 1)
        for name, median in (("original", 402.0), ("a", 371.0))
    )
    assert summary.change("prefill_tokens_per_s", base, ours) == f"{402 / 371:.2f}× slower"
    assert summary.change("latency_ms", base, ours) == f"{402 / 371:.2f}× faster"
    assert figures["Peak memory"].note == f"{1.31 / 1.05:.2f}× less"


def test_best_of_many_leaves_the_reference_out() -> None:
    best = {f.label: f.value for f in summary.best(fake.bench_record())}
    assert best["Smallest"].endswith("int3")
    assert best["Lowest perplexity"].endswith("int8")
    assert best["Closest to the original"].endswith("int8")
    assert best["Fastest decode"].endswith("int8")


def test_roles_add_up_to_the_layers() -> None:
    record = fake.quantize_record()
    rows = {row.role: row for row in summary.roles(record)}
    assert list(rows) == ["embedding", *fake.SHAPES]
    down = [x for x in record.layers if x.role == "down_proj"]
    row = rows["down_proj"]
    assert row.layers == 30
    assert row.bytes_after == sum(x.bytes_after for x in down)
    assert row.bits == pytest.approx(8 * row.bytes_after / (30 * 576 * 1536), rel=1e-12)
    assert row.worst == max(x.output_error for x in down)
    assert row.schemes == ("int4-g64-asym", "int8-g64-asym")
    assert rows["o_proj"].fallbacks == 1


def test_worst_layers_and_their_reasons() -> None:
    record = fake.quantize_record()
    ranked = sorted(record.layers, key=lambda x: x.output_error, reverse=True)
    assert summary.worst(record, 5) == ranked[:5]
    fallback = next(x for x in record.layers if x.fallback)
    assert summary.why(fallback) == fallback.fallback
    # Where no statistics were collected the weight error stands in.
    encoder = fake.encoder_record()
    values = [x for x in encoder.layers if x.role == "v_proj"]
    assert all(summary.error_of(x) == x.weight_error and math.isnan(x.output_error) for x in values)


def test_plan_reasons_are_counted() -> None:
    rows = summary.reasons(fake.quantize_record())
    assert sum(row[3] for row in rows) == 211
    assert rows[0][:4] == ("int4-g64-asym", "gptq", "--bits 4, the largest group that divides 576", 180)
    planned = {"layers": {"a": {"scheme": {"kind": "int", "bits": 4}, "method": "rtn", "reason": "because"}, "b": 3}}
    only_plan = replace(fake.empty_record(), plan=planned)
    assert summary.reasons(only_plan) == [("int4", "rtn", "because", 1, "a")]


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq"),
        ("MarianMTModel", "AutoModelForSeq2SeqLM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("BertModel", "AutoModel"),
        ("", "AutoModel"),
    ],
)
def test_auto_class_exists_and_fits(architecture: str, name: str) -> None:
    import transformers

    assert auto_class(architecture) == name
    assert hasattr(transformers, name)


def test_next_steps_can_be_pasted() -> None:
    out = 'my out/it\'s "4" bit; rm -rf $HOME'
    record = replace(fake.quantize_record(1), artifact=out)
    lines = [step.line for step in next_steps(record)]
    assert shlex.split(lines[0]) == ["compress", "bench", "demo", out]
    scope = {}
    line = lines[1].split("\n")[1].replace("AutoModelForCausalLM.from_pretrained", "str")
    exec(line, scope)
    assert scope["model"] == out
    assert next_steps(fake.empty_record())[0].line == "compress quantize MODEL --bits 4"


def test_bench_of_several_runs_keeps_the_original_first() -> None:
    record = fake.bench_record()
    shuffled = replace(record, measurements=tuple(reversed(record.measurements)))
    assert summary.subjects(shuffled)[0] == "original"
    assert summary.target(record) is None
    assert summary.verdict(record) == "4 models side by side."


def test_the_verdict_says_when_a_change_may_be_chance() -> None:
    record = fake.quantize_record(1)
    assert summary.verdict(record).endswith("went from 19.03 to 20.61 (8.3 % up).")
    wide = tuple(replace(m, low=0.99) if m.name == "perplexity_ratio" else m for m in record.measurements)
    assert summary.verdict(replace(record, measurements=wide)).endswith("(8.3 % up, which may be chance).")
