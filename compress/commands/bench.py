"""`compress bench`: quality, speed, memory, size of models side by side."""

from __future__ import annotations

from typing import Any

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress bench ./my-model ./my-model-4bit",
    "compress bench ./my-model ./small ./smaller --data reviews.csv --html bench.html",
    "compress bench ./my-model-4bit --no-quality --repeats 10",
    "compress bench ./my-model ./my-model-4bit/exports/gguf   # in llama.cpp; FOLDER@RUNTIME chooses another",
    "compress bench ./tuned ./tuned-8bit                       # a task model: its scores on its held-out rows",
)


SUBJECTS = typer.Argument(
    help="Models, artifacts and exports; the first is what the others are compared with.", show_default=False
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("bench", cls=_run.Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    subjects: list[str] = SUBJECTS,
    data: str | None = typer.Option(None, help="Text to judge on: file, folder or hub name [default: built-in text]."),
    text_column: str | None = typer.Option(None, help="Column that holds the text [default: guessed]."),
    task: str = typer.Option("auto", help="What the models are for [default: by the first one's class]."),
    columns: list[str] | None = _run.COLUMNS,
    eval_samples: int | None = typer.Option(
        None, help="Held-out documents, or rows of a task [default: 16 documents, 500 rows]."
    ),
    seq_len: int = typer.Option(512, help="Longest document in tokens."),
    seed: int = typer.Option(0, help="Seed of the split."),
    quality: bool = typer.Option(True, "--quality/--no-quality", help="Perplexity, KL, agreement."),
    latency: bool = typer.Option(True, "--latency/--no-latency", help="Prefill and decode speed, memory."),
    prompt_tokens: int = typer.Option(256, help="Length of the timed prompt."),
    decode_tokens: int = typer.Option(32, help="Tokens decoded in a timed run."),
    repeats: int = typer.Option(5, help="Timed runs per fresh process."),
    dtype: str = typer.Option("float32", help="Dtype of the computation."),
    threads: int = typer.Option(0, help="Torch threads; 0 takes the physical cores."),
    html: str | None = typer.Option(None, help="Write a self-contained page here."),
    save: str | None = typer.Option(None, help="Write the record as JSON here."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help="Open .bin weights."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run code that comes with a model."),
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Measure models side by side."""
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from pathlib import Path

        from calibrate.data import DataSettings
        from compress.core.files import atomic_write
        from compress.measure.settings import BenchSettings
        from compress.pipeline.bench import Text, bench
        from compress.recipe import EVAL_DOCUMENTS, Recipe

        held = EVAL_DOCUMENTS if eval_samples is None else eval_samples
        wanted: dict[str, Any] = {
            "model": subjects[0],
            "data": data,
            "text_column": text_column,
            "task": task,
            "seed": seed,
        }
        wanted |= {"columns": _run.roles(columns) or {}, "eval_samples": eval_samples, "seq_len": seq_len}
        rows = Recipe.build(**wanted, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        text = Text(DataSettings(data, text_column, 64, seq_len, held, seed), rows) if quality else None
        settings = BenchSettings(
            subjects=tuple(subjects),
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            repeats=repeats,
            threads=threads,
            dtype=dtype,
            seed=seed,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            quality=quality,
            latency=latency,
        )
        with _run.Bars(output) as bars:
            record = bench(settings, text, bars.report, bars.say)
        if save:
            from compress.report.record import write

            write(record, Path(save))
        if html:
            from compress.report.html import render

            atomic_write(Path(html), [render(record).encode()])
        _run.show(record, output)
