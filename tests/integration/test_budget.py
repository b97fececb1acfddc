"""`quantize --max-bytes` and `--bpw` on tiny models: within the budget, better with more of it, resumed, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from compress.core.errors import BudgetError, CompressError, DataError, InputError, RecipeError
from compress.core.types import RunRecord
from compress.measure.size import weight_bytes
from compress.pipeline import collect
from compress.pipeline.export import ExportSettings, export
from compress.pipeline.sensitivity import sensitivity
from compress.plan import profile
from compress.recipe import SensitivityRecipe
from tests.killed import killed_after
from tests.rebuild import auto_class, run, write_text
from tests.tiny import save_tiny, tiny_config, tiny_model

TEXT = {"samples": 24, "seq_len": 32, "eval_samples": 4}


def planned(model: Path, out: Path, **settings: Any) -> RunRecord:
    """The record of a run within a budget, on a text beside the model."""
    return run(model.name, model, out, **{**TEXT, **settings}).record


def schemes(out: Path) -> dict[str, str]:
    """Layer -> the name of its scheme in plan.json."""
    plan = json.loads((out / "compress" / "plan.json").read_text())["layers"]
    return {name: line["scheme"] for name, line in plan.items()}


def kl(record: RunRecord) -> float:
    """Of the language model on held-out text."""
    return next(m.median for m in record.measurements if m.name == "kl")


def test_more_bytes_are_never_left_unused_for_nothing(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama")
    losses = []
    for size in ("160kB", "175kB", "200kB", "240kB"):
        record = planned(model, tmp_path / size, max_bytes=size)
        used = weight_bytes(tmp_path / size)
        assert used <= int(size[:-2]) * 1000
        assert f"Budget {size[:3]},000 bytes: {used:,} used. Expected loss" in record.notes[0]
        assert "measured on held-out text" in record.notes[0]
        losses.append(kl(record))
        if (tried := record.sensitivity["trial"]) is not None:  # costs are in its own measure then
            assert tried["expected"] == pytest.approx(tried["measured"][0])
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 20 * losses[-1]


def test_the_plan_says_why(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama")
    record = planned(model, tmp_path / "out", bpw=8.6)
    plan = json.loads((tmp_path / "out" / "compress" / "plan.json").read_text())["layers"]
    inside = {name: row for name, row in plan.items() if ".layers." in name}
    assert len({row["scheme"] for row in inside.values()}) > 1
    assert all(row["reason"].startswith("loses ") for row in inside.values())
    assert any("would save" in row["reason"] for row in inside.values())
    found = profile.read(tmp_path / "out" / profile.PLACE)
    assert {one.layer for one in found.sensitivities} == set(inside)
    assert {row["layer"] for row in record.sensitivity["layers"]} == set(inside)
    assert "What each layer costs, nats per token" in (tmp_path / "out" / "report.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "alike"),
    [
        ({}, False),
        ({"schemes": ["int4-g32-sym", "int8-row-sym"]}, True),
        ({"to": "gptq"}, True),
    ],
)
def test_layers_that_servers_fuse_are_alike_where_these_open_the_plan(
    tmp_path: Path, settings: dict[str, Any], alike: bool
) -> None:
    """vLLM has kernels for 4 and 8 bits; of GPTQ for 2 and 3, too. A plan is the same when it is given back."""
    model = save_tiny("llama", tmp_path / "llama")
    record = planned(model, tmp_path / "out", max_bytes="195kB", **settings)
    plan = schemes(tmp_path / "out")
    kinds = [{plan[f"model.layers.{block}.{part}_proj"] for part in parts}
             for block in range(tiny_config("llama").num_hidden_layers)
             for parts in (("self_attn.q", "self_attn.k", "self_attn.v"), ("mlp.gate", "mlp.up"))]  # fmt: skip
    assert len(set.union(*kinds)) > 1
    assert all(len(kind) == 1 for kind in kinds) == alike
    assert any("which vLLM wants alike" in note for note in record.notes) != alike
    run("llama", model, tmp_path / "again", **TEXT, plan=str(tmp_path / "out" / "compress" / "plan.json"))
    assert schemes(tmp_path / "again") == plan


def test_classifiers_and_encoder_decoders_have_budgets_too(tmp_path: Path) -> None:
    for name, size in (("bert-classifier", "110kB"), ("bart", "225kB")):
        model = save_tiny(name, tmp_path / name)
        record = planned(model, tmp_path / f"{name}-out", max_bytes=size)
        assert weight_bytes(tmp_path / f"{name}-out") <= int(size[:-2]) * 1000
        assert len({row.scheme for row in record.layers if row.scheme.startswith("int")}) > 1
        assert ("nats per answer" if name.startswith("bert") else "nats per token") in record.notes[0]


@pytest.mark.parametrize(("name", "size"), [("llama", "190kB"), ("bert-embedder", "140kB")])
def test_a_file_of_another_format_stays_within_the_budget_too(name: str, size: str, tmp_path: Path) -> None:
    """Two, three and four bits take as much in llama.cpp's blocks: fewer than four are never chosen."""
    out = tmp_path / "out"
    record = planned(save_tiny(name, tmp_path / name), out, max_bytes=size, to="gguf")
    export(out, ExportSettings(("gguf",), check=False))
    used, most = (out / "exports" / "gguf" / "model.gguf").stat().st_size, int(size[:-2]) * 1000
    assert used <= most
    assert f" {used:,} bytes as gguf. Expected loss" in record.notes[0]  # exactly as it was planned
    bits = {row.scheme[:4] for row in record.layers if row.scheme.startswith("int") and row.block >= 0}
    assert len(bits) > 1
    assert not bits & {"int2", "int3"}


