"""Charts: plotly accepts them, their numbers are the record's, names cannot act."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import plotly.graph_objects as go
import pytest

from compress.core.types import Measurement, RunRecord
from compress.report import chartkit, charts
from tests import fake_record as fake


def _by_key(record: RunRecord) -> dict[str, chartkit.Chart]:
    return {chart.key: chart for chart in charts.build(record)}


@pytest.mark.parametrize(
    ("factory", "keys"),
    [
        (fake.quantize_record, ["parts", "block-bytes", "bits", "quality", "layer-error", "block-error"]),
        (fake.bench_record, ["quality", "kl", "speed"]),
        (fake.encoder_record, ["parts", "block-bytes", "bits", "quality", "layer-error", "block-error"]),
        (fake.empty_record, []),
        (
            fake.hostile_record,
            ["loss", "scores", "parts", "block-bytes", "bits", "quality", "kl", "layer-error", "block-error"],
        ),
        (fake.tune_record, ["loss", "scores"]),
    ],
)
def test_the_right_charts_and_plotly_accepts_each(factory: Any, keys: list[str]) -> None:
    made = charts.build(factory())
    assert [chart.key for chart in made] == keys
    for chart in made:
        go.Figure(chart.figure)  # raises on any property that plotly does not know
        json.dumps(chart.figure, allow_nan=False)
        assert len(chart.said) > 20
        assert chart.said.endswith(".")


def test_stacked_parts_are_the_file_to_the_byte() -> None:
    record = fake.quantize_record()
    before, after = (m.median for m in record.measurements if m.name == "bytes")
    traces = _by_key(record)["parts"].figure["data"]
    assert [t["name"] for t in traces] == ["Embedding", "Attention", "MLP", "Everything else"]
    assert sum(t["x"][0] for t in traces) * 1e6 == pytest.approx(after, abs=1)
    assert sum(t["x"][1] for t in traces) * 1e6 == pytest.approx(before, abs=1)


def test_block_bars_stack_to_the_layers_of_the_block() -> None:
    record = fake.quantize_record(5)
    original, *parts = _by_key(record)["block-bytes"].figure["data"]
    for i, block in enumerate(original["x"]):
        inside = [x for x in record.layers if x.block == block]
        assert original["y"][i] * 1e6 == pytest.approx(sum(x.bytes_before for x in inside))
        assert parts[-1]["base"][i] * 1e6 + parts[-1]["y"][i] * 1e6 == pytest.approx(sum(x.bytes_after for x in inside))
        assert parts[0]["base"][i] == 0


def test_bits_and_errors_are_those_of_each_layer() -> None:
    record = fake.quantize_record(4)
    made = _by_key(record)
    heat = made["bits"].figure["data"][0]
    errors = {t["name"]: dict(zip(t["x"], t["y"], strict=True)) for t in made["layer-error"].figure["data"]}
    for layer in record.layers[1:]:
        row = list(fake.SHAPES).index(layer.role)
        bits = 8 * layer.bytes_after / math.prod(layer.shape)
        assert heat["z"][row][heat["x"].index(layer.block)] == pytest.approx(bits)
        assert errors[layer.role][layer.block] == pytest.approx(100 * layer.output_error)
    assert made["layer-error"].figure["layout"]["yaxis"]["type"] == "log"


def test_whiskers_reach_the_interval() -> None:
    record = fake.bench_record()
    chart = _by_key(record)["quality"]
    for trace in chart.figure["data"]:
        whisker, middle = trace["error_y"], trace["y"][0]
        found = next(m for m in record.measurements if m.name == "perplexity" and m.median == middle)
        assert middle + whisker["array"][0] == pytest.approx(found.high)
        assert middle - whisker["arrayminus"][0] == pytest.approx(found.low)
    assert len({sign for _, _, sign in chart.legend}) == 4


def test_measurements_that_are_not_numbers_do_not_reach_the_page() -> None:
    odd = (
        Measurement("original", "bytes", "bytes", 1e6),
        Measurement("a", "bytes", "bytes", 5e5),
        Measurement("original", "perplexity", "", 10.0, math.nan, math.inf),
        Measurement("a", "perplexity", "", math.inf, 1.0, 2.0),
        Measurement("a", "decode_tokens_per_s", "tokens/s", math.inf, 1.0, 2.0),
    )
    made = charts.build(dataclasses.replace(fake.bench_record(), measurements=odd))
    text = json.dumps([chart.figure for chart in made], allow_nan=False)
    assert "NaN" not in text
    assert [t["name"] for t in made[0].figure["data"]] == ["original"]


def test_experts_share_a_cell_and_many_layers_stay_small() -> None:
    base = fake.quantize_record(2).layers[-1]
    experts = tuple(
        dataclasses.replace(base, layer=f"b{b}.experts.{e}.down_proj", block=b, output_error=0.01 + e / 1000)
        for b in range(48)
        for e in range(256)
    )
    made = _by_key(RunRecord("quantize", {}, None, layers=experts))
    assert len(json.dumps([chart.figure for chart in made.values()])) < 60_000
    lines = made["layer-error"].figure["data"]
    assert len(lines) == 1
    assert lines[0]["y"] == pytest.approx([100 * (0.01 + 0.255)] * 48)


@pytest.mark.parametrize("attack", fake.ATTACKS)
def test_labels_hold_no_tag_that_plotly_would_read(attack: str) -> None:
    label = chartkit.label(attack)
    assert "<" not in label
    assert ">" not in label
    assert not label.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "").count("&")


def test_templates_never_hold_names() -> None:
    for chart in charts.build(fake.hostile_record()):
        for trace in chart.figure["data"]:
            known = trace["hovertemplate"]
            assert "pwned" not in known
            assert "customdata" not in known


def test_log_ticks_cover_the_values() -> None:
    few, many = chartkit.log_ticks(0.02, 4.3), chartkit.log_ticks(1e-6, 50)
    assert few["ticktext"][:4] == ["0.01", "0.02", "0.05", "0.1"]
    assert min(few["tickvals"]) <= 0.02
    assert max(few["tickvals"]) >= 4.3
    assert len(many["tickvals"]) == 9


def test_a_part_has_one_colour() -> None:
    made = _by_key(fake.quantize_record(3))
    shades = [{name: shade for name, shade, _ in made[key].legend} for key in ("parts", "block-bytes")]
    assert shades[0]["MLP"] == shades[1]["MLP"]
    assert shades[0]["Attention"] == shades[1]["Attention"]
    assert len(set(shades[0].values())) == 4


def test_training_has_its_curve_and_its_scores() -> None:
    loss, scores = charts.build(fake.tune_record())
    assert loss.figure["data"][0]["x"] == [5, 10, 15, 20, 25, 30]
    assert loss.said == "The loss went from 2.000 to 0.5000 in 30 steps."
    assert [trace["y"] for trace in scores.figure["data"]] == [[81, 93, 92], pytest.approx([79, 91, 90])]
    assert scores.said == "The model is that of epoch 2, with accuracy 93.0 % on validation rows."
