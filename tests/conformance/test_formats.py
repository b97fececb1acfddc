"""Every export format: bit-exact, complete, honest about what it does not hold, and wrong in no way that is not seen.

A format is tested by being a file in export/formats; a runtime, by being named by one. What needs an environment of its
own carries the marker `runtimes` and is skipped, with the line that installs it, where that is not there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.errors import MissingRuntimeError, RecipeError
from compress.core.numerics.affine import dequantize
from compress.core.registry import load, names
from compress.pipeline.export import ExportSettings, export
from export import environments, folder
from export.kinds import ExportFormat
from tests.exporting import Bench, Subject, in_process, judged, static, subject, wrong
from tests.faults import FAULTS, cannot_have

pytestmark = pytest.mark.filterwarnings("ignore")
FITTING = (
    subject("qwen2-wide", "4 bit"),
    subject("qwen2-wide", "4 bit symmetric"),
    subject("qwen2-wide", "8 bit rows"),
    subject("bert", "4 bit"),
)
"""What a format is tried with: the first that it holds, and that the runtime opens. With biases and a tied head."""
STRANGE = (
    *FITTING,
    subject("qwen2-wide", "NF4"),
    subject("llama", "W8A8 dynamic"),
    subject("gpt2", "4 bit"),
    subject("mixtral", "4 bit symmetric"),
    subject("t5", "4 bit"),
)
"""What some formats hold and others refuse."""
HELPS = re.compile(r"--[a-z]|; there is")


def format_of(name: str) -> ExportFormat:
    found: ExportFormat = load("format", name)
    return found


def ours(runtime: str) -> bool:
    """Whether a runtime lives in our own environment."""
    return not environments.runtime(runtime).packages


def case(name: str, runtime: str = "") -> Any:
    """A parameter: marked where something has to be installed for it."""
    needed = [part for part in (format_of(name).writer, runtime) if part and not ours(part)]
    values = (name, runtime) if runtime else (name,)
    return pytest.param(*values, marks=[pytest.mark.runtimes] if needed else [], id="-".join(values))


FORMATS = [case(name) for name in names("format")]
PAIRS = [case(name, runtime) for name in names("format") for runtime in format_of(name).runtimes]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with in_process():
        yield Bench(tmp_path_factory.mktemp("formats"))


def need(*runtimes: str) -> None:
    """Skip with the install line of what is not there."""
    for name in filter(None, runtimes):
        place = environments.place(name)
        if place.interpreter is None:
            pytest.skip(f"needs {name}: {place.install}")


def fitting(bench: Bench, form: str, runtime: str = "") -> Subject:
    """The first subject that a format holds, and a runtime opens."""
    need(format_of(form).writer, runtime)
    for of in FITTING:
        held = bench.refusal(form, of) is None
        if held and (not runtime or environments.refuses(runtime, bench.export(form, of)) is None):
            return of
    raise AssertionError(f"add to FITTING what {form} holds and {runtime or 'its runtime'} opens")


def faulty(bench: Bench, form: str, of: Subject, fault: str) -> Path:
    """The export with a fault in it; skips where the model cannot have the fault."""
    if (because := cannot_have(bench.source(of), fault)) is not None:
        pytest.skip(f"{form} is tried with {of.model}: {because}")
    return bench.export(form, of, fault)


@pytest.mark.parametrize("form", FORMATS)
def test_codes_are_read_back_bit_by_bit(bench: Bench, form: str) -> None:
    of = fitting(bench, form)
    where, source = bench.export(form, of), bench.source(of)
    packed = folder.card(where)["packed"]
    found = dict(format_of(form).read_back(where, source))
    assert sorted(found) == sorted(packed) == sorted(source.coded)
    for name, weight in found.items():
        assert torch.equal(weight, dequantize(source.codes(name))), name
    assert wrong(static(where, bench.artifact(of))) == []


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_server_needs_is_there(bench: Bench, form: str) -> None:
    of = fitting(bench, form)
    where, source = bench.export(form, of), bench.source(of)
    names = {str(path) for path in source.companions()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert "generation_config.json" in names or of.model == "bert"
    for name in names:
        assert (where / name).read_bytes() == (source.folder / name).read_bytes(), name
    assert "```" in (where / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in where.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


@pytest.mark.parametrize("form", names("format"))
def test_what_does_not_fit_is_refused_before_any_work_by_a_sentence_that_helps(
    bench: Bench, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = environments.Place("a converter", Path(sys.executable), "1", "installed", "")
    monkeypatch.setattr(environments, "place", lambda name: there)  # which is not asked for anything
    refused = {of: said for of in STRANGE if (said := bench.refusal(form, of)) is not None}
    assert refused
    for of, said in refused.items():
        others = [name for name in names("format") if name != form and re.search(rf"\b{name}\b", said)]
        assert others or HELPS.search(said), f"what would do? {said}"
        with pytest.raises(RecipeError) as caught:
            export(bench.artifact(of), ExportSettings((form,)))
        assert said in str(caught.value)
        assert not folder.home(bench.artifact(of), form).exists()


@pytest.mark.parametrize("form", [name for name in names("format") if format_of(name).writer])
def test_a_converter_that_is_absent_is_named(bench: Bench, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = environments.Place(format_of(form).writer, None, None, "installed", "compress runtime install THAT")
    monkeypatch.setattr(environments, "place", lambda name: absent)
    out = bench.artifact(FITTING[0])
    with pytest.raises(MissingRuntimeError, match="compress runtime install THAT"):
        export(out, ExportSettings((form,)))
    assert not folder.home(out, form).exists()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_planted_fault_is_caught(bench: Bench, form: str, fault: str) -> None:
    """By the file itself, or else by a runtime of our own."""
    of = fitting(bench, form)
    where = faulty(bench, form, of, fault)
    if wrong(static(where, bench.artifact(of))):
        return
    here = [name for name in format_of(form).runtimes if ours(name)]
    if not here:
        first = environments.place(format_of(form).runtimes[0])
        pytest.skip(f"only what {first.name} gives shows it, see below: {first.install}")
    assert wrong(judged(where, bench.artifact(of), here[0]))


@pytest.mark.parametrize(("form", "runtime"), PAIRS)
def test_its_runtime_agrees(bench: Bench, form: str, runtime: str) -> None:
    of = fitting(bench, form, runtime)
    lines = judged(bench.export(form, of), bench.artifact(of), runtime)
    assert wrong(lines) == []
    assert [line for line in lines if line["check"].startswith("outputs")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("form", "runtime"), PAIRS)
def test_its_runtime_alone_shows_a_fault(bench: Bench, form: str, runtime: str, fault: str) -> None:
    """As if whatever reads the file back had the same mistake as what wrote it."""
    of = fitting(bench, form, runtime)
    true = [line["check"] for line in judged(bench.export(form, of), bench.artifact(of), runtime)]
    where = faulty(bench, form, of, fault)
    if fault == "no chat template":
        if "chat template" not in true:
            pytest.skip(f"{runtime} builds no prompts: the missing file is seen without it")
        assert wrong(judged(where, bench.artifact(of), runtime)) == ["chat template"]
    else:
        assert [check for check in wrong(judged(where, bench.artifact(of), runtime)) if check.startswith("outputs")]