@pytest.mark.parametrize(("name", "size"), [("llama", "200kB"), ("qwen3_moe", "345kB"), ("bert-embedder", "150kB")])
def test_a_gptq_checkpoint_is_never_larger_than_planned(name: str, size: str, tmp_path: Path) -> None:
    """An embedding with codes is float32 in it."""
    out = tmp_path / "out"
    record = planned(save_tiny(name, tmp_path / name), out, max_bytes=size, to="gptq", samples=12)
    export(out, ExportSettings(("gptq",), check=False))
    used, most = weight_bytes(out / "exports" / "gptq"), int(size[:-2]) * 1000
    expected = next(int(said.split()[0].replace(",", "")) for said in record.notes[0].split(". ") if "as gptq" in said)
    assert used <= expected <= most
    assert used > 0.9 * expected


@pytest.mark.parametrize(("name", "size"), [("mixtral", "320kB"), ("qwen3_moe", "340kB"), ("t5", "310kB")])
def test_models_that_open_with_one_scheme_get_the_best_that_fits(name: str, size: str, tmp_path: Path) -> None:
    """Experts' scales are wider than others', and they are more tensors on disk than in the model."""
    record = planned(save_tiny(name, tmp_path / name), tmp_path / "out", max_bytes=size, samples=12)
    used, most = weight_bytes(tmp_path / "out"), int(size[:-2]) * 1000
    assert used <= most
    (scheme,) = {row.scheme for row in record.layers if row.block >= 0}
    assert scheme.startswith("int")
    assert any(note.startswith("The budget chooses one scheme for all layers: ") for note in record.notes)
    larger = [p["totals"]["bytes"] for p in record.sensitivity["frontier"] if p["totals"]["bytes"] > used + 8000]
    assert larger  # there was more to choose
    assert min(larger) > most


@pytest.mark.parametrize("name", ["bert-classifier", "bert-tagger"])
def test_an_encoder_of_several_schemes_opens_without_its_head(name: str, tmp_path: Path) -> None:
    """Names of layers are others then, and a tagger's model is given a pooler that no file has."""
    model, out, data = save_tiny(name, tmp_path / name), tmp_path / "out", tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"row {n}: {n * n} and {n % 7}"}) + "\n" for n in range(40)))
    assert len({row.scheme for row in planned(model, out, max_bytes="110kB", data=str(data)).layers}) > 1
    ids = torch.arange(5, 25)[None]
    kinds = (AutoModel, auto_class(name))
    bare, whole = (kind.from_pretrained(out, dtype=torch.float32).eval() for kind in kinds)
    hidden = whole(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(bare(input_ids=ids).last_hidden_state, hidden, atol=1e-5, rtol=0)
    assert name == "bert-classifier" or not hasattr(bare.pooler.dense, "quantization_scheme")


@pytest.mark.parametrize(("asks", "options"), [("tried", {}), ("moves", {"correct": False})])
def test_killed_anywhere_it_ends_in_the_same_bytes(
    asks: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where layers make good what others lost, by a trial; else by what would help the plan."""
    model = save_tiny("llama", tmp_path / "llama")
    shared: dict[str, Any] = {"max_bytes": "175kB", "verify": False, "options": options}
    planned(model, tmp_path / "whole", **shared)
    kinds = ("outside", "passed", "banked", "scored", "judged", asks, "planned", "block", "measured")
    cut = tmp_path / "cut"
    deaths = killed_after(monkeypatch, kinds, lambda: planned(model, cut, **shared))
    assert {"banked", "scored", "judged", asks, "planned", "block"} <= set(deaths)
    for name in ("model.safetensors", "config.json", "compress/plan.json", "compress/profile.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "cut" / "compress" / "work").exists()


@pytest.mark.parametrize(("differs", "options"), [(True, {}), (False, {"effort": "fast"})])
def test_tokens_count_by_the_gradients_that_costs_were_found_with(
    differs: bool, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the build of a plan that a trial was built for, and in no other."""
    model = save_tiny("llama", tmp_path / "llama")
    planned(model, tmp_path / "out", max_bytes="175kB", verify=False, **options)
    monkeypatch.setattr(collect, "weighed", lambda base, energy: base)
    planned(model, tmp_path / "plain", max_bytes="175kB", verify=False, **options)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "plain"))
    assert (one != other) == differs


