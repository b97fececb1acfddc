"""`quantize --max-latency` on tiny encoders: within the budget by a table of times, resumed, refused; timed truly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from scipy.stats import spearmanr

from compress.core.errors import BudgetError, CompressError, RecipeError
from compress.core.numerics.activation import fake_quantize
from compress.core.numerics.affine import dequantize
from compress.core.types import ActScheme, RunRecord, Scheme
from compress.measure.operators import Timing
from compress.methods import rtn
from compress.pipeline import budgeted, timed
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from compress.pipeline.hooks import Hooks
from compress.pipeline.prepare import Prepared, make_streams, open_and_plan
from compress.pipeline.profiling import Chosen
from compress.plan import latency, profile
from compress.recipe import Recipe
from compress.report import terminal
from export.formats.compressed_tensors import FORMAT
from export.onnxfile.trial import Drawn, write_alone
from tests.killed import killed_after
from tests.rebuild import run
from tests.tiny import save_tiny

TEXT = {"samples": 16, "seq_len": 32, "eval_samples": 4, "to": "onnx", "request": "1x32"}
INT8 = "int8-row-sym a8-token-dynamic-sym"


def table(ready: Prepared, chosen: Chosen, work: Path, hooks: Hooks) -> latency.Table:
    """Times in proportion to sizes: 10 ms for the model as it is, of which 2 are not in its layers."""
    del work, hooks
    speeds = {ready.dtype: 1.0, INT8: 0.4, "int8-row-sym": 1.2, "int4-g32-sym": 0.9,
              "int3-g32-sym": 0.9, "int2-g32-sym": 1.5}  # fmt: skip
    kinds = latency.kinds_of(ready.structure)
    weights = {kind: sum(la.shape[0] * la.shape[1] for la in groups[0]) for kind, groups in kinds.items()}
    each = {kind: 8.0 * size / sum(weights[k] * len(kinds[k]) for k in kinds) for kind, size in weights.items()}
    alone = {kind: {name: each[kind] * by for name, by in speeds.items()} for kind in kinds}
    whole = {name: 2.0 + 8.0 * by for name, by in speeds.items()}
    about = {"batch": 1, "tokens": 32, "threads": 1, "runtime": "onnxruntime", "version": "1.32.0"}
    return latency.Table(ready.dtype, whole, alone, about)


@pytest.fixture
def same_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators take what `table` says."""
    monkeypatch.setattr(timed, "measured", table)


def planned(model: Path, out: Path, **settings: Any) -> RunRecord:
    """The record of a run within a budget, on a text beside the model."""
    return run(model.name, model, out, **{**TEXT, **settings}).record


def treatments(out: Path) -> dict[str, int]:
    """How many layers of the blocks are treated how."""
    found: dict[str, int] = {}
    for name, row in json.loads((out / "compress" / "plan.json").read_text())["layers"].items():
        if ".layer." in name:
            said = " ".join(row[key] for key in ("scheme", "activation") if key in row)
            found[said] = found.get(said, 0) + 1
    return found


@pytest.mark.usefixtures("same_times")
def test_the_less_time_the_more_layers_are_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny("bert-classifier", tmp_path / "bert-classifier")
    shares = []
    for ms in (8.5, 6.0):
        record = planned(model, tmp_path / str(ms), max_latency=f"{ms}ms")
        expected = record.plan["predicted_ms"]
        assert expected <= ms
        assert record.plan["in_float"]
        assert f"Budget {ms:g} ms for 1 x 32 tokens: {expected:.3g} ms expected (onnxruntime 1.32.0," in record.notes[0]
        assert "nothing in codes takes 10 ms. Expected loss" in record.notes[0]
        assert all(line["passed"] for line in record.verified)
        found = treatments(tmp_path / str(ms))
        assert found.keys() == {INT8, "bfloat16"}
        shares.append(found[INT8])
    assert shares[0] < shares[1]
    judged = VerifySettings(threads=1, runtimes=("onnxruntime",))
    exported, failures = export(tmp_path / "6.0", ExportSettings(("onnx",), verify=judged))
    assert failures == []
    graph = onnx.load_model(str(tmp_path / "6.0" / "exports" / "onnx" / "model.onnx")).graph
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in graph.node) == shares[1]
    assert all(line["passed"] for line in exported.verified)
    monkeypatch.setattr(timed, "Timing", lambda: Timing(3, 2, 0.0))
    asked = Recipe.build(max_latency="0.0001ms", request="1x32", threads=1)
    both = replace(record, measurements=(*record.measurements, *exported.measurements))
    told = timed.with_latency(both, asked, Hooks())
    row = told.measurements[-1]
    assert (row.name, row.n, row.detail["expected_ms"]) == ("latency_ms", 6, record.plan["predicted_ms"])
    assert 0 < row.low <= row.median <= row.high
    assert f"onnx takes {row.median:.3g} ms [{row.low:.3g}, {row.high:.3g}] in onnxruntime where " in told.notes[-1]
    assert "which is over the budget of 0.0001 ms" in told.notes[-1]
    assert "ms a request" in terminal.text(told)


