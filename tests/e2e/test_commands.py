"""The commands and what they print: help, --json, -q, records, notes, exit codes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import MissingExtraError
from compress.recipe import Recipe
from tests.e2e.conftest import QUICK, Run

COMMANDS = ("bench", "doctor", "export", "inspect", "quantize", "report", "sensitivity", "tune", "verify")
CONTRACT = ["command", "model", "artifact", "plan", "measurements", "verified", "environment"]


def test_the_list_of_commands_reads_well(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    listed = ended.out.partition("Commands:")[2]
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z].*\.$", listed, re.MULTILINE), listed
    assert "`" not in ended.out
    assert "..." not in ended.out.replace("[ARGS]...", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_examples_line_by_line(run: Run, command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    examples = ended.out.partition("\nExamples:\n")[2].rstrip("\n").splitlines()
    assert examples
    known = set(re.findall(r"--[a-z0-9-]+", ended.out.partition("Examples:")[0]))
    for line in examples:
        assert line.startswith(f"  compress {command}"), line
        words = shlex.split(line.partition("#")[0].partition(">")[0])
        assert {word for word in words if word.startswith("--")} <= known, line


def test_defaults_in_help_are_those_of_the_recipe(run: Run) -> None:
    text = " ".join(run("quantize", "--help").out.split())
    named: dict[str, str] = {}
    for found in re.finditer(
        r"--([a-z-]+)(?: / --[a-z-]+)? (?:<[^>]*> )?((?:(?! --[a-z]).)*?)\[default: ([^]]+)\]", text
    ):
        named[found[1].replace("-", "_")] = found[3]
    words: dict[str, Any] = {
        "out": ("MODEL-BITSbit", ""),
        "data": ("built-in text", None),
        "text_column": ("guessed", None),
        "symmetric": ("symmetric at 8 bits only", None),
        "verify": ("verify", True),
        "task": ("auto, by its class", "auto"),
        "eval_samples": ("16 documents, 500 rows", None),
        "mixed": ("encoders at 4 bits", None),
        "activations": ("dynamic for encoders at 8 bits, else none", "auto"),
        "act_strategy": ("token if dynamic", "auto"),
        "act_observer": ("minmax", "auto"),
        "act_symmetric": ("symmetric by token only", None),
        "embeddings": ("int8 in encoders", "auto"),
        "smooth": ("off", 0.0),
        "reparam": ("as the plan of --plan, else none", "auto"),
        "schemes": ("2 to 8 bits, two group sizes", []),
    }
    fields = Recipe.model_fields
    assert {"bits", "group_size", "method", "samples", "seq_len", "eval_samples", "seed", "generate"} <= named.keys()
    for name, said in named.items():
        default = fields[name].get_default(call_default_factory=True)
        expected, value = words.get(name, (str(default), default))
        assert said == expected, name
        assert default == value, name


def test_every_setting_has_an_option(run: Run) -> None:
    text = run("quantize", "--help").out
    for name in Recipe.model_fields.keys() - {"model", "options"}:
        assert f"--{name.replace('_', '-')}" in text, name


def test_help_lists_the_options_of_methods(run: Run) -> None:
    import dataclasses

    from compress.core.registry import load, names

    text = " ".join(run("quantize", "--help").out.split())
    for name in names("method"):
        said = text.partition(f" {name}: ")[2]
        for field in dataclasses.fields(load("method", name).options):
            assert re.match(rf".*?\b{field.name}={re.escape(str(field.default))}", said), (name, field.name)


def test_a_record_is_all_that_json_prints(run: Run, llama: Path) -> None:
    ended = run("quantize", llama, "--out", "out", *QUICK, "--json")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    record = json.loads(ended.out)
    assert list(record)[: len(CONTRACT)] == CONTRACT
    assert record["command"] == "quantize"
    assert record["artifact"] == "out"
    assert {m["subject"] for m in record["measurements"]} == {"original", "out"}
    names = {m["name"] for m in record["measurements"]}
    assert {"bytes", "bits_per_weight", "perplexity", "kl", "top1_agreement"} <= names
    for line in record["measurements"]:
        assert {"subject", "name", "unit", "median", "low", "high", "n"} <= line.keys()
    size = next(m for m in record["measurements"] if m["name"] == "bytes" and m["subject"] == "out")
    assert size["median"] == Path("out/model.safetensors").stat().st_size
    # again, and shown again: the same record
    assert json.loads(run("quantize", llama, "--out", "out", *QUICK, "--json").out) == record
    assert json.loads(run("report", "out", "--json").out) == record
    assert json.loads(run("report", "out/compress/record.json", "--json").out) == record
    assert run("inspect", "out", "--json").err == ""


def test_quiet_prints_nothing(run: Run, llama: Path) -> None:
    for words in (("quantize", llama, "--out", "out", *QUICK), ("report", "out"), ("inspect", llama), ("doctor",)):
        ended = run(*words, "-q")
        assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_the_command_in_the_record_makes_the_same_weights(run: Run, llama: Path) -> None:
    ended = run("quantize", llama, "--out", "out", *QUICK, "--bits", "3", "--option", "act_order=false", "--json")
    line = json.loads(ended.out)["reproduce"]
    words = shlex.split(line)
    assert words[0] == "compress"
    words[words.index("--out") + 1] = "again"
    assert run(*words[1:], "-q").code == 0
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


def test_without_plotly_the_page_is_left_out_and_that_is_said(
    run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)  # what an import that fails leaves
    ended = run("quantize", llama, "--out", "out", *QUICK, "--json")
    assert ended.code == 0, ended.err
    notes = json.loads(ended.out)["notes"]
    assert any("report.html was left out" in note and "compress-models[report]" in note for note in notes)
    assert not Path("out/report.html").exists()
    assert "report.html was left out" in Path("out/report.txt").read_text(encoding="utf-8").replace("\n", " ")
    ended = run("report", "out", "--html", "page.html", "-q")
    assert ended.code == 2
    assert "compress-models[report]" in ended.sentence


def test_without_gguf_the_install_line_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    Path("model.gguf").write_bytes(b"GGUF")
    ended = run("inspect", "model.gguf", "-q")
    assert ended.code == MissingExtraError.exit_code == 2
    assert "pip install 'compress-models[gguf]'" in ended.sentence


def test_reports_of_what_is_no_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "text.json").write_text("hello", encoding="utf-8")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere", "empty", "list.json", "text.json", "binary.json"):
        ended = run("report", tmp_path / name)
        assert ended.code == 3, (name, ended)
        assert name in ended.sentence or "record" in ended.sentence


def test_bench_and_inspect_of_what_is_no_model(run: Run, llama: Path, tmp_path: Path) -> None:
    assert "nowhere" in run("inspect", tmp_path / "nowhere").sentence
    for words in ((tmp_path / "nowhere",), (llama, tmp_path / "nowhere")):
        ended = run("bench", *words, "-q")
        assert ended.code == 3, ended
        assert "nowhere" in ended.sentence
    assert run("bench").code == 2


def test_report_cannot_write(run: Run, llama: Path) -> None:
    assert run("quantize", llama, "--out", "out", *QUICK, "-q").code == 0
    Path("taken").mkdir()
    ended = run("report", "out", "--text", "taken", "-q")
    assert ended.code == 1
    assert "taken cannot be written" in ended.sentence


def test_doctor_names_real_instructions(run: Run) -> None:
    ended = run("doctor")
    assert ended.code == 0
    line = next(line for line in ended.out.splitlines() if line.startswith("instructions"))
    assert "known" not in line.split()[1:]
    found = json.loads(run("doctor", "--json").out)
    assert found["command"] == "doctor"
    assert found["environment"]["packages"]["torch"]


def test_a_failed_verification_stays_failed(run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.pipeline import finish

    bad = {"check": "packed layers", "difference": 0.5, "tolerance": 0.001, "passed": False}
    with monkeypatch.context() as broken:
        broken.setattr(finish, "check_stored", lambda out: bad)
        broken.setattr(finish, "WHOLE_BYTES", 0)
        ended = run("quantize", llama, "--out", "out", *QUICK, "--verify", "-q")
        assert ended.code == 5
        assert "differ by 0.5" in ended.sentence
    assert run("quantize", llama, "--out", "out", *QUICK, "--verify", "-q").code == 5


def test_memory_that_runs_out(run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.pipeline import quantize

    said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    for error in (MemoryError(), RuntimeError(said)):
        with monkeypatch.context() as small:

            def fail(*_: object, error: BaseException = error) -> None:
                raise error

            small.setattr(quantize, "make_streams", fail)
            ended = run("quantize", llama, "--out", "out", *QUICK, "-q")
        assert ended.code == 1
        assert "memory ran out" in ended.sentence
        assert "--samples" in ended.sentence
    assert run("quantize", llama, "--out", "out", *QUICK, "-q").code == 0


def test_what_nobody_foresaw_is_one_sentence_too(run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.pipeline import inspect

    monkeypatch.setattr(inspect, "find_structure", lambda *_: 1 / 0)
    ended = run("inspect", llama, "-q")
    assert ended.code == 1
    assert ended.err == (
        "compress: internal error, ZeroDivisionError: division by zero; run with -v and report what it prints\n"
    )