def test_a_profile_of_this_model_saves_the_asking(tmp_path: Path) -> None:
    for name, seed in (("llama", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        save_tiny("llama", tmp_path / name / "llama")
        tiny_model("llama", seed).save_pretrained(tmp_path / name / "llama")
        write_text(tmp_path / name / "text.txt")
        asked = {"samples": 18, "seq_len": 32, "threads": 1, "data": str(tmp_path / name / "text.txt")}
        sensitivity(
            SensitivityRecipe.build(model=str(tmp_path / name / "llama"), out=str(tmp_path / f"p-{name}"), **asked)
        )
    model, mine = tmp_path / "llama" / "llama", str(tmp_path / "p-llama")
    record = planned(model, tmp_path / "out", max_bytes="175kB", profile=mine, verify=False)
    assert weight_bytes(tmp_path / "out") <= 175_000
    assert "Expected loss" in record.notes[0]
    assert record.sensitivity["frontier"] == []
    lines = (tmp_path / "out" / "compress" / "journal.jsonl").read_text()
    assert "scored" not in lines
    again = profile.read(tmp_path / "out" / profile.PLACE)
    assert again.sensitivities == profile.read(Path(mine) / profile.PLACE).sensitivities
    with pytest.raises(DataError, match=r"is of another model than .*: model.safetensors differs; run compress sens"):
        planned(model, tmp_path / "no", max_bytes="175kB", profile=str(tmp_path / "p-other"))
    with pytest.raises(RecipeError, match=r"--profile .* is for --max-bytes or --bpw alone"):
        planned(model, tmp_path / "no", max_drop="5%", profile=mine)
    with pytest.raises(InputError, match="run compress sensitivity first"):
        planned(model, tmp_path / "no", bpw=9.0, profile=str(tmp_path / "nothing"))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("llama", {"max_bytes": "60kB"}, BudgetError, r"60,000 bytes are too few: the smallest file is 1\d\d,\d\d\d"),
        ("llama", {"bpw": 0.5}, BudgetError, "are too few"),
        ("llama", {"max_bytes": "ninety"}, RecipeError, "'ninety' is not understood; write it like 5GB or 500MB"),
        ("llama", {"max_bytes": "1MB", "bpw": 3.0}, RecipeError, "are one budget said twice; give one"),
        ("llama", {"max_bytes": "1MB", "bits": 3}, RecipeError, "chooses bits layer by layer; leave out --bits"),
        ("llama", {"bpw": 3.0, "scheme": "q4_1"}, RecipeError, "chooses bits layer by layer; leave out --scheme"),
        (
            "llama",
            {"max_bytes": "152kB", "to": "gguf"},
            BudgetError,
            r"152,000 bytes as gguf are too few: the",
        ),
        ("gpt2", {"max_bytes": "1MB"}, RecipeError, "compressed-tensors cannot pack a conv1d weight"),
        ("whisper", {"max_bytes": "1MB"}, RecipeError, "cannot be asked of whisper"),
    ],
)
def test_what_cannot_be_planned_leaves_nothing(
    tmp_path: Path, name: str, settings: dict[str, Any], kind: type[CompressError], said: str
) -> None:
    model = save_tiny(name, tmp_path / name)
    with pytest.raises(kind, match=said):
        planned(model, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