@pytest.mark.usefixtures("same_times")
def test_what_int8_inputs_cost_is_what_they_do(tmp_path: Path) -> None:
    """Expected from one pass backward against the divergence measured, one layer at a time in plain transformers."""
    model = save_tiny("bert-classifier", tmp_path / "bert-classifier")
    settings = {**TEXT, "samples": 48, "method": "rtn"}
    done = run(model.name, model, tmp_path / "out", **settings, max_latency="6ms", verify=False)
    found = profile.read(done.out / profile.PLACE).sensitivities
    expected = {one.layer: one.value for one in found if ".layer." in one.layer}
    ready = open_and_plan(done.recipe, Hooks())
    texts = [trace.inputs for trace in make_streams(ready).calibration]
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def said() -> torch.Tensor:
        return torch.cat([opened(**given).logits.double().log_softmax(-1) for given in texts])

    before, measured, alone = said(), {}, {}
    for name in expected:
        layer = opened.get_submodule(name)
        kept = layer.weight.data.clone()
        q, _ = rtn.METHOD.quantize(kept, None, Scheme("int", 8, -1, True, *FORMAT.scale_grid(8)), rtn.Options())
        layer.weight.data = dequantize(q)
        alone[name] = float((before.exp() * (before - said())).sum(-1).mean())
        hook = layer.register_forward_pre_hook(lambda _, args: (fake_quantize(args[0], ActScheme()), *args[1:]))
        measured[name] = float((before.exp() * (before - said())).sum(-1).mean())
        hook.remove()
        layer.weight.data = kept
    asked, wanted = (np.array([one[name] for name in expected]) for one in (expected, measured))
    assert 1 / 1.5 < asked.sum() / wanted.sum() < 1.5
    assert spearmanr(asked, wanted)[0] > 0.85
    assert sum(alone.values()) < 0.9 * wanted.sum()  # inputs are a quarter of it


@pytest.mark.usefixtures("same_times")
def test_together_with_bytes(tmp_path: Path) -> None:
    model = save_tiny("bert-classifier", tmp_path / "bert-classifier")
    with pytest.raises(BudgetError, match=r"no plan has .* bytes and 5.3 ms: within .* the fastest plan takes .* ms"):
        planned(model, tmp_path / "out", max_bytes="112kB", max_latency="5.3ms")
    assert not (tmp_path / "out").exists()
    record = planned(model, tmp_path / "out", max_bytes="118kB", max_latency="8ms")
    assert record.plan["predicted_ms"] <= 8
    assert "Budget 118,000 bytes:" in record.notes[0]
    assert "Budget 8 ms for" in record.notes[0]
    assert len(treatments(tmp_path / "out")) > 1


