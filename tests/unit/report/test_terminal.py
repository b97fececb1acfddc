"""The terminal report: fits its width, shows what it should, obeys nothing that a model says."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from compress.report import terminal
from tests import fake_record as fake

FACTORIES = (
    fake.quantize_record,
    fake.bench_record,
    fake.encoder_record,
    fake.empty_record,
    fake.chinese_record,
    fake.hostile_record,
    fake.tune_record,
)


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("factory", FACTORIES)
def test_lines_fit_but_for_commands(factory: Any, width: int) -> None:
    report, _, commands = terminal.text(factory(), width).rpartition("\nNext\n")
    assert commands
    assert max(cell_len(line) for line in report.splitlines()) <= width


def test_the_figures_are_there_at_80_columns() -> None:
    report = terminal.text(fake.quantize_record(), 80)
    for said in (
        "538.1 MB  →  115.3 MB",
        "×1.083 [1.071, 1.096]",
        "[0.118, 0.137]",
        "84.3 %",
        "16 held-out documents, 8,192 tokens",
        "gate_proj      30         4.31  106.2 MB",
        "model.layers.26.mlp.down_proj",
        "damping was raised to 0.1",
        "transformers: agrees",
        "Time: 5 min 42 s",
        "  compress bench demo SmolLM2-135M-Instruct-int4\n",
        "AutoModelForCausalLM.from_pretrained('SmolLM2-135M-Instruct-int4')\n",
        "MB = 10^6 bytes",
    ):
        assert said in report, said


def test_many_subjects_get_tables_with_nothing_cut() -> None:
    report = terminal.text(fake.bench_record(), 80)
    for said in (
        "[0.00558, 0.00648]",
        "[83.5, 85.1]",
        "[17.20, 21.40]",
        "[30.26, 32.14]",
        "1.31 GB",
        "538.1 MB",
    ):
        assert said in report, said
    assert all(f"truct-int{bits}" in report for bits in (3, 4, 8))


def test_sections_without_content_are_left_out() -> None:
    report = terminal.text(fake.empty_record(), 80)
    assert not any(title in report for title in ("By role", "Worst", "Verified", "Notes", "Time", "Quality", "Speed"))


@pytest.mark.parametrize("forced", [False, True])
def test_hostile_strings_are_shown_and_not_obeyed(forced: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=forced, color_system="truecolor" if forced else None)
    terminal.show(fake.hostile_record(), console)
    out = stream.getvalue()
    assert "[bold red]rich[/bold red]" in out
    assert "[/]" in out
    assert "evil.invalid\x1b" not in out
    assert "\x1b]" not in out
    assert not set(out) & set("\x00\x07\x08\x7f\x9b\u202e\u2066\u2028")
    assert ("\x1b[" in out) == forced
    # Every escape sequence is one of rich's own colours, none a colour that an attack asked for.
    assert "\x1b[31m" not in out
    assert not any(style in out for style in ("\x1b[1;31mrich", "\x1b[1mrich"))


def test_a_pipe_gets_no_escape_sequences_and_the_same_words() -> None:
    stream = io.StringIO()
    terminal.show(fake.quantize_record(), Console(file=stream, width=90))
    plain = "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
    assert plain + "\n" == terminal.text(fake.quantize_record(), 90)
    assert "\x1b" not in plain


def test_the_file_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = terminal.text(fake.quantize_record(), 100)
    for name, value in (("COLUMNS", "40"), ("FORCE_COLOR", "1"), ("TERM", "dumb"), ("TTY_COMPATIBLE", "1")):
        monkeypatch.setenv(name, value)
    assert terminal.text(fake.quantize_record(), 100) == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_consoles_without_unicode_lose_characters_not_the_report(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    terminal.show(fake.chinese_record(), Console(file=stream, width=80))
    stream.flush()
    out = raw.getvalue().decode(encoding)
    assert "170.0 MB  >  65.3 MB" in out
    assert "x1.083 [1.071, 1.096]" in out
    assert "compress bench demo" in out


def test_a_failed_verification_is_named() -> None:
    record = replace(
        fake.quantize_record(1), verified=({"runtime": "vllm", "passed": False, "max_logit_difference": 3.5},)
    )
    assert "vllm: DISAGREES (max logit difference 3.50)" in terminal.text(record, 80)


def test_training_is_a_line_an_epoch_with_the_kept_one_marked() -> None:
    report = terminal.text(fake.tune_record(), 80)
    rows = [line.split() for line in report.partition("Training (scores of validation rows)\n")[2].splitlines()[:4]]
    assert rows[0] == ["epoch", "loss", "accuracy", "macro", "F1"]
    assert rows[2] == ["2", "0.875", "93.0", "%", "91.0", "%", "kept"]
    assert "kept" not in rows[1] + rows[3]
    assert "held-out rows" in report


def test_a_tuning_run_shows_its_balance_and_what_was_trained() -> None:
    report = terminal.text(fake.tune_record(), 80)
    assert "22.7 M parameters · 1.33 % trained" in report
    rows = [line.split() for line in report.split("\nBalance\n")[1].splitlines()[1:3]]
    assert rows == [["sport", "500", "55.6", "%"], ["tech", "400", "44.4", "%"]]
    many = replace(fake.tune_record(), data={"labels": {f"class{n}": n for n in range(50)}})
    assert "and 30 more in record.json" in terminal.text(many, 80)