@pytest.mark.usefixtures("same_times")
def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny("bert-classifier", tmp_path / "bert-classifier")
    planned(model, tmp_path / "whole", max_latency="7ms", verify=False)
    asked: list[int] = []

    def slower(ready: Prepared, chosen: Chosen, work: Path, hooks: Hooks) -> latency.Table:
        """Every time it is asked the machine is another."""
        asked.append(1)
        found = table(ready, chosen, work, hooks)
        return replace(found, whole={name: ms * len(asked) for name, ms in found.whole.items()})

    monkeypatch.setattr(timed, "measured", slower)
    kinds = ("outside", "timed", "banked", "scored", "planned", "block")
    cut = tmp_path / "cut"
    deaths = killed_after(monkeypatch, kinds, lambda: planned(model, cut, max_latency="7ms", verify=False))
    assert {"timed", "banked", "scored", "planned", "block"} <= set(deaths)
    assert len(asked) == 1
    for name in ("model.safetensors", "config.json", "compress/plan.json", "compress/profile.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "cut" / "compress" / "work").exists()
    planned(model, tmp_path / "given", plan=str(tmp_path / "whole" / "compress" / "plan.json"))
    assert treatments(tmp_path / "given") == treatments(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("given", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("same_times")
@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("bert-classifier", {"max_latency": "5ms"}, BudgetError, "5 ms are too few: the fastest plan takes 5.2 ms"),
        ("bert-classifier", {"max_latency": "12ms"}, RecipeError, "takes 10 ms as it is, which is within 12 ms"),
        ("bert-classifier", {"max_latency": "fast"}, RecipeError, "fast is not understood; write it like 8ms"),
        ("bert-classifier", {"max_latency": "7ms", "request": "128"}, RecipeError, "write texts x tokens, like 1x128"),
        ("bert-classifier", {"max_latency": "7ms", "request": "1x999"}, RecipeError, "reads 160 tokens at most"),
        ("bert-classifier", {"max_latency": "7ms", "to": ""}, RecipeError, "in onnxruntime; add --to onnx"),
        ("bert-classifier", {"max_latency": "7ms", "bits": 8}, RecipeError, "layer by layer; leave out --bits"),
        ("llama", {"max_latency": "7ms"}, RecipeError, "read whole texts and write none .*; LlamaForCausalLM is none"),
        ("bart", {"max_latency": "7ms"}, RecipeError, "BartForConditionalGeneration is none: give --max-bytes"),
    ],
)
def test_what_cannot_be_planned_leaves_nothing(
    tmp_path: Path, name: str, settings: dict[str, Any], kind: type[CompressError], said: str
) -> None:
    model = save_tiny(name, tmp_path / name)
    with pytest.raises(kind, match=said):
        planned(model, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_operators_are_timed_as_they_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of layer and the whole model, in onnxruntime; what is computed is what the layers compute."""
    model = save_tiny("bert-classifier", tmp_path / "bert-classifier")
    monkeypatch.setattr(timed, "Timing", lambda rounds=1: Timing(rounds, 3, 0.0))
    recipe = Recipe.build(model=str(model), out=str(tmp_path / "out"), max_latency="7ms", threads=1, **TEXT)
    ready = open_and_plan(recipe, Hooks())
    chosen = budgeted.choices(ready)
    found = timed.measured(ready, chosen, tmp_path / "work", Hooks())
    kinds = latency.kinds_of(ready.structure)
    assert found.alone.keys() == kinds.keys()
    assert {"bfloat16"} <= set(found.whole) <= {p.treatment for p in chosen[ready.structure.layers[0].name]}
    assert all(ms > 0 for row in (found.whole, *found.alone.values()) for ms in row.values())
    assert found.about["tokens"] == 32
    assert not any((tmp_path / "work").iterdir())
    fitted = latency.fitted(found, ready.structure)
    assert 0 <= fitted.rest <= min(found.whole.values())


def test_layers_alone_compute_what_they_do_in_the_model(tmp_path: Path) -> None:
    model = save_tiny("bert-classifier", tmp_path / "bert-classifier")
    recipe = Recipe.build(model=str(model), out=str(tmp_path / "out"), max_latency="7ms", **TEXT)
    ready = open_and_plan(recipe, Hooks())
    groups = latency.kinds_of(ready.structure)["64 -> 64, 64, 64"]
    load = ready.checkpoint.load
    for treatment, bound in (("bfloat16", 1e-5), ("int8-row-sym", 0.02), (INT8, 0.03)):
        scheme, _, activation = treatment.partition(" ")
        line = {"scheme": scheme, "packed": True} | ({"activation": activation} if activation else {})
        layers = {layer.name: line for layer in ready.structure.layers}
        source = Drawn(ready.opened.folder, "m", ready.checkpoint, ready.structure, {"layers": layers})
        write_alone(tmp_path / "alone.onnx", source, groups)
        session = onnxruntime.InferenceSession(str(tmp_path / "alone.onnx"), providers=["CPUExecutionProvider"])
        draw = np.random.default_rng(0)
        given = {i.name: draw.standard_normal((2, 5, 64), dtype=np.float32) for i in session.get_inputs()}
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))
        assert len(outputs) == sum(map(len, groups))
        for number, group in enumerate(groups):
            for layer in group:
                weight, bias = (load(f"{layer.name}.{part}").double().numpy() for part in ("weight", "bias"))
                wanted = given[f"x{number}"].astype(np.float64) @ weight.T + bias
                error = np.abs(outputs[f"{layer.name}.out"] - wanted).max() / np.abs(wanted).max()
                assert error < bound
